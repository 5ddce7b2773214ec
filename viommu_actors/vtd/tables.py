"""Reading the translation tables out of memory: pure functions, nothing cached, nothing recorded.

Order of checks as in sections 3.4 and 3.6 of the VT-d specification; where it leaves the order open, as QEMU has it:
permission before reserved bits, an unreadable top-level table as an invalid context.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count as count_from
from struct import unpack
from typing import Final, NamedTuple

from viommu_actors.memory import Memory, Unclaimed
from viommu_actors.spec.vtd import (
    ENTRY_SIZE,
    INTERRUPT_FIRST,
    INTERRUPT_LAST,
    LARGEST_LEAF_LEVEL,
    LEVEL_BITS,
    PAGE_SHIFT,
    PTE_ACCESS,
    PTE_LARGE,
    PTE_READ,
    PTE_SIZE,
    PTE_WRITE,
    TABLE_ENTRIES,
    Access,
    ContextEntry,
    FaultReason,
    RootEntry,
    TranslationType,
    context_reserved,
    levels_of,
    root_reserved,
    width_of,
)
from viommu_actors.vtd.config import UnitConfig

#: Source ids are looked up by bus, then by device and function.
_BUS_SHIFT: Final = 8
_FUNCTION_MASK: Final = 0xFF


_INDEX_MASK: Final = TABLE_ENTRIES - 1
#: PTE bits that an access needs, by Access; who wants nothing is held to reading.
_WANTED: Final = (PTE_READ, PTE_READ, PTE_WRITE, PTE_ACCESS)
_new: Final = tuple.__new__


class TableFault(Exception):
    """The tables do not allow the request. `fault_disable` is FPD of the context entry, if one was read."""

    def __init__(self, reason: FaultReason, fault_disable: bool = False) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.fault_disable = fault_disable


class Context(NamedTuple):
    """A valid context entry of a requester."""

    source: int
    domain: int
    pass_through: bool
    device_iotlb: bool
    fault_disable: bool
    table: int
    """Address of the top-level second-level table."""
    levels: int
    width: int
    """Bits of an address that its tables translate."""


class Leaf(NamedTuple):
    """What one paging entry says of the 2^shift bytes from `iova`: a page, or with `access` NONE a hole.

    A hole with a `reason` is an entry that faults in another way than by absent permission: reserved bits, an
    unreadable table, a page in the interrupt address range.
    """

    iova: int
    shift: int
    address: int
    access: Access
    reason: FaultReason | None = None

    @property
    def size(self) -> int:
        return 1 << self.shift


_NONE: Final = Access.NONE
_ACCESS: Final = (_NONE, Access.READ, Access.WRITE, Access.BOTH)


def denied(missing: int) -> FaultReason:
    """The reason when these rights, bits of Access, are missing."""
    return FaultReason.WRITE_DENIED if missing & Access.WRITE else FaultReason.READ_DENIED


def read_context(memory: Memory, root: int, requester: int, config: UnitConfig) -> Context:
    """The context of `requester` below the root table at `root`. Raises TableFault."""
    return ContextReader(memory, requester, config).read(root)


class ContextReader:
    """Reads the context of one requester each time it is asked, and takes its entries apart only when they are others
    than the last time: what the same words mean does not change, and a shadow asks at every invalidation."""

    def __init__(self, memory: Memory, requester: int, config: UnitConfig) -> None:
        self._read_pair = memory.read_pair
        self._requester = requester
        self._config = config
        self._bus = (requester >> _BUS_SHIFT) * ENTRY_SIZE
        self._function = (requester & _FUNCTION_MASK) * ENTRY_SIZE
        # The entries of the last time that were valid, and what they say.
        self._root_entry: tuple[int, int] | None = None
        self._table = 0
        self._context_entry: tuple[int, int] | None = None
        self._context: Context

    def read(self, root: int) -> Context:
        """The context below the root table at `root`. Raises TableFault."""
        read = self._read_pair
        try:
            entry = read(root + self._bus)
        except Unclaimed:
            raise TableFault(FaultReason.ROOT_TABLE_ACCESS) from None
        if entry != self._root_entry:
            self._table = _context_table(*entry, self._config.aw_bits)
            self._root_entry = entry
        try:
            entry = read(self._table + self._function)
        except Unclaimed:
            raise TableFault(FaultReason.CONTEXT_TABLE_ACCESS) from None
        if entry != self._context_entry:
            self._context = _context(*entry, self._requester, self._config)
            self._context_entry = entry
        return self._context


def _context_table(low: int, high: int, aw_bits: int) -> int:
    """Where a root entry leads. Raises TableFault."""
    bus = RootEntry.decode(low, high)
    if not bus.present:
        raise TableFault(FaultReason.ROOT_NOT_PRESENT)
    if root_reserved(low, high, aw_bits):
        raise TableFault(FaultReason.ROOT_RESERVED)
    return bus.context_table


def _context(low: int, high: int, requester: int, config: UnitConfig) -> Context:
    """What a context entry says. Raises TableFault."""
    context = ContextEntry.decode(low, high)
    if not context.present:
        raise TableFault(FaultReason.CONTEXT_NOT_PRESENT, context.fault_disable)
    if context_reserved(low, high, config.aw_bits):
        raise TableFault(FaultReason.CONTEXT_RESERVED, context.fault_disable)
    if context.width_code not in config.width_codes or context.translation_type not in config.translation_types:
        raise TableFault(FaultReason.CONTEXT_INVALID, context.fault_disable)
    return Context(
        source=requester,
        domain=context.domain,
        pass_through=context.translation_type == TranslationType.PASS_THROUGH,
        device_iotlb=context.translation_type == TranslationType.DEVICE_IOTLB,
        fault_disable=context.fault_disable,
        table=context.table,
        levels=levels_of(context.width_code),
        width=min(width_of(context.width_code), config.aw_bits),
    )


def walk(memory: Memory, context: Context, address: int, access: Access, config: UnitConfig) -> Leaf:
    """The page that `address` lies in, if the tables allow `access` (READ or WRITE). Raises TableFault.

    The leaf's `access` is everything its path allows. A pass-through context has no tables: not to be walked.
    """
    if address >> context.width:
        raise TableFault(FaultReason.ADDRESS_BEYOND_WIDTH, context.fault_disable)
    reserved_tables, reserved_leaves = config.reserved_bits
    address_mask = config.address_mask
    wanted = _WANTED[access]
    allowed = PTE_ACCESS
    read = memory.read_u64
    table, level = context.table, context.levels
    shift = PAGE_SHIFT + LEVEL_BITS * (level - 1)
    while True:
        try:
            entry = read(table + (address >> shift & _INDEX_MASK) * PTE_SIZE)
        except Unclaimed:
            top = level == context.levels
            reason = FaultReason.CONTEXT_INVALID if top else FaultReason.TABLE_ACCESS
            raise TableFault(reason, context.fault_disable) from None
        if wanted & ~entry:
            raise TableFault(denied(wanted & ~entry), context.fault_disable)
        allowed &= entry
        if level == 1 or (entry & PTE_LARGE and level <= LARGEST_LEAF_LEVEL):
            if entry & reserved_leaves[level]:
                raise TableFault(FaultReason.TABLE_RESERVED, context.fault_disable)
            table = entry & address_mask
            break
        if entry & reserved_tables[level]:
            raise TableFault(FaultReason.TABLE_RESERVED, context.fault_disable)
        table = entry & address_mask
        level -= 1
        shift -= LEVEL_BITS
    if table <= INTERRUPT_LAST and table + (1 << shift) > INTERRUPT_FIRST:
        raise TableFault(FaultReason.INTERRUPT_RANGE, context.fault_disable)
    return _new(Leaf, (address >> shift << shift, shift, table, _ACCESS[allowed], None))


def leaf_at(memory: Memory, context: Context, address: int, config: UnitConfig) -> Leaf | None:
    """The leaf that holds `address`, as `leaves` gives it; None beyond the width of the tables."""
    if address >> context.width:
        return None
    table, allowed = context.table, PTE_ACCESS
    read, address_mask = memory.read_u64, config.address_mask
    for level, shift, ends in config.descents[context.levels]:  # noqa: B007
        try:
            entry = read(table + (address >> shift & _INDEX_MASK) * PTE_SIZE)
        except Unclaimed:
            shift += LEVEL_BITS
            return Leaf(address >> shift << shift, shift, 0, Access.NONE, FaultReason.TABLE_ACCESS)
        allowed &= entry
        if not allowed:
            return _new(Leaf, (address >> shift << shift, shift, 0, _NONE, None))
        if entry & ends:
            break
        table = entry & address_mask
    iova, target = address >> shift << shift, entry & address_mask
    leaf = level == 1 or (entry & PTE_LARGE and level <= LARGEST_LEAF_LEVEL)
    if entry & config.reserved_bits[leaf][level]:
        return Leaf(iova, shift, 0, Access.NONE, FaultReason.TABLE_RESERVED)
    if target <= INTERRUPT_LAST and target + (1 << shift) > INTERRUPT_FIRST:
        return Leaf(iova, shift, 0, Access.NONE, FaultReason.INTERRUPT_RANGE)
    return _new(Leaf, (iova, shift, target, _ACCESS[allowed], None))


def leaves(
    memory: Memory, context: Context, first: int, last: int, config: UnitConfig, *, holes: bool = True
) -> Iterator[Leaf]:
    """What the tables say of every address from `first` to `last` (inclusive), ascending and without a gap.

    Each entry is given whole, so the first leaf may begin before `first` and the final one end after `last`; a hole
    is as large as the entry that makes it. What lies beyond the width of the tables is left out. Without `holes`
    so are absent entries, but for a first and a last one that reach out of the range; an empty table gives one.

    Tables that lead back to themselves give up to 2^36 leaves: who asks for much has to stop somewhere.
    """
    limit = (1 << context.width) - 1
    if first > limit:
        return
    yield from _leaves(memory, context.table, context.levels, 0, PTE_ACCESS, first, min(last, limit), config, holes)


def _leaves(
    memory: Memory,
    table: int,
    level: int,
    base: int,
    allowed: int,
    first: int,
    last: int,
    config: UnitConfig,
    holes: bool,
) -> Iterator[Leaf]:
    """Entries of one table whose first byte maps `base`."""
    shift = PAGE_SHIFT + LEVEL_BITS * (level - 1)
    start = max(first - base, 0) >> shift
    count = min(last - base >> shift, TABLE_ENTRIES - 1) - start + 1
    try:
        entries = unpack(f"<{count}Q", memory.read(table + start * PTE_SIZE, count * PTE_SIZE))
    except Unclaimed:
        yield Leaf(base, shift + LEVEL_BITS, 0, Access.NONE, FaultReason.TABLE_ACCESS)
        return
    begin, size = base + (start << shift), 1 << shift
    numbered: Iterable[tuple[int, int]] = zip(count_from(begin, size), entries, strict=False)
    if not holes and begin >= first and begin + count * size - 1 <= last:
        numbered = [(begin + number * size, entry) for number, entry in enumerate(entries) if entry & allowed]
        if not numbered:
            yield Leaf(begin, shift, 0, Access.NONE)
            return
    for iova, entry in numbered:
        access = allowed & entry
        if not access:
            yield Leaf(iova, shift, 0, Access.NONE)
            continue
        leaf = level == 1 or (level <= LARGEST_LEAF_LEVEL and bool(entry & PTE_LARGE))
        if entry & config.reserved_bits[leaf][level]:
            yield Leaf(iova, shift, 0, Access.NONE, FaultReason.TABLE_RESERVED)
            continue
        target = entry & config.address_mask
        if not leaf:
            yield from _leaves(memory, target, level - 1, iova, access, first, last, config, holes)
        elif _in_interrupt_range(target, shift):
            yield Leaf(iova, shift, 0, Access.NONE, FaultReason.INTERRUPT_RANGE)
        else:
            yield _new(Leaf, (iova, shift, target, _ACCESS[access], None))


def _in_interrupt_range(address: int, shift: int) -> bool:
    return address <= INTERRUPT_LAST and address + (1 << shift) > INTERRUPT_FIRST
