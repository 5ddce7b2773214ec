"""Translation caches. They serve what they hold, stale or not, until software invalidates it (section 6.2).

Only what is present and valid is cached, also with caching mode: the specification allows it, QEMU does so.
"""

from __future__ import annotations

from typing import Final

from viommu_actors.spec.vtd import FUNCTION_MASKS, INTERRUPT_FIRST, INTERRUPT_LAST, PAGE_SHIFT, Access, level_shift
from viommu_actors.vtd.tables import Context, Leaf

#: Entries that a cache holds; when it is full all of them go, as in QEMU.
CAPACITY: Final = 1024

#: A page's key is its number << DOMAIN_BITS | domain id.
DOMAIN_BITS: Final = 16
_DOMAIN_MASK: Final = (1 << DOMAIN_BITS) - 1

#: What a cached page grants: physical minus request address, the leave given indexed by Access, the same as Access.
Grant = tuple[int, tuple[bool, bool, bool, bool], Access]

#: The same for the hot path: physical minus request address, indexed by Access; None where leave is not given.
Offsets = tuple[int | None, int | None, int | None, int | None]

#: Leave by allowed access, then by wanted access. Who wants nothing gets nothing.
LEAVE: Final = tuple(
    (False, bool(allowed & Access.READ), bool(allowed & Access.WRITE), allowed == Access.BOTH) for allowed in range(4)
)


def offsets(grant: Grant) -> Offsets:
    """Of a cached page, by the access wanted."""
    offset, leave, _ = grant
    none, read, write, both = (offset if given else None for given in leave)
    return none, read, write, both


class ContextCache:
    """Context entries by source id."""

    def __init__(self) -> None:
        self.entries: dict[int, Context] = {}

    def insert(self, context: Context) -> None:
        if len(self.entries) >= CAPACITY:
            self.entries.clear()
        self.entries[context.source] = context

    def clear(self) -> None:
        self.entries.clear()

    def drop_domain(self, domain: int) -> None:
        for source in [source for source, context in self.entries.items() if context.domain == domain]:
            del self.entries[source]

    def drop_device(self, source: int, function_mask: int) -> None:
        """The domain of the invalidation is not looked at: dropping more than asked is allowed."""
        mask = FUNCTION_MASKS[function_mask]
        for other in [other for other in self.entries if not (other ^ source) & mask]:
            del self.entries[other]


class Iotlb:
    """Second-level translations by domain id and page number, one map for each page size."""

    def __init__(self) -> None:
        self._small: dict[int, Grant] = {}
        self._large: dict[int, dict[int, Grant]] = {level_shift(2): {}, level_shift(3): {}}
        self._sizes: Final = {PAGE_SHIFT: self._small, **self._large}

    def __len__(self) -> int:
        return sum(len(pages) for pages in self._sizes.values())

    def find(self, domain: int, address: int) -> Grant | None:
        grant = self._small.get(address >> PAGE_SHIFT << DOMAIN_BITS | domain)
        return self.find_large(domain, address) if grant is None else grant

    def find_large(self, domain: int, address: int) -> Grant | None:
        """A superpage that holds `address`; the interrupt range inside one is never translated."""
        if INTERRUPT_FIRST <= address <= INTERRUPT_LAST:
            return None
        for shift, pages in self._large.items():
            grant = pages.get(address >> shift << DOMAIN_BITS | domain)
            if grant is not None:
                return grant
        return None

    def insert(self, domain: int, leaf: Leaf) -> Grant:
        if len(self) >= CAPACITY:
            self.clear()
        grant = (leaf.address - leaf.iova, LEAVE[leaf.access], leaf.access)
        self._sizes[leaf.shift][leaf.iova >> leaf.shift << DOMAIN_BITS | domain] = grant
        return grant

    def clear(self) -> None:
        for pages in self._sizes.values():
            pages.clear()

    def drop_domain(self, domain: int) -> None:
        for pages in self._sizes.values():
            for key in [key for key in pages if key & _DOMAIN_MASK == domain]:
                del pages[key]

    def drop_pages(self, domain: int, address: int, address_mask: int) -> None:
        """Every cached page, of whatever size, that overlaps the 2^address_mask pages around `address`."""
        span = PAGE_SHIFT + address_mask
        for shift, pages in self._sizes.items():
            if not pages:
                continue
            if span <= shift:
                pages.pop(address >> shift << DOMAIN_BITS | domain, None)
                continue
            count = 1 << span - shift
            first = address >> span << span - shift
            if count <= len(pages):
                for number in range(first, first + count):
                    pages.pop(number << DOMAIN_BITS | domain, None)
            else:
                low, high = first << DOMAIN_BITS, first + count << DOMAIN_BITS
                for key in [key for key in pages if low <= key < high and key & _DOMAIN_MASK == domain]:
                    del pages[key]
