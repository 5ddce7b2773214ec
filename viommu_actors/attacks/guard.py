"""The owner's side of an attack on memory: what is guarded, how it stands, and how it was before.

Placed and checked by the kernel that owns the memory; nothing that a rogue says is heard here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from viommu_actors.kernel.domain import Domain
from viommu_actors.kernel.invalidation import QueuedInvalidation
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pages import PAGE
from viommu_actors.spec.vtd import ContextGranularity, IotlbGranularity, levels_of, width_of
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.tables import Context, leaves

CANARIES = 16
#: What a page of canaries begins with, so that who scans for it finds it; the rest is secret.
SIGNATURE = b"viommu canary 1\n"
_CONTROL_BYTES = 64
#: A domain that maps more than this is no driver's handful of buffers.
_MAPPINGS_LISTED = 65536


class Guard:
    """Pages of one kernel's memory; `random(n)` gives n unguessable bytes."""

    def __init__(self, kernel: Kernel, random: Callable[[int], bytes]) -> None:
        self._kernel = kernel
        self._random = random
        self._canaries: list[int] = []
        self._guarded: dict[int, bytes] = {}
        self._controls: dict[int, tuple[int, bytes]] = {}

    def place_canaries(self) -> list[int]:
        """Guards pages of the kernel's own with fresh random content; their physical addresses."""
        if not self._canaries:
            self._canaries = [self._kernel.pages.alloc() for _ in range(CANARIES)]
        for page in self._canaries:
            self._kernel.machine.memory.write(page, SIGNATURE + self._random(PAGE - len(SIGNATURE)))
        return self.guard(self._canaries)

    def guard_afresh(self, pages: list[int]) -> list[int]:
        """Guards these pages, with fresh random content."""
        for page in pages:
            self._kernel.machine.memory.write(page, self._random(PAGE))
        return self.guard(pages)

    def guard(self, pages: list[int]) -> list[int]:
        """Guards these pages, as they stand."""
        self._guarded = {page: self._kernel.machine.memory.read(page, PAGE) for page in pages}
        return list(pages)

    def guard_first_page(self) -> list[int]:
        """Guards the page at physical address zero."""
        return self.guard([0])

    def guard_page_tables(self) -> list[int]:
        """Guards the page tables of all domains; none where there is no IOMMU."""
        iommu = self._kernel.iommu
        return self.guard([] if iommu is None else iommu.table_pages())

    def guard_structures(self) -> list[int]:
        """Guards root, context and interrupt tables and the invalidation queue."""
        iommu = self._kernel.iommu
        return self.guard([] if iommu is None else iommu.structure_pages())

    def expect(self, pieces: Sequence[tuple[int, int]], data: bytes) -> str:
        """The digest that shall stand once the first `size` bytes of `data` are written at each (offset, size) of the
        one page that is guarded, and nothing else of it."""
        [(page, content)] = self._guarded.items()
        changed = bytearray(content)
        for offset, size in pieces:
            changed[offset : offset + size] = data[:size]
        self._guarded = {page: bytes(changed)}
        return hashlib.sha256(changed).hexdigest()

    def digest(self) -> str:
        """SHA-256 over what is guarded, as it stands in memory now; empty where nothing is."""
        if not self._guarded:
            return ""
        content = hashlib.sha256()
        for page in self._guarded:
            content.update(self._kernel.machine.memory.read(page, PAGE))
        return content.hexdigest()

    def restore(self) -> None:
        """Puts back what an attack has changed, and has the IOMMU forget what it read of it meanwhile."""
        memory = self._kernel.machine.memory
        harmed = [page for page, content in self._guarded.items() if memory.read(page, PAGE) != content]
        for page in harmed:
            memory.write(page, self._guarded[page])
        iommu = self._kernel.iommu
        if harmed and iommu is not None:
            iommu.invalidation.context(ContextGranularity.GLOBAL, 0, 0)
            iommu.invalidation.iotlb(IotlbGranularity.GLOBAL, 0)
            if isinstance(iommu.invalidation, QueuedInvalidation):
                iommu.invalidation.interrupt_entries()
        self._guarded = {}

    def mapped(self, bdf: int) -> list[tuple[int, int]]:
        """(IOVA, size) of what the device may reach by page tables, ascending; nothing without any."""
        iommu = self._kernel.iommu
        domain = None if iommu is None else iommu.attached(self._kernel.device(bdf))
        if not isinstance(domain, Domain):
            return []
        entry = domain.context_entry()
        width = width_of(entry.width_code)
        context = Context(bdf, domain.id, False, False, False, entry.table, levels_of(entry.width_code), width)
        entries = leaves(self._kernel.machine.memory, context, 0, (1 << width) - 1, UnitConfig(aw_bits=width))
        found = []
        for leaf in entries:
            if leaf.access:
                found.append((leaf.iova, leaf.size))
                if len(found) == _MAPPINGS_LISTED:
                    break
        return found

    # --- the positive control: a legal write of the same device

    def offer_control(self, bdf: int) -> tuple[int, bytes]:
        """(IOVA, what to write there) of a page that is mapped for the device. Raises KeyError without a driver."""
        iova, paddr, _ = self._kernel.drivers[bdf].control_mapping()
        secret = self._random(_CONTROL_BYTES)
        self._kernel.machine.memory.write(paddr, bytes(_CONTROL_BYTES))
        self._controls[bdf] = (paddr, secret)
        return iova, secret

    def control_page(self, bdf: int) -> int:
        """Where the page of `offer_control` lies in memory."""
        return self._controls[bdf][0]

    def control_arrived(self, bdf: int) -> bool:
        """Whether the legal write is in memory."""
        paddr, secret = self._controls[bdf]
        return self._kernel.machine.memory.read(paddr, _CONTROL_BYTES) == secret

    def end_control(self, bdf: int) -> None:
        """Unmaps the control page."""
        del self._controls[bdf]
        self._kernel.drivers[bdf].release_control()
