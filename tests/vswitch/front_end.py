"""Guests of a virtual switch, played by hand: memory, a vIOMMU's mapping, a driver's rings, and the wires between."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from viommu_actors.spec import vhost, virtio
from viommu_actors.spec.vhost import Access
from viommu_actors.spec.virtio import DescriptorFlag
from viommu_actors.spec.virtio_net import HEADER, Queue
from viommu_actors.vswitch.port import Port
from viommu_actors.vswitch.switch import Switch

PAGE = 4096
RAM = 256 * PAGE
#: In pages: rings of the two queues, and buffers of each of their descriptors.
RINGS = {Queue.RECEIVE: 1, Queue.TRANSMIT: 8}
BUFFERS = {Queue.RECEIVE: 16, Queue.TRANSMIT: 96}
SIZE = 64
#: Messages on the way to a front end beyond which they wait in the switch.
ROOM = 100


class DriverQueue:
    """The driver's side of a virtqueue, written apart from the product's."""

    def __init__(self, guest: Guest, queue: Queue, size: int = SIZE, base: int = 0) -> None:
        self.guest = guest
        self.queue = queue
        self.size = size
        self.descriptors = RINGS[queue] * PAGE
        self.available = self.descriptors + 2 * PAGE
        self.used = self.descriptors + 4 * PAGE
        self.index = self.seen = base
        guest.ram[self.available : self.available + virtio.available_size(size)] = bytes(virtio.available_size(size))
        guest.ram[self.used : self.used + virtio.used_size(size)] = bytes(virtio.used_size(size))
        self.put(self.available + 2, 2, base)
        self.put(self.used + 2, 2, base)

    def put(self, at: int, size: int, value: int) -> None:
        self.guest.ram[at : at + size] = value.to_bytes(size, "little")

    def get(self, at: int, size: int) -> int:
        return int.from_bytes(self.guest.ram[at : at + size], "little")

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        at = self.descriptors + 16 * index
        self.guest.ram[at : at + 16] = virtio.DESCRIPTOR.pack(address, length, flags, following)

    def offer(self, head: int) -> None:
        """Makes a chain available, and kicks where the device wants that."""
        self.put(self.available + 4 + 2 * (self.index % self.size), 2, head)
        self.index = self.index + 1 & 0xFFFF
        self.put(self.available + 2, 2, self.index)
        if not self.get(self.used, 2) & 1:
            self.guest.to_switch(vhost.Kick(self.queue))

    def buffer(self, index: int) -> int:
        return (BUFFERS[self.queue] + index) * PAGE

    def reap(self) -> list[tuple[int, int]]:
        """(head, length) of what was used since."""
        done = []
        while self.seen != self.get(self.used + 2, 2):
            at = self.used + 4 + 8 * (self.seen % self.size)
            done.append((self.get(at, 4), self.get(at + 4, 4)))
            self.seen = self.seen + 1 & 0xFFFF
        return done

    def setup(self) -> vhost.SetVring:
        used = self.get(self.used + 2, 2)
        return vhost.SetVring(self.queue, self.size, self.descriptors, self.available, self.used, used)


class Guest:
    """A guest, and the front end of its network device. `mapping`: page -> (page, leave), None without a vIOMMU."""

    port: Port

    def __init__(self, world: World, name: str, translated: bool = True, size: int = SIZE, base: int = 0) -> None:
        self.name = name
        self.ram = bytearray(RAM)
        self.mapping: dict[int, tuple[int, Access]] | None = None
        if translated:
            self.mapping = {page: (page, Access.BOTH) for page in range(RAM // PAGE)}
        self.faults: list[tuple[int, Access]] = []
        self.calls: list[int] = []
        self.said: list[Any] = []
        self.counts: Counter[str] = Counter()
        #: Answers nothing while it is set.
        self.stuck = False
        self.down: deque[Any] = deque()
        self.up: deque[Any] = deque()
        self._world = world
        self.connect()
        self.rx = DriverQueue(self, Queue.RECEIVE, size, base)
        self.tx = DriverQueue(self, Queue.TRANSMIT, size, base)

    # --- the front end

    def connect(self) -> None:
        """To the switch that there is."""
        self.down, self.up = deque(), deque()
        self.port = self._world.switch.add(self.name, self.up.append, lambda: len(self.up) >= ROOM)

    def to_switch(self, message: Any) -> None:
        self.down.append(message)

    def start(self) -> None:
        features = virtio.Feature.VERSION_1
        if self.mapping is not None:
            features |= virtio.Feature.ACCESS_PLATFORM
        self.to_switch(vhost.SetFeatures(features))
        for queue in (self.rx, self.tx):
            self.to_switch(queue.setup())
            self.to_switch(vhost.StartVring(queue.queue))

    def serve(self, message: Any) -> None:
        self.counts[type(message).__name__] += 1
        match message:
            case vhost.MemoryRead(tag, iova, size):
                data = self.access(iova, size, Access.READ)
                status = vhost.ReadStatus.FAILED if data is None else vhost.ReadStatus.DONE
                self.to_switch(vhost.ReadCompletion(tag, status, data or b""))
            case vhost.MemoryWrite(iova, data):
                self.access(iova, len(data), Access.WRITE, data)
            case vhost.IotlbMiss(iova, access):
                if self.mapping is not None:
                    page, leave = self.mapping.get(iova // PAGE, (0, Access(0)))
                    if access & ~leave:
                        self.faults.append((iova, Access(access)))
                    else:
                        self.to_switch(vhost.IotlbUpdate(iova, PAGE, page * PAGE, leave))
            case vhost.Call(queue):
                self.calls.append(queue)
            case _:
                self.said.append(message)

    def access(self, iova: int, size: int, access: Access, data: bytes = b"") -> bytes | None:
        end, at, read = iova + size, iova, b""
        while at < end:
            stop = min(end, (at // PAGE + 1) * PAGE)
            page, leave = at // PAGE, Access.BOTH
            if self.mapping is not None:
                page, leave = self.mapping.get(page, (0, Access(0)))
            if access & ~leave or (page + 1) * PAGE > RAM:
                self.faults.append((at, access))
                return None
            place = slice(page * PAGE + at % PAGE, page * PAGE + at % PAGE + stop - at)
            if access == Access.READ:
                read += self.ram[place]
            else:
                self.ram[place] = data[at - iova : stop - iova]
            at = stop
        return read

    def unmap(self, page: int, sequence: int = 1) -> None:
        assert self.mapping is not None
        self.mapping.pop(page, None)
        self.to_switch(vhost.IotlbInvalidate(sequence, page * PAGE, PAGE))

    # --- the driver

    def give(self, count: int, length: int = PAGE) -> None:
        """Receive buffers."""
        for _ in range(count):
            index = self.rx.index % self.rx.size
            self.rx.describe(index, self.rx.buffer(index), length, DescriptorFlag.WRITE)
            self.rx.offer(index)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            index = self.tx.index % self.tx.size
            at = self.tx.buffer(index)
            data = bytes(HEADER.size) + frame
            self.ram[at : at + len(data)] = data
            self.tx.describe(index, at, len(data))
            self.tx.offer(index)

    def received(self) -> list[bytes]:
        frames = []
        for head, length in self.rx.reap():
            at = self.rx.buffer(head)
            frames.append(bytes(self.ram[at + HEADER.size : at + length]))
        return frames


class World:
    """A switch and its guests; what is on a wire stays in order, and else anything may overtake anything."""

    def __init__(self, seed: int | None = None) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.switch = Switch(lambda: self.now, self.lines.append)
        self.guests: list[Guest] = []
        self._random = None if seed is None else Random(seed)

    def guest(self, name: str, **options: Any) -> Guest:
        self.guests.append(guest := Guest(self, name, **options))
        return guest

    def step(self) -> bool:
        """One message arrives; False where none is on its way."""
        self.switch.expire()
        moves: list[Callable[[], None]] = []
        for guest in self.guests:
            if guest.down:
                moves.append(partial(_to_port, guest))
            if guest.up and not guest.stuck:
                moves.append(partial(_to_guest, guest))
        if moves:
            (moves[0] if self._random is None else self._random.choice(moves))()
        return bool(moves)

    def pump(self, limit: int = 200_000) -> int:
        """Until nothing is on its way; how many messages that took."""
        for count in range(limit):
            if not self.step():
                return count
        raise AssertionError("it goes on without end")

    def replace_switch(self) -> None:
        """It has died, with all that was on its wires; a new one has the same ports, and knows nothing."""
        self.switch = Switch(lambda: self.now, self.lines.append)
        for guest in self.guests:
            guest.connect()


def _to_port(guest: Guest) -> None:
    guest.port.receive(guest.down.popleft())


def _to_guest(guest: Guest) -> None:
    guest.serve(guest.up.popleft())
    if len(guest.up) < ROOM:
        guest.port.has_room()


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def frame(target: bytes, source: bytes, content: bytes = b"") -> bytes:
    return target + source + b"\x88\xb5" + content
