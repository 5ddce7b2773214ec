"""A guest with translation tables, a container with type1's rules, and the shadow between them."""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Iterable
from errno import EEXIST, EINVAL, ENOSPC

from viommu_actors.hypervisor.shadow import Ram, Shadow, ShadowPorts, Shadows
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec.vtd import Access, Command, ContextGranularity, IotlbGranularity, Reg
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

PAGE, MEGA, GIGA = 0x1000, 1 << 20, 1 << 30
R, W, RW = Access.READ, Access.WRITE, Access.BOTH
LARGE = 0x80
BDF, OTHER = 0x28, 0x30
TABLES, TABLES_SIZE = 0x10_0000, MEGA
ROOT, CONTEXTS = TABLES, TABLES + PAGE
RAM = (Ram(0, 2 * GIGA), Ram(4 * GIGA, GIGA))
RAM_RUNS = [(0, 0, 2 * GIGA, RW), (4 * GIGA, 4 * GIGA, GIGA, RW)]
GLOBAL, DOMAIN, PAGES = IotlbGranularity.GLOBAL, IotlbGranularity.DOMAIN, IotlbGranularity.PAGE
Run = tuple[int, int, int, int]


class Container(ShadowPorts):
    """A container with type1's rules: EEXIST, EINVAL for what would bisect, ENOSPC."""

    def __init__(self, limit: int = 65535) -> None:
        self.limit = limit
        self.calls: list[tuple[str, int, int]] = []
        self._starts: list[int] = []
        self._mappings: dict[int, tuple[int, int, Access]] = {}

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        self.calls.append(("map", iova, size))
        assert size > 0
        assert not (iova | gpa | size) % PAGE
        assert access in (R, W, RW)
        assert not (iova <= 0xFEEF_FFFF and iova + size > 0xFEE0_0000), "the interrupt range is mapped"
        if any(start < iova + size and iova < start + self._mappings[start][1] for start in self._near(iova, size)):
            raise OSError(EEXIST, "overlap")
        if len(self._starts) >= self.limit:
            raise OSError(ENOSPC, "full")
        insort(self._starts, iova)
        self._mappings[iova] = (gpa, size, access)

    def unmap(self, iova: int, size: int) -> None:
        self.calls.append(("unmap", iova, size))
        inside = self._near(iova, size)
        for start in inside:
            end = start + self._mappings[start][1]
            if start < iova < end or start < iova + size < end:
                raise OSError(EINVAL, "bisects")
        gone = [start for start in inside if iova <= start < iova + size]
        assert gone, "an unmap of nothing"
        for start in gone:
            self._starts.remove(start)
            del self._mappings[start]

    def _near(self, iova: int, size: int) -> list[int]:
        begin = bisect_left(self._starts, iova)
        return self._starts[max(begin - 1, 0) : bisect_left(self._starts, iova + size, begin)]

    @property
    def runs(self) -> list[Run]:
        return merged((iova, *self._mappings[iova]) for iova in self._starts)

    def take_calls(self) -> list[tuple[str, int, int]]:
        calls, self.calls = self.calls, []
        return calls


def merged(mappings: Iterable[Run]) -> list[Run]:
    """Mappings as the fewest runs (iova, gpa, size, access)."""
    runs: list[Run] = []
    for iova, gpa, size, access in mappings:
        if runs:
            last_iova, last_gpa, last_size, last_access = runs[-1]
            if last_iova + last_size == iova and last_gpa + last_size == gpa and last_access == access:
                runs[-1] = (last_iova, last_gpa, last_size + size, access)
                continue
        runs.append((iova, gpa, size, access))
    return runs


class Guest:
    """Tables in a megabyte of memory, a real unit, one shadow."""

    def __init__(self, limit: int = 65535, ram: tuple[Ram, ...] = RAM, requesters: tuple[int, ...] = (BDF,)) -> None:
        self.bytes = bytearray(TABLES_SIZE)
        self.memory = PhysicalMemory([Slot("ram", TABLES, memoryview(self.bytes))])
        self.free = CONTEXTS + PAGE
        self.shadows = Shadows()
        self.unit = RemappingUnit(UnitConfig(caching_mode=True), self.memory, lambda address, data: None, self.shadows)
        self.lines: list[str] = []
        self.containers = {requester: Container(limit) for requester in requesters}
        for requester, container in self.containers.items():
            self.shadows.add(Shadow(self.unit, requester, container, self.memory, ram, self.lines.append))
        self.container = self.containers[requesters[0]]
        self.shadow = next(iter(self.shadows))
        self.put(ROOT, CONTEXTS | 1, 0)
        self.top = self.table()

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.bytes, address - TABLES, *words)

    def get(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self.bytes, address - TABLES)[0])

    def table(self) -> int:
        self.free += PAGE
        assert self.free <= TABLES + TABLES_SIZE
        return self.free - PAGE

    def context(self, low: int, high: int = 0x702, bdf: int = BDF) -> None:
        """AW 2 and domain 7 by default."""
        self.put(CONTEXTS + bdf * 16, low, high)

    def entry_at(self, iova: int, level: int, top: int | None = None, levels: int = 4) -> int | None:
        """Address of the entry of `level` for `iova`, tables made on the way; None below a leaf."""
        table = self.top if top is None else top
        for step in range(levels, level, -1):
            place = table + (iova >> 9 * step + 3 & 511) * 8
            entry = self.get(place)
            if not entry & 3:
                entry = self.table() | 3
                self.put(place, entry)
            elif entry & LARGE or entry & ~0xFFF not in range(TABLES, TABLES + TABLES_SIZE):
                return None
            table = entry & ~0xFFF
        return table + (iova >> 9 * level + 3 & 511) * 8

    def write(self, iova: int, value: int, level: int = 1) -> None:
        place = self.entry_at(iova, level)
        assert place is not None
        self.put(place, value)

    def enable(self) -> None:
        self.latch_root(ROOT)
        self.unit.write(Reg.GCMD, 4, Command.TE)

    def latch_root(self, root: int) -> None:
        self.unit.write(Reg.RTADDR, 8, root)
        self.unit.write(Reg.GCMD, 4, Command.SRTP | self.unit.read(Reg.GSTS, 4) & Command.TE)

    def flush(self, granularity: int = DOMAIN, address: int = 0, mask: int = 0, domain: int = 7) -> None:
        self.unit.invalidate_iotlb(granularity, domain, address, mask)

    def flush_context(self, granularity: int = ContextGranularity.DEVICE, source: int = BDF, fm: int = 0) -> None:
        self.unit.invalidate_context(granularity, 0, source, fm)

    @property
    def held(self) -> list[Run]:
        return self.container.runs
