"""An image of a running guest's VT-d unit: registers and the pages that its tables are made of, looked at offline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from viommu_actors.memory import Unclaimed
from viommu_actors.replay.memory import SparseMemory
from viommu_actors.replay.transcript import Hex
from viommu_actors.spec.vtd import (
    ENTRY_SIZE,
    PAGE_SIZE,
    Access,
    Capability,
    Command,
    ExtendedCapability,
    FaultReason,
    Irta,
    Reg,
    RootEntry,
    Status,
)
from viommu_actors.spec.vtd_interrupts import INTERRUPT_ENTRY_SIZE, InterruptEntry, apic_destination
from viommu_actors.vtd import Context, RemappingUnit, TableFault, UnitConfig, is_interrupt, leaves, walk

#: Leaves of one context that are looked at: 4 GiB in 4 KiB pages.
LEAF_LIMIT: Final = 1 << 20
_BUSES: Final = 256
_FUNCTIONS: Final = 256
_LAST_ADDRESS: Final = (1 << 64) - 1


class ImageError(Exception):
    """The image does not hold together; the text says what is wrong."""


class Register(Struct):
    offset: Hex
    size: Annotated[int, Meta(ge=4, le=8, multiple_of=4)]
    value: Hex


class Page(Struct):
    """A page of tables: at `offset` of the dump, or all zero."""

    gpa: Hex
    offset: Annotated[int, Meta(ge=0)] = 0
    zero: bool = False


class State(Struct):
    """`state.json`."""

    registers: dict[str, Register]
    pages: Annotated[list[Page], Meta(max_length=1 << 20)]

    def value(self, name: str) -> int:
        """Raises ImageError where the register is missing."""
        try:
            return int(self.registers[name].value, 16)
        except KeyError:
            raise ImageError(f"registers: {name} is missing") from None


def read_state(text: bytes) -> State:
    """Raises ImageError."""
    try:
        return msgspec.json.decode(text, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ImageError(str(error)) from None


class MappedRange(NamedTuple):
    """Neighbouring pages that lead to neighbouring memory with the same permissions."""

    iova: int
    address: int
    size: int
    access: Access
    pages: tuple[int, ...]
    """How many of 4 KiB, 2 MiB and 1 GiB."""

    @property
    def last(self) -> int:
        return self.iova + self.size - 1


class Answer(NamedTuple):
    """What a request meets: a page of `level` with `access`, or with a `reason` a fault. Level 0: no table."""

    address: int
    level: int
    access: Access
    reason: FaultReason | None


class Image:
    """A unit as it was, over the pages that were kept."""

    def __init__(self, state: State, dump: bytes) -> None:
        """Raises ImageError."""
        self.state = state
        addresses = sorted({int(page.gpa, 16) for page in state.pages})
        if any(address % PAGE_SIZE for address in addresses):
            raise ImageError("pages: an address is not that of a page")
        self.memory = SparseMemory(_runs(addresses))
        for page in state.pages:
            if not page.zero:
                data = dump[page.offset : page.offset + PAGE_SIZE]
                if len(data) != PAGE_SIZE:
                    raise ImageError(f"pages: {page.gpa} is beyond the end of the dump")
                self.memory.write(int(page.gpa, 16), data)
        self.unit = self.new_unit(self.memory)
        for name in ("RTADDR", "IRTA"):
            self.unit.write(getattr(Reg, name), 8, state.value(name))
        status = state.value("GSTS")
        for bit, command in (
            (Status.RTPS, Command.SRTP),
            (Status.IRTPS, Command.SIRTP),
            (Status.IRES, Command.IRE),
            (Status.CFIS, Command.CFI),
            (Status.TES, Command.TE),
        ):
            if status & bit:
                levels = self.unit.read(Reg.GSTS, 4) & (Status.TES | Status.IRES | Status.CFIS)
                self.unit.write(Reg.GCMD, 4, levels | command)

    def new_unit(self, memory: SparseMemory) -> RemappingUnit:
        """A reset unit with the capabilities of the recorded one."""
        capability = Capability.decode(self.state.value("CAP"))
        extended = ExtendedCapability.decode(self.state.value("ECAP"))
        try:
            config = UnitConfig(
                aw_bits=capability.address_width,
                caching_mode=capability.caching_mode,
                pass_through=extended.pass_through,
                intremap=extended.interrupt_remapping,
                eim=extended.extended_interrupt_mode,
                device_iotlb=extended.device_iotlb,
                snoop_control=extended.snoop_control,
                dma_drain=capability.drain_write,
                dma_translation=bool(capability.widths),
            )
        except ValueError as error:
            raise ImageError(f"registers: CAP and ECAP: {error}") from None
        return RemappingUnit(config, memory, lambda address, data: None)

    def contexts(self) -> Iterator[tuple[int, Context | FaultReason]]:
        """Requesters whose context entry is present, ascending; one that is invalid with the fault that it gives."""
        for requester in self._present():
            try:
                yield requester, self.unit.context(requester)
            except TableFault as fault:
                if fault.reason != FaultReason.CONTEXT_NOT_PRESENT:
                    yield requester, fault.reason

    def _present(self) -> Iterator[int]:
        """Requesters on buses whose root entry is present and leads to a table in the image."""
        root = self.state.value("RTADDR") & -PAGE_SIZE
        for bus in range(_BUSES):
            try:
                address = root + bus * ENTRY_SIZE
                entry = RootEntry.decode(self.memory.read_u64(address), self.memory.read_u64(address + 8))
            except Unclaimed:
                return
            if entry.present and self.memory.claims(entry.context_table, PAGE_SIZE):
                yield from range(bus << 8, (bus << 8) + _FUNCTIONS)

    def ranges(self, context: Context) -> Iterator[MappedRange]:
        """What it maps, ascending, in as few ranges as there are."""
        current: MappedRange | None = None
        for number, leaf in enumerate(leaves(self.memory, context, 0, _LAST_ADDRESS, self.unit.config, holes=False)):
            if number >= LEAF_LIMIT:
                break
            if not leaf.access:
                continue
            kind = [0, 0, 0]
            kind[(leaf.shift - 12) // 9] = 1
            if current is not None and (
                current.iova + current.size,
                current.address + current.size,
                current.access,
            ) == (leaf.iova, leaf.address, leaf.access):
                pages = tuple(a + b for a, b in zip(current.pages, kind, strict=True))
                current = current._replace(size=current.size + leaf.size, pages=pages)
                continue
            if current is not None:
                yield current
            current = MappedRange(leaf.iova, leaf.address, leaf.size, leaf.access, tuple(kind))
        if current is not None:
            yield current

    def translate(self, requester: int, address: int, access: Access) -> Answer:
        """As the unit would answer now, with the page that says so."""
        if not self.unit.translation_enabled or is_interrupt(address):
            return Answer(address, 0, Access.BOTH, None)
        try:
            context = self.unit.context(requester)
            if context.pass_through:
                reason = FaultReason.ADDRESS_BEYOND_WIDTH if address >> self.unit.config.aw_bits else None
                return Answer(address, 0, Access.BOTH, reason)
            leaf = walk(self.memory, context, address, access, self.unit.config)
        except TableFault as fault:
            return Answer(address, 0, Access.NONE, fault.reason)
        return Answer(leaf.address + address - leaf.iova, (leaf.shift - 12) // 9 + 1, leaf.access, None)

    def interrupt_entries(self) -> Iterator[tuple[int, InterruptEntry]]:
        """The present entries of the interrupt remapping table, with their numbers; DST decoded."""
        value = self.state.value("IRTA")
        table, extended = value & Irta.BASE, bool(value & Irta.EIME)
        for number in range(2 << (value & Irta.SIZE)):
            try:
                address = table + number * INTERRUPT_ENTRY_SIZE
                entry = InterruptEntry.decode(self.memory.read_u64(address), self.memory.read_u64(address + 8))
            except Unclaimed:
                continue
            if entry.present:
                yield number, entry._replace(destination=apic_destination(entry.destination, extended))


def _runs(pages: list[int]) -> list[tuple[int, int]]:
    """Page addresses, ascending, as half-open ranges."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + PAGE_SIZE)
        else:
            runs.append((page, page + PAGE_SIZE))
    return runs
