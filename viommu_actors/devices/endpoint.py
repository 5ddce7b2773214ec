"""A PCI Express function: configuration space, BARs, and a DMA engine driven by generator tasks.

A device's work is written straight down, as generators that wait for the answer to a read:
`data = yield from self.dma_read(address, length)`. Between the steps of one task the function goes on
serving requests, so MMIO is answered while DMA is outstanding. PCI Express Base 5.0 chapters 2 and 7.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.pci.fragment import Fragment, fragments
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.tlp import AddressType, Atomic, AtomicKind, Completion, CompletionStatus, MemRead, MemWrite

#: Non-posted requests in flight: 5-bit tags, since extended tags are not offered.
TAGS = 32


class Transfer:
    """Non-posted requests that a task waits for together. `data` is None where one of them failed."""

    def __init__(self, length: int) -> None:
        self.data: bytes | None = None
        self.status = CompletionStatus.SUCCESS
        #: A request of it got no answer in time.
        self.timed_out = False
        self.waiting = 0
        self.resume: Callable[[], None] | None = None
        self.buffer = bytearray(length)


Task = Generator[Transfer, None, None]


@dataclass
class _Request:
    """One TLP in flight: its place in the transfer, and what has come of its completion."""

    transfer: Transfer
    offset: int
    length: int
    lead: int
    remaining: int
    dwords: int
    data: bytes = b""


class Endpoint:
    """Type 0 function behind a link. `send` takes what goes upstream; `log` a line for the operator.

    Subclasses give registers (`bar_read`, `bar_write`) and forget their state in `device_reset`.
    """

    def __init__(
        self, config: ConfigSpace, send: Callable[[tlp.Upstream], None], log: Callable[[str], None] = lambda _: None
    ) -> None:
        self.config = config
        self.send = send
        self.log = log
        self.counters: Counter[str] = Counter()
        self.requester = 0
        self._express = config.capability(pci.CapabilityId.PCI_EXPRESS)
        self._power = config.capability(pci.CapabilityId.POWER_MANAGEMENT)
        self._msi = config.capability(pci.CapabilityId.MSI)
        self._tasks: set[Task] = set()
        self._requests: dict[int, _Request] = {}
        self._queued: deque[tuple[_Request, Callable[[int], tlp.Upstream]]] = deque()
        self._free_tags = deque(range(TAGS))
        self._latch()

    # --- for subclasses

    def bar_read(self, bar: int, offset: int, size: int) -> int | None:
        """Value of a naturally aligned register access of 1, 2, 4 or 8 bytes; None is an unsupported request."""
        return None

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Naturally aligned register write of 1, 2, 4 or 8 bytes."""

    def device_reset(self) -> None:
        """The device's own state back to what it is after power-on. Its tasks are gone already."""

    # --- from the link

    def receive(self, message: object) -> None:
        """Serves one message from the root port."""
        match message:
            case Completion():
                self._completion(message)
            case tlp.MmioRead(tag, address, length):
                self._mmio_read(tag, address, length)
            case tlp.MmioWrite(address, data):
                self._mmio_write(address, data)
            case tlp.CfgRead(tag, _, devfn, offset, length):
                self._config_read(tag, devfn, offset, length)
            case tlp.CfgWrite(tag, bus, devfn, offset, data):
                self._config_write(tag, bus, devfn, offset, data)
            case tlp.HotReset():
                self._reset()
                self.requester = 0
            case _:
                self.counters["unsupported"] += 1

    @property
    def outstanding(self) -> list[int]:
        """Tags of requests that wait for a completion, oldest first."""
        return list(self._requests)

    def expire(self, tag: int) -> None:
        """Completion timeout: the request failed; a late completion is unexpected."""
        request = self._requests.pop(tag, None)
        if request is not None:
            self.counters["completion timeout"] += 1
            request.transfer.timed_out = True
            self._retire(tag, request, None)

    # --- tasks

    def start(self, task: Task) -> None:
        """Runs a task until it waits for the first time; it goes on as its transfers complete."""
        self._tasks.add(task)
        self._advance(task)

    def cancel_tasks(self) -> None:
        """Ends every task and forgets what is in flight; completions of it are unexpected from now on."""
        tasks, self._tasks = self._tasks, set()
        self._free_tags.extend(self._requests)
        self._requests.clear()
        self._queued.clear()
        for task in tasks:
            # One that is running now refuses to be closed, and ends at its next wait.
            with suppress(ValueError):
                task.close()

    def _advance(self, task: Task) -> None:
        for transfer in task:
            if task not in self._tasks:
                task.close()
                return
            if transfer.waiting:
                transfer.resume = partial(self._advance, task)
                return
        self._tasks.discard(task)

    # --- DMA, as an honest function does it: bus master enable, max payload, max read request

    def dma_read(self, address: int, length: int) -> Generator[Transfer, None, bytes | None]:
        """Reads `length` bytes; None where bus mastering is off or a part was refused or not answered."""
        if not self._bus_master:
            self.counters["no bus master"] += 1
            return None
        transfer = self.issue_read(self.requester, address, length, self.max_read)
        yield transfer
        return transfer.data

    def dma_write(self, address: int, data: bytes) -> bool:
        """Writes `data`, posted: nobody tells whether it arrived. False where bus mastering is off."""
        if not self._bus_master:
            self.counters["no bus master"] += 1
            return False
        self.issue_write(self.requester, address, data, self.max_payload)
        return True

    def msi(self) -> bool:
        """Sends the function's message signalled interrupt; False where it is not enabled."""
        if self._message is None or not self._bus_master:
            self.counters["no interrupt"] += 1
            return False
        address, data = self._message
        self.send(MemWrite(self.requester, AddressType.UNTRANSLATED, address, 0xF, 0, data))
        return True

    # --- requests by any name and size

    def issue_read(self, requester: int, address: int, length: int, limit: int) -> Transfer:
        """Sends reads of at most `limit` bytes each; the transfer is to be waited for."""
        transfer = Transfer(length)
        for piece in fragments(address, length, limit):
            build = partial(_read_request, requester, piece)
            lead = (piece.first_be & -piece.first_be).bit_length() - 1
            self.issue(transfer, build, piece.dwords, piece.offset, piece.length, lead)
        return self.seal(transfer)

    def issue_write(self, requester: int, address: int, data: bytes, limit: int) -> None:
        """Sends posted writes of at most `limit` bytes each."""
        for piece in fragments(address, len(data), limit):
            part = data[piece.offset : piece.offset + piece.length]
            lead = (piece.first_be & -piece.first_be).bit_length() - 1
            padded = part if len(part) == piece.dwords * 4 else (bytes(lead) + part).ljust(piece.dwords * 4, b"\0")
            self.send(
                MemWrite(requester, AddressType.UNTRANSLATED, piece.address, piece.first_be, piece.last_be, padded)
            )

    def issue_atomic(self, requester: int, kind: AtomicKind, address: int, data: bytes) -> Transfer:
        """Sends an AtomicOp; the transfer's data is the old value."""
        size = len(data) // 2 if kind is AtomicKind.COMPARE_SWAP else len(data)
        transfer = Transfer(size)

        def build(tag: int) -> tlp.Upstream:
            return Atomic(requester, tag, AddressType.UNTRANSLATED, kind, address, data)

        self.issue(transfer, build, (size + 3) // 4, 0, size, 0)
        return self.seal(transfer)

    def issue(
        self,
        transfer: Transfer,
        build: Callable[[int], tlp.Upstream],
        dwords: int,
        offset: int,
        length: int,
        lead: int,
    ) -> None:
        """Sends one non-posted request of a transfer, or queues it until a tag is free.

        Its answer of `dwords` dwords fills `length` bytes of the transfer from `offset`, after `lead` bytes.
        """
        transfer.waiting += 1
        request = _Request(transfer, offset, length, lead, max(length, 1), dwords)
        if self._free_tags:
            self._dispatch(request, build)
        else:
            self._queued.append((request, build))

    def seal(self, transfer: Transfer) -> Transfer:
        """All of its requests are issued: a transfer that waits for none is complete."""
        if not transfer.waiting:
            self._finish(transfer)
        return transfer

    def _dispatch(self, request: _Request, build: Callable[[int], tlp.Upstream]) -> None:
        tag = self._free_tags.popleft()
        self._requests[tag] = request
        self.send(build(tag))

    def _completion(self, completion: Completion) -> None:
        tag, status, remaining, data = completion
        request = self._requests.get(tag)
        if request is None:
            self.counters["unexpected completion"] += 1
            return
        if status != CompletionStatus.SUCCESS:
            del self._requests[tag]
            request.transfer.status = CompletionStatus(status)
            self._retire(tag, request, None)
            return
        received = request.data + data if request.data else data
        if remaining != request.remaining or not data or len(received) > request.dwords * 4:
            self.counters["malformed completion"] += 1
            return
        if len(received) == request.dwords * 4:
            del self._requests[tag]
            self._retire(tag, request, received)
            return
        request.remaining -= len(data) - (0 if request.data else request.lead)
        request.data = received

    def _retire(self, tag: int, request: _Request, data: bytes | None) -> None:
        """A request is over. Tags go round, so that a late completion meets no newer request."""
        transfer = request.transfer
        if data is None:
            transfer.status = transfer.status or CompletionStatus.UNSUPPORTED_REQUEST
        elif request.length == len(data) == len(transfer.buffer):
            transfer.data = data
        else:
            transfer.buffer[request.offset : request.offset + request.length] = data[
                request.lead : request.lead + request.length
            ]
        transfer.waiting -= 1
        self._free_tags.append(tag)
        if self._queued:
            self._dispatch(*self._queued.popleft())
        if not transfer.waiting:
            self._finish(transfer)

    def _finish(self, transfer: Transfer) -> None:
        if transfer.status:
            transfer.data = None
        elif transfer.data is None:
            transfer.data = bytes(transfer.buffer)
        resume, transfer.resume = transfer.resume, None
        if resume is not None:
            resume()

    # --- registers

    def _mmio_read(self, tag: int, address: int, length: int) -> None:
        place = self._decode(address, length)
        value = self.bar_read(*place, length) if place else None
        if value is None:
            self._refuse(tag)
        else:
            data = (value & (1 << 8 * length) - 1).to_bytes(length, "little")
            self.send(Completion(tag, CompletionStatus.SUCCESS, length, data))

    def _mmio_write(self, address: int, data: bytes) -> None:
        place = self._decode(address, len(data))
        if place:
            self.bar_write(*place, len(data), int.from_bytes(data, "little"))
        else:
            self.counters["unsupported"] += 1

    def _decode(self, address: int, size: int) -> tuple[int, int] | None:
        """(BAR, offset) of an access; None where memory decoding is off or no BAR holds it."""
        if size not in (1, 2, 4, 8) or address % size:
            return None
        for first, last, index in self._bar_ranges:
            if first <= address <= last:
                return index, address - first
        return None

    def _config_read(self, tag: int, devfn: int, offset: int, length: int) -> None:
        if pci.bdf_function(devfn) or not _config_access(offset, length):
            self._refuse(tag)
        else:
            data = self.config.read(offset, length).to_bytes(length, "little")
            self.send(Completion(tag, CompletionStatus.SUCCESS, length, data))

    def _config_write(self, tag: int, bus: int, devfn: int, offset: int, data: bytes) -> None:
        if pci.bdf_function(devfn) or not _config_access(offset, len(data)):
            self._refuse(tag)
            return
        # A function learns its ID from each type 0 configuration write (section 2.2.6.2).
        self.requester = bus << 8 | devfn
        value = int.from_bytes(data, "little")
        self.config.write(offset, len(data), value)
        if self._starts_flr(offset, len(data), value):
            self._function_level_reset()
        self._latch()
        self.send(Completion(tag, CompletionStatus.SUCCESS, 0, b""))

    def _refuse(self, tag: int) -> None:
        self.counters["unsupported"] += 1
        self.send(Completion(tag, CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))

    def _starts_flr(self, offset: int, size: int, value: int) -> bool:
        """Initiate FLR is bit 15 of device control: it reads as zero, so the write itself is looked at."""
        if self._express is None:
            return False
        high = self._express + pci.EXP_DEVICE_CONTROL + 1
        return offset <= high < offset + size and bool(value >> (high - offset) * 8 & pci.DEVCTL_FLR >> 8)

    def _function_level_reset(self) -> None:
        """Everything but the bus number and the max payload size (section 6.6.2)."""
        assert self._express is not None
        control = self._express + pci.EXP_DEVICE_CONTROL
        payload = self.config.read(control, 2) & pci.DEVCTL_MAX_PAYLOAD_MASK
        self._reset()
        self.config.set(control, 2, self.config.read(control, 2) & ~pci.DEVCTL_MAX_PAYLOAD_MASK | payload)
        self.counters["function level reset"] += 1

    def _reset(self) -> None:
        self.cancel_tasks()
        self.config.reset()
        self._latch()
        self.device_reset()

    def _latch(self) -> None:
        """Keeps what each transaction needs of the registers at hand."""
        read = self.config.read
        command = read(pci.COMMAND, 2)
        awake = self._power is None or not read(self._power + pci.PM_CONTROL, 2) & pci.PM_STATE_MASK
        self._bus_master = bool(command & pci.Command.BUS_MASTER) and awake
        decodes = bool(command & pci.Command.MEMORY) and awake
        self._bar_ranges = [
            (address, address + layout.size - 1, layout.index)
            for layout in self.config.bars.values()
            if decodes and (address := self.config.bar_address(layout.index))
        ]
        control = 0 if self._express is None else read(self._express + pci.EXP_DEVICE_CONTROL, 2)
        payload = (control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT
        self.max_payload = pci.payload_size(payload)
        self.max_read = pci.payload_size((control & pci.DEVCTL_MAX_READ_MASK) >> pci.DEVCTL_MAX_READ_SHIFT)
        self._message = self._read_message()

    def _read_message(self) -> tuple[int, bytes] | None:
        if self._msi is None or not self.config.read(self._msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE:
            return None
        address = self.config.read(self._msi + pci.MSI_ADDRESS, 8)
        data = self.config.read(self._msi + pci.MSI_DATA_64, 2)
        return address, data.to_bytes(4, "little")


def _read_request(requester: int, piece: Fragment, tag: int) -> tlp.Upstream:
    untranslated = AddressType.UNTRANSLATED
    return MemRead(requester, tag, untranslated, piece.address, piece.dwords, piece.first_be, piece.last_be)


def _config_access(offset: int, size: int) -> bool:
    return size in (1, 2, 4) and offset % size == 0 and 0 <= offset <= pci.CONFIG_SIZE - size
