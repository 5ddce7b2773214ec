"""A hostile back end: a plan of accesses played at one port, whatever its front end gave leave for.

It does what a compromised switch can: it reads and writes without having asked, and again once it has; it keeps what it
was to forget, or says nothing; it lies in the used ring, and to its front end. The port goes on as ever besides, and so
do the others. What it says comes of a plan decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from viommu_actors.devices import rogue_plan
from viommu_actors.devices.rogue_plan import (
    MAX_STEPS,
    Control,
    Fuzz,
    Invalidations,
    Message,
    Raw,
    Read,
    Scan,
    Translate,
    Write,
)
from viommu_actors.devices.rogue_plan import Interrupt as InterruptMessage
from viommu_actors.devices.rogue_plan import Step as DeviceStep
from viommu_actors.spec import vhost, virtio, virtio_net
from viommu_actors.spec.vhost import Access
from viommu_actors.spec.virtio import RING_ENTRIES, RING_INDEX, U16, USED_ENTRY
from viommu_actors.spec.vtd import PAGE_MASK, PAGE_SIZE
from viommu_actors.vswitch.memory import READ, WRITE
from viommu_actors.vswitch.memory import Read as Reading
from viommu_actors.vswitch.port import Port
from viommu_actors.vswitch.task import Wait

#: What a back end can put on its wire, by name.
MESSAGES: Final[Mapping[str, Any]] = {
    kind.__name__: kind
    for kind in (
        vhost.Features,
        vhost.VringBase,
        vhost.IotlbMiss,
        vhost.IotlbAccessFail,
        vhost.IotlbInvalidated,
        vhost.MemoryRead,
        vhost.MemoryWrite,
        vhost.Call,
        vhost.VringError,
    )
}
_ADDRESS_SPACE: Final = 1 << 64
#: Reads of a scan on the way.
_WINDOW: Final = 32
_DWORD: Final = 4


class Lie(NamedTuple):
    """A used ring that cannot be true, and an interrupt for it.

    `unknown`: a descriptor that the driver never posted was used; `long`: more bytes were written than a buffer has;
    `ahead`: more buffers were used than there are.
    """

    kind: str
    queue: int = virtio_net.Queue.RECEIVE


LIES: Final = ("unknown", "long", "ahead")
Step = DeviceStep | Lie


class BareWire(Protocol):
    """The wire beneath its messages."""

    def send(self, *frames: bytes) -> bool:
        """In place of a message; False on one that is down."""

    def fuzz(self, seed: int, count: int) -> None:
        """See `devices.rogue_plan.Fuzz`."""


def parse_plan(values: Sequence[Mapping[str, object]]) -> list[Step]:
    """As `devices.rogue_plan.parse_plan`, of a back end's messages; besides `{"do": "lie", "kind": "long"}`.

    Raises ValueError.
    """
    if len(values) > MAX_STEPS:
        raise ValueError(f"a plan has at most {MAX_STEPS} steps, this one {len(values)}")
    return [step for value in values for step in _parse(value)]


def _parse(value: Mapping[str, object]) -> Sequence[Step]:
    if value.get("do") != "lie":
        return rogue_plan.parse_plan([value], MESSAGES)
    kind, queue = value.get("kind"), value.get("queue", int(virtio_net.Queue.RECEIVE))
    if kind not in LIES or queue not in range(virtio_net.QUEUES):
        raise ValueError(f"a lie is one of {', '.join(LIES)}, of a queue that there is")
    return [Lie(str(kind), int(str(queue)))]


class Rogue:
    """Plays plans at a port; `send` as the port's, `wire` for what is no message."""

    def __init__(self, port: Port, send: Callable[[Any], None], wire: BareWire) -> None:
        self._port = port
        self._send = send
        self._wire = wire

    def play(self, plan: Sequence[Step], done: Callable[[list[str]], None]) -> None:
        """Starts a plan. `done` gets a word for each step; fewer than steps where the port started over meanwhile."""
        self._port.tasks.start(self._play(plan, done))

    def _play(self, plan: Sequence[Step], done: Callable[[list[str]], None]) -> Generator[Wait, None, None]:
        told: list[str] = []
        try:
            for step in plan:
                told.append((yield from self._step(step)))
        finally:
            done(told)

    def _step(self, step: Step) -> Generator[Wait, None, str]:
        match step:
            case Read():
                return (yield from self._reads([(step.address, step.length)]))
            case Scan():
                places = ((at, step.length) for at in range(step.first, step.last + 1, step.stride))
                return (yield from self._reads(places))
            case Write():
                self._write(step)
            case InterruptMessage():
                for _ in range(step.times):
                    self._port.memory.write(step.address, step.data.to_bytes(_DWORD, "little"))
            case Translate():
                self._miss(step.address, READ if step.no_write else int(Access.BOTH))
            case Invalidations():
                self._treat_invalidations(step.policy)
            case Message():
                for _ in range(step.times):
                    self._send(MESSAGES[step.name](*step.fields))
            case Raw():
                self._wire.send(step.data)
            case Fuzz():
                self._wire.fuzz(step.seed, step.times)
            case Lie():
                return (yield from self._lie(step))
            case Control():
                return (yield from self._control(step))
            case _:
                raise ValueError(f"a back end has no way to {type(step).__name__.lower()}")
        return "sent"

    # --- accesses: as they are, and again once leave was asked for

    def _reads(self, places: Iterable[tuple[int, int]]) -> Generator[Wait, None, str]:
        got = 0
        flight: deque[Reading] = deque()
        for address, length in places:
            for at, size in _pieces(address, length):
                flight.append((yield from self._read(at, size)))
                self._miss(at, READ)
                flight.append((yield from self._read(at, size)))
                while len(flight) >= _WINDOW:
                    read = flight.popleft()
                    if not read.over:
                        yield read
                    got += read.data is not None
        for read in flight:
            if not read.over:
                yield read
            got += read.data is not None
        return f"{got} reads answered"

    def _read(self, at: int, size: int) -> Generator[Wait, None, Reading]:
        while not self._port.memory.has_room:
            yield self._port.memory.turn()
        return self._port.memory.read(at, size)

    def _write(self, step: Write) -> None:
        pieces = list(_pieces(step.address, len(step.data)))
        for turn in range(step.times + 1):
            if turn == step.times:
                for at, _ in pieces:
                    self._miss(at, WRITE)
            done = 0
            for at, size in pieces:
                self._port.memory.write(at, step.data[done : done + size])
                done += size

    def _miss(self, address: int, access: int) -> None:
        self._port.memory.miss(address & ~PAGE_MASK, access)

    def _control(self, step: Control) -> Generator[Wait, None, str]:
        """An honest access: leave is asked for, and what was written is read again."""
        self._miss(step.iova, int(Access.BOTH))
        self._port.memory.write(step.iova, step.data)
        read = yield from self._read(step.iova, len(step.data))
        if not read.over:
            yield read
        if read.data is None:
            return "refused"
        return "completed" if read.data == step.data else "differs"

    # --- invalidations, and the used ring

    def _treat_invalidations(self, policy: str) -> None:
        port = self._port
        if policy == "honest":
            port.guest.iotlb.clear()
            port.invalidated = port.forget
        elif policy == "keep":
            port.invalidated = lambda message: self._send(vhost.IotlbInvalidated(message.sequence))
        else:
            port.invalidated = lambda message: None

    def _lie(self, lie: Lie) -> Generator[Wait, None, str]:
        found = self._port.ring(lie.queue)
        if found is None:
            return "refused"
        setup, used = found
        memory = self._port.memory
        entry = yield from self._read(setup.available + RING_ENTRIES + used % setup.size * U16.size, U16.size)
        if not entry.over:
            yield entry
        if entry.data is None:
            return "refused"
        descriptor = U16.unpack(entry.data)[0]
        untrue = {
            "unknown": [(virtio.MAX_QUEUE_SIZE, virtio_net.HEADER.size)],
            "long": [(descriptor, PAGE_SIZE << 8)],
            "ahead": [(descriptor, 0)] * (setup.size + 1),
        }[lie.kind]
        for at, (head, length) in enumerate(untrue[: setup.size], used):
            memory.write(setup.used + RING_ENTRIES + at % setup.size * USED_ENTRY.size, USED_ENTRY.pack(head, length))
        memory.write(setup.used + RING_INDEX, U16.pack(used + len(untrue) & virtio.INDEX_MASK))
        self._send(vhost.Call(lie.queue))
        return "sent"


def _pieces(address: int, length: int) -> Iterator[tuple[int, int]]:
    """A transfer page by page; what runs over the end of the address space goes on at zero, as hardware's does."""
    while length > 0:
        size = min(PAGE_SIZE - (address & PAGE_MASK), length)
        yield address, size
        address, length = (address + size) % _ADDRESS_SPACE, length - size
