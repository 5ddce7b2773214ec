"""The list of capabilities in a function's configuration space, read by whoever may (PCI 3.0 section 6.7)."""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.spec import pci

#: Capabilities followed before a list counts as broken (Linux: PCI_FIND_CAP_TTL).
_LIMIT = 48


def capabilities(read: Callable[[int, int], int]) -> tuple[list[tuple[int, int]], int]:
    """(ID, offset) of each capability in the list's order, and where the list is broken; 0 where it is not.

    `read(offset, size)` reads configuration space. A list that is broken or loops ends where it does so.
    """
    found: list[tuple[int, int]] = []
    if not read(pci.STATUS, 2) & pci.Status.CAPABILITIES:
        return found, 0
    offset = read(pci.CAPABILITY_POINTER, 1) & ~3
    seen: set[int] = set()
    while offset >= pci.FIRST_CAPABILITY and offset not in seen and len(seen) < _LIMIT:
        seen.add(offset)
        header = read(offset, 2)
        if header & 0xFF == 0xFF:
            break
        found.append((header & 0xFF, offset))
        offset = header >> 8 & ~3
    return found, offset
