"""What a device's transactions do: translated, to memory; or as interrupts to a processor.

PCI Express Base 5.0 chapter 2; translation and the interrupt range as VT-d chapter 3 has them. This is the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.pci.fragment import byte_count, enabled_ranges, well_formed
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.pci.root_port import RootPort
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.ats import ENTRY_DWORDS, ENTRY_SIZE, MAX_ENTRIES, NO_WRITE, TranslationEntry
from viommu_actors.spec.tlp import (
    AddressType,
    Atomic,
    AtomicKind,
    Completion,
    CompletionStatus,
    ConfigRequest,
    IntxMessage,
    InvalidateCompletion,
    MemRead,
    MemWrite,
)
from viommu_actors.spec.vtd import PAGE_MASK, Access, FaultReason

_ALL_BYTES = 0xF
#: A plain number: an enum member is slower to compare with.
_TRANSLATION_REQUEST = int(AddressType.TRANSLATION_REQUEST)
#: Address bits of a translation request below the page number, but for NW.
_TRANSLATION_RESERVED = PAGE_MASK & ~NO_WRITE
#: As plain names: a member of an enum's class is found slowly.
_SUCCESS = CompletionStatus.SUCCESS
_OK = Outcome.OK
_READ, _WRITE = Access.READ, Access.WRITE
#: The megabyte of the interrupt range.
_INTERRUPTS = tlp.INTERRUPT_FIRST >> 20
_new = tuple.__new__
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
#: (requester, address, data) of an interrupt request; what blocked it, or None where it was delivered.
Interrupt = Callable[[int, int, int], FaultReason | None]


class TranslationServices(Protocol):
    """Address translation services of a remapping unit (section 10.1)."""

    @property
    def serves(self) -> bool:
        """Whether it answers at all now."""
        ...

    @property
    def completed(self) -> Callable[[int, int, int], bool]:
        """completed(source, itags, copies): takes an invalidation completion; whether it was owed."""
        ...

    def translate(self, requester: int, address: int, no_write: bool) -> TranslationEntry | CompletionStatus: ...

    def admit(self, requester: int, address: int, access: Access) -> FaultReason | None:
        """Why a request with a translated address may not pass, recorded; None where it may."""
        ...


class Upstream:
    """Carries out what devices send. `ports` are all root ports of the complex."""

    def __init__(
        self,
        memory: Memory,
        translate: Translate,
        interrupt: Interrupt,
        ports: Sequence[RootPort],
        ats: TranslationServices | None,
    ) -> None:
        self._memory = memory
        self._translate = translate
        self._interrupt = interrupt
        self._ports = ports
        self._ats = ats

    def receive(self, port: Link, message: object) -> None:
        """Carries out one message of the device behind `port`. Whatever it is, this returns."""
        if isinstance(message, MemRead):
            self._read(port, message)
        elif isinstance(message, MemWrite):
            self._write(port, message)
        elif isinstance(message, Completion):
            port.complete(message)
        elif isinstance(message, Atomic):
            self._atomic(port, message)
        elif isinstance(message, InvalidateCompletion):
            self._invalidated(port, message)
        elif isinstance(message, ConfigRequest):
            self._config(port, message)
        elif isinstance(message, IntxMessage):
            port.record("intx", 0, message.pin, 0, Outcome.OK)
            port.set_wire(*message)
        else:
            port.record(type(message).__name__, 0, 0, 0, Outcome.UNSUPPORTED)

    def _read(self, port: Link, request: MemRead) -> None:
        requester, tag, at, address, dwords, first_be, last_be = request
        if at == _TRANSLATION_REQUEST:
            self._translation(port, request)
            return
        length = dwords * tlp.DWORD
        # Whole dwords, several of them, within a page: as nearly all are, and nothing to be calculated.
        within = (address & tlp.BOUNDARY - 1) + length <= tlp.BOUNDARY
        plain = within and not address & 3 and dwords > 1 and first_be == last_be == _ALL_BYTES
        if not plain and not well_formed(address, dwords, first_be, last_be):
            port.record("read", requester, address, length, Outcome.MALFORMED)
            return
        physical = self._admit(port, "read", requester, at, address, length, _READ)
        if not isinstance(physical, int):
            self._refuse(port, requester, tag, physical)
            return
        # A zero-length read moves nothing: it asked whether the address translates (section 2.2.5).
        try:
            data = self._memory.read(physical, length) if first_be else bytes(length)
        except Unclaimed:
            outcome = self._unclaimed(port, "read", requester, address, length, physical)
            self._refuse(port, requester, tag, outcome)
            return
        if port.log is None:  # as a rule; all the arguments would be for nothing
            port.counters["read"] += 1
        else:
            port.record("read", requester, address, length, _OK, physical)
        remaining = length if plain else byte_count(dwords, first_be, last_be)
        limit = port.max_payload
        if length <= limit:
            self.complete(port, requester, _new(Completion, (tag, _SUCCESS, remaining, data)))
            return
        # Completions of one request end at multiples of the limit, which is one of the read boundary's too.
        skipped = (first_be & -first_be).bit_length() - 1
        start = 0
        while start < length:
            stop = min(length, start + limit - (address + start) % limit)
            part = Completion(tag, CompletionStatus.SUCCESS, remaining, data[start:stop])
            self.complete(port, requester, part)
            remaining -= stop - start - skipped
            start, skipped = stop, 0

    def _write(self, port: Link, request: MemWrite) -> None:
        requester, at, address, first_be, last_be, data = request
        length = len(data)
        dwords = length // tlp.DWORD
        whole = dwords * tlp.DWORD == length
        if not whole or length > port.max_payload or not well_formed(address, dwords, first_be, last_be):
            port.record("write", requester, address, length, Outcome.MALFORMED)
            return
        if address >> 20 == _INTERRUPTS:
            self._message(port, request)
            return
        physical = self._admit(port, "write", requester, at, address, length, _WRITE)
        if not isinstance(physical, int):
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
        port.record("write", requester, address, length, _OK, physical)

    def _message(self, port: Link, request: MemWrite) -> None:
        """A write to the interrupt range: one dword with every byte enabled is an interrupt, nothing else is."""
        requester, at, address, first_be, _, data = request
        outcome = port.refusal(requester, at)
        # A translated address is one of memory: it raises no interrupt (section 10.1.1).
        if outcome is None and (at or len(data) != tlp.DWORD or first_be != _ALL_BYTES):
            outcome = Outcome.INTERRUPT_RANGE
        if outcome is not None:
            port.record("msi", requester, address, len(data), outcome)
            return
        reason = self._interrupt(requester, address, int.from_bytes(data, "little"))
        outcome = Outcome.OK if reason is None else Outcome.FAULT
        port.record("msi", requester, address, len(data), outcome, reason=reason)

    def _atomic(self, port: Link, request: Atomic) -> None:
        requester, tag, at, kind, address, data = request
        compares = kind == AtomicKind.COMPARE_SWAP
        size = len(data) // 2 if compares else len(data)
        sizes = _ATOMIC_SIZES[AtomicKind(kind)] if kind in set(AtomicKind) else ()
        if size not in sizes or address % size or len(data) != size * (1 + compares):
            port.record("atomic", requester, address, len(data), Outcome.MALFORMED)
            return
        physical = self._admit(port, "atomic", requester, at, address, size, Access.BOTH)
        if not isinstance(physical, int):
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
        self.complete(port, requester, Completion(tag, CompletionStatus.SUCCESS, size, old))

    def _config(self, port: Link, request: ConfigRequest) -> None:
        """Configuration requests go down only: one that comes from below is for nobody (section 7.3.3)."""
        requester, tag, bus, devfn, offset, data = request
        kind = "config write" if data else "config read"
        register = pci.ecam_offset(bus << 8 | devfn, offset)
        port.record(kind, requester, register, len(data), Outcome.UNSUPPORTED)
        self._refuse(port, requester, tag, Outcome.UNSUPPORTED)

    def _admit(
        self, port: Link, kind: str, requester: int, at: int, address: int, length: int, access: Access
    ) -> int | Outcome:
        """The physical address of a well-formed memory request, or what stopped it (recorded)."""
        if at or not port.first_passing <= requester <= port.last_passing or address >> 20 == _INTERRUPTS:
            outcome = port.refusal(requester, at)
            if outcome is None and address >> 20 == _INTERRUPTS:
                outcome = Outcome.INTERRUPT_RANGE
            if outcome is not None:
                port.record(kind, requester, address, length, outcome)
                return outcome
            if at:
                return self._admit_translated(port, kind, requester, at, address, length, access)
        target = self._translate(requester, address, access)
        if target.reason is not None:
            port.record(kind, requester, address, length, Outcome.FAULT, reason=target.reason)
            return Outcome.FAULT
        return target.address

    # --- address translation services

    def _admit_translated(
        self, port: Link, kind: str, requester: int, at: int, address: int, length: int, access: Access
    ) -> int | Outcome:
        """The address itself of a request that says it is translated, or what stopped it (recorded)."""
        if self._ats is None or not self._ats.serves or at != AddressType.TRANSLATED:
            port.record(kind, requester, address, length, Outcome.ADDRESS_TYPE)
            return Outcome.ADDRESS_TYPE
        reason = self._ats.admit(requester, address, access)
        if reason is not None:
            port.record(kind, requester, address, length, Outcome.FAULT, reason=reason)
            return Outcome.FAULT
        return address

    def _translation(self, port: Link, request: MemRead) -> None:
        """A translation request (section 10.2.2) is answered with one entry, however many it asks for."""
        requester, tag, _, address, dwords, first_be, last_be = request
        length = dwords * tlp.DWORD
        ats = self._ats
        outcome = port.refusal(requester, _TRANSLATION_REQUEST)
        if outcome is None and (ats is None or not ats.serves):
            outcome = Outcome.ADDRESS_TYPE
        if outcome is not None or ats is None:
            outcome = outcome or Outcome.ADDRESS_TYPE
            port.record("translation", requester, address, length, outcome)
            self._refuse(port, requester, tag, outcome)
            return
        whole = first_be == last_be == _ALL_BYTES and not dwords % ENTRY_DWORDS
        if not whole or dwords > MAX_ENTRIES * ENTRY_DWORDS or address & _TRANSLATION_RESERVED:
            port.record("translation", requester, address, length, Outcome.MALFORMED)
            return
        answer = ats.translate(requester, address, bool(address & NO_WRITE))
        if isinstance(answer, CompletionStatus):
            port.record("translation", requester, address, length, Outcome.FAULT)
            self.complete(port, requester, Completion(tag, answer, 0, b""))
            return
        port.record("translation", requester, address, length, Outcome.OK)
        self.complete(port, requester, Completion(tag, _SUCCESS, ENTRY_SIZE, answer.encode()))

    def _invalidated(self, port: Link, message: InvalidateCompletion) -> None:
        """A message by ID: bus mastering has no part in it (section 10.3.3)."""
        source, _, copies, itags = message
        if port.refusal(source, AddressType.UNTRANSLATED) is Outcome.ACS:
            outcome = Outcome.ACS
        elif self._ats is None:
            outcome = Outcome.UNSUPPORTED
        else:
            owed = self._ats.completed(source, itags, copies)
            outcome = Outcome.OK if owed else Outcome.UNEXPECTED_COMPLETION
        port.record("invalidation completion", source, 0, 0, outcome)

    # --- what comes of it

    def _unclaimed(
        self, port: Link, kind: str, requester: int, address: int, length: int, physical: int
    ) -> Outcome:
        """No memory answers: it is another device's BAR, which is not reached from here, or nothing."""
        peer = any(other.forwards_address(physical) for other in self._ports)
        outcome = Outcome.PEER if peer else Outcome.UNCLAIMED
        port.record(kind, requester, address, length, outcome, physical)
        return outcome

    def _refuse(self, port: Link, requester: int, tag: int, outcome: Outcome) -> None:
        self.complete(port, requester, Completion(tag, outcome.status, 0, b""))

    def complete(self, port: Link, requester: int, completion: Completion) -> None:
        """Routes a completion for what `port` sent by ID: that of a forged bus number goes to the port of that bus, or
        nowhere."""
        target: Link | None = port
        if not port.first_passing <= requester <= port.last_passing and not port.forwards_bus(requester >> 8):
            found = next((other for other in self._ports if other.forwards_bus(requester >> 8)), None)
            target = None if found is None else found.requester_of(requester)
        if target is None:
            port.counters["completion nowhere"] += 1
        else:
            target.post(completion)


def _atomic_result(kind: AtomicKind, old: bytes, operand: bytes) -> bytes:
    size = len(old)
    if kind is AtomicKind.SWAP:
        return operand
    if kind is AtomicKind.COMPARE_SWAP:
        return operand[size:] if old == operand[:size] else old
    total = int.from_bytes(old, "little") + int.from_bytes(operand, "little")
    return (total % (1 << 8 * size)).to_bytes(size, "little")
