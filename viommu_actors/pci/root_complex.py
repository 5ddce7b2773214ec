"""The root complex: devices' transactions to memory and interrupts, the kernel's to devices.

PCI Express Base 5.0 chapter 2; translation and the interrupt range as VT-d chapter 3 has them.
Nothing here waits: a request to a device is answered by calling what came with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.pci import config_space
from viommu_actors.pci.fragment import byte_count, enabled_ranges, well_formed
from viommu_actors.pci.root_port import Outcome, Outstanding, PortConfig, PortLog, RootPort
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.tlp import Atomic, AtomicKind, Completion, CompletionStatus, MemRead, MemWrite
from viommu_actors.spec.vtd import Access

_ALL_BYTES = 0xF
_ATOMIC_SIZES = {
    AtomicKind.FETCH_ADD: (4, 8),
    AtomicKind.SWAP: (4, 8),
    AtomicKind.COMPARE_SWAP: (4, 8, 16),
}


class Translated(Protocol):
    """The answer of a remapping unit: a physical address, or the reason of the fault it has recorded."""

    @property
    def address(self) -> int: ...

    @property
    def reason(self) -> int | None: ...


Translate = Callable[[int, int, Access], Translated]
Interrupt = Callable[[int, int, int], None]


class RootComplex:
    """Bus 0 with its host bridge and root ports, and the way from each port to memory.

    `translate(requester, address, access)` is asked for each memory transaction, `interrupt(requester,
    address, data)` gets each message signalled interrupt.
    """

    def __init__(
        self, memory: Memory, translate: Translate, interrupt: Interrupt, ports: Sequence[PortConfig]
    ) -> None:
        self.ports = {config.slot: RootPort(config) for config in ports}
        self._memory = memory
        self._translate = translate
        self._interrupt = interrupt
        self._host_bridge = config_space.endpoint_header(
            pci.VENDOR_REDHAT, pci.DEVICE_HOST_BRIDGE, pci.ClassCode.HOST_BRIDGE
        )

    # --- links

    def attach(self, slot: int, send: Callable[[tlp.Downstream], bool]) -> None:
        """A device stands in the slot; `send` returns False where its link is full or gone."""
        port = self.ports[slot]
        port.send = send
        port.set_presence(True)

    def detach(self, slot: int) -> None:
        """The device is gone; what waits for it is answered all-ones."""
        port = self.ports[slot]
        port.send = None
        port.set_presence(False)
        port.abandon()

    def hot_reset(self, slot: int) -> None:
        """Resets the device of the slot, as bridge control's secondary bus reset does."""
        self.ports[slot].post(tlp.HotReset(0))

    @property
    def outstanding(self) -> list[tuple[int, int]]:
        """(slot, tag) of each request that waits for a device."""
        return [(slot, tag) for slot, port in self.ports.items() for tag in port.outstanding]

    def expire(self, slot: int, tag: int) -> None:
        """Completion timeout of one request: all-ones."""
        self.ports[slot].expire(tag)

    def start_log(self, slot: int, capacity: int = 4096) -> PortLog:
        """Records what the slot's device does from here on; the log is the caller's to read."""
        log = PortLog(capacity)
        self.ports[slot].log = log
        return log

    def stop_log(self, slot: int) -> None:
        self.ports[slot].log = None

    # --- from a device

    def receive(self, slot: int, message: object) -> None:
        """Carries out what the device in `slot` sent. Whatever it sent, this returns."""
        port = self.ports[slot]
        if isinstance(message, MemRead):
            self._read(port, message)
        elif isinstance(message, MemWrite):
            self._write(port, message)
        elif isinstance(message, Completion):
            self._completion(port, message)
        elif isinstance(message, Atomic):
            self._atomic(port, message)
        else:
            port.record(type(message).__name__, 0, 0, 0, Outcome.UNSUPPORTED)

    def _read(self, port: RootPort, request: MemRead) -> None:
        requester, tag, at, address, dwords, first_be, last_be = request
        length = dwords * tlp.DWORD
        if not well_formed(address, dwords, first_be, last_be):
            port.record("read", requester, address, length, Outcome.MALFORMED)
            return
        physical = self._admit(port, "read", requester, at, address, length, Access.READ)
        if isinstance(physical, Outcome):
            self._refuse(port, requester, tag, physical)
            return
        # A zero-length read moves nothing: it asked whether the address translates (section 2.2.5).
        try:
            data = self._memory.read(physical, length) if first_be else bytes(length)
        except Unclaimed:
            outcome = self._unclaimed(port, "read", requester, address, length, physical)
            self._refuse(port, requester, tag, outcome)
            return
        port.record("read", requester, address, length, Outcome.OK, physical)
        remaining = byte_count(dwords, first_be, last_be)
        limit = port.max_payload
        if length <= limit:
            self._complete(port, requester, Completion(tag, CompletionStatus.SUCCESS, remaining, data))
            return
        # Completions of one request end at multiples of the limit, which is one of the read boundary's too.
        skipped = (first_be & -first_be).bit_length() - 1
        start = 0
        while start < length:
            stop = min(length, start + limit - (address + start) % limit)
            part = Completion(tag, CompletionStatus.SUCCESS, remaining, data[start:stop])
            self._complete(port, requester, part)
            remaining -= stop - start - skipped
            start, skipped = stop, 0

    def _write(self, port: RootPort, request: MemWrite) -> None:
        requester, at, address, first_be, last_be, data = request
        length = len(data)
        dwords = length // tlp.DWORD
        whole = dwords * tlp.DWORD == length
        if not whole or length > port.max_payload or not well_formed(address, dwords, first_be, last_be):
            port.record("write", requester, address, length, Outcome.MALFORMED)
            return
        if address >> 20 == tlp.INTERRUPT_FIRST >> 20:
            self._message(port, request)
            return
        physical = self._admit(port, "write", requester, at, address, length, Access.WRITE)
        if isinstance(physical, Outcome):
            return
        try:
            if first_be == _ALL_BYTES and (last_be == _ALL_BYTES or dwords == 1):
                self._memory.write(physical, data)
            else:
                for start, stop in enabled_ranges(dwords, first_be, last_be):
                    self._memory.write(physical + start, data[start:stop])
        except Unclaimed:
            self._unclaimed(port, "write", requester, address, length, physical)
            return
        port.record("write", requester, address, length, Outcome.OK, physical)

    def _message(self, port: RootPort, request: MemWrite) -> None:
        """A write to the interrupt range: one dword with every byte enabled is an interrupt, nothing else is."""
        requester, at, address, first_be, _, data = request
        outcome = port.refusal(requester, at)
        if outcome is None and (len(data) != tlp.DWORD or first_be != _ALL_BYTES):
            outcome = Outcome.INTERRUPT_RANGE
        port.record("msi", requester, address, len(data), outcome or Outcome.OK)
        if outcome is None:
            self._interrupt(requester, address, int.from_bytes(data, "little"))

    def _atomic(self, port: RootPort, request: Atomic) -> None:
        requester, tag, at, kind, address, data = request
        compares = kind == AtomicKind.COMPARE_SWAP
        size = len(data) // 2 if compares else len(data)
        sizes = _ATOMIC_SIZES[AtomicKind(kind)] if kind in set(AtomicKind) else ()
        if size not in sizes or address % size or len(data) != size * (1 + compares):
            port.record("atomic", requester, address, len(data), Outcome.MALFORMED)
            return
        physical = self._admit(port, "atomic", requester, at, address, size, Access.BOTH)
        if isinstance(physical, Outcome):
            self._refuse(port, requester, tag, physical)
            return
        try:
            old = self._memory.read(physical, size)
            self._memory.write(physical, _atomic_result(AtomicKind(kind), old, data))
        except Unclaimed:
            outcome = self._unclaimed(port, "atomic", requester, address, size, physical)
            self._refuse(port, requester, tag, outcome)
            return
        port.record("atomic", requester, address, size, Outcome.OK, physical)
        self._complete(port, requester, Completion(tag, CompletionStatus.SUCCESS, size, old))

    def _admit(
        self, port: RootPort, kind: str, requester: int, at: int, address: int, length: int, access: Access
    ) -> int | Outcome:
        """The physical address of a well-formed memory request, or what stopped it (recorded)."""
        outcome = port.refusal(requester, at)
        if outcome is None and address >> 20 == tlp.INTERRUPT_FIRST >> 20:
            outcome = Outcome.INTERRUPT_RANGE
        if outcome is not None:
            port.record(kind, requester, address, length, outcome)
            return outcome
        target = self._translate(requester, address, access)
        if target.reason is not None:
            port.record(kind, requester, address, length, Outcome.FAULT, reason=target.reason)
            return Outcome.FAULT
        return target.address

    def _unclaimed(
        self, port: RootPort, kind: str, requester: int, address: int, length: int, physical: int
    ) -> Outcome:
        """No memory answers: it is another device's BAR, which is not reached from here, or nothing."""
        peer = any(other.forwards_address(physical) for other in self.ports.values())
        outcome = Outcome.PEER if peer else Outcome.UNCLAIMED
        port.record(kind, requester, address, length, outcome, physical)
        return outcome

    def _refuse(self, port: RootPort, requester: int, tag: int, outcome: Outcome) -> None:
        # An ACS violation is answered by completer abort (section 6.12.4), the rest is unsupported.
        acs = outcome is Outcome.ACS
        status = CompletionStatus.COMPLETER_ABORT if acs else CompletionStatus.UNSUPPORTED_REQUEST
        self._complete(port, requester, Completion(tag, status, 0, b""))

    def _complete(self, port: RootPort, requester: int, completion: Completion) -> None:
        """Completions are routed by ID: that of a forged bus number goes to the port of that bus, or nowhere."""
        target: RootPort | None = port
        if not port.forwards_bus(requester >> 8):
            target = self._port_of_bus(requester >> 8)
        if target is None:
            port.counters["completion nowhere"] += 1
        else:
            target.post(completion)

    def _completion(self, port: RootPort, completion: Completion) -> None:
        """The device's answer to a read of it; the tag is looked up among this port's requests only."""
        tag, status, remaining, data = completion
        waiting = port.outstanding.get(tag)
        if waiting is None:
            port.record("completion", 0, 0, len(data), Outcome.UNEXPECTED_COMPLETION)
            return
        success = status == CompletionStatus.SUCCESS
        if success and (len(data) != waiting.length or remaining != waiting.length):
            # Dropped, as malformed ones are: the request ends by its timeout.
            port.record("completion", 0, 0, len(data), Outcome.MALFORMED)
            return
        del port.outstanding[tag]
        port.counters["completion"] += 1
        if success:
            waiting.done(int.from_bytes(data, "little"))
        else:
            waiting.fail()

    # --- from the kernel

    def config_read(self, function: int, offset: int, size: int, done: Callable[[int], None]) -> None:
        """Configuration read of a BDF, 1, 2 or 4 bytes; all-ones where nothing answers."""
        absent = (1 << 8 * size) - 1
        if not _config_access(offset, size):
            done(absent)
        elif pci.bdf_bus(function) == 0:
            space = self._root_function(function)
            done(space.read(offset, size) if space else absent)
        elif (port := self._port_of_device(function)) is None:
            done(absent)
        else:
            bus, devfn = function >> 8, function & 0xFF
            port.request(Outstanding(size, done), lambda tag: tlp.CfgRead(tag, bus, devfn, offset, size))

    def config_write(
        self, function: int, offset: int, size: int, value: int, done: Callable[[], None]
    ) -> None:
        """Configuration write of a BDF; `done` is called once the function has taken it, or nobody has."""
        if not _config_access(offset, size):
            done()
        elif pci.bdf_bus(function) == 0:
            self._root_write(function, offset, size, value)
            done()
        elif (port := self._port_of_device(function)) is None:
            done()
        else:
            bus, devfn = function >> 8, function & 0xFF
            data = value.to_bytes(size, "little")
            waiting = Outstanding(0, lambda _: done())
            port.request(waiting, lambda tag: tlp.CfgWrite(tag, bus, devfn, offset, data))

    def mmio_read(self, address: int, size: int, done: Callable[[int], None]) -> None:
        """Read of a BAR, 1, 2, 4 or 8 bytes, naturally aligned; all-ones where nothing answers."""
        port = self._port_of_address(address, size)
        if port is None:
            done((1 << 8 * size) - 1)
        else:
            port.request(Outstanding(size, done), lambda tag: tlp.MmioRead(tag, address, size))

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Posted write of a BAR; lost where nothing answers."""
        port = self._port_of_address(address, size)
        if port is not None:
            port.post(tlp.MmioWrite(address, value.to_bytes(size, "little")))

    # --- routing

    def _root_function(self, function: int) -> config_space.ConfigSpace | None:
        if function == 0:
            return self._host_bridge
        port = self.ports.get(pci.bdf_device(function))
        return port.config if port is not None and port.bdf == function else None

    def _root_write(self, function: int, offset: int, size: int, value: int) -> None:
        port = self.ports.get(pci.bdf_device(function))
        if function == 0:
            self._host_bridge.write(offset, size, value)
        elif port is not None and port.bdf == function and port.config_write(offset, size, value):
            self.hot_reset(port.slot)

    def _port_of_bus(self, bus: int) -> RootPort | None:
        return next((port for port in self.ports.values() if port.forwards_bus(bus)), None)

    def _port_of_device(self, function: int) -> RootPort | None:
        """A link leads to device 0 of its bus only (section 7.3.1)."""
        port = self._port_of_bus(pci.bdf_bus(function))
        here = port is not None and port.first_bus == pci.bdf_bus(function) and pci.bdf_device(function) == 0
        return port if here else None

    def _port_of_address(self, address: int, size: int) -> RootPort | None:
        if size not in (1, 2, 4, 8) or address % size:
            return None
        return next((port for port in self.ports.values() if port.forwards_address(address)), None)


def _config_access(offset: int, size: int) -> bool:
    return size in (1, 2, 4) and offset % size == 0 and 0 <= offset <= pci.CONFIG_SIZE - size


def _atomic_result(kind: AtomicKind, old: bytes, operand: bytes) -> bytes:
    size = len(old)
    if kind is AtomicKind.SWAP:
        return operand
    if kind is AtomicKind.COMPARE_SWAP:
        return operand[size:] if old == operand[:size] else old
    total = int.from_bytes(old, "little") + int.from_bytes(operand, "little")
    return (total % (1 << 8 * size)).to_bytes(size, "little")
