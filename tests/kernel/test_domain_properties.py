"""A domain against a model: the unit translates exactly what is mapped, after any sequence of maps and unmaps."""

from __future__ import annotations

from errno import EEXIST, EINVAL

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.kernel.fake_machine import FakeMachine, endpoint
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd.config import UnitConfig

EDU = 0x20
PAGE = 4096
SPAN = 2 << 20
GIB = 1 << 30
#: Around the borders of tables and of large pages.
BORDERS = [0x10_0000, SPAN, GIB, GIB + SPAN, 512 * GIB - 4 * SPAN]


class Domains(RuleBasedStateMachine):
    @initialize(caching_mode=st.booleans(), aw_bits=st.sampled_from([39, 48]))
    def boot(self, caching_mode: bool, aw_bits: int) -> None:
        machine = FakeMachine(unit=UnitConfig(caching_mode=caching_mode, aw_bits=aw_bits), functions={EDU: endpoint()})
        self.kernel = Kernel(machine, drivers=())
        self.kernel.boot(machine.boot_params)
        assert self.kernel.iommu is not None and machine.unit is not None
        self.unit, self.iommu = machine.unit, self.kernel.iommu
        self.free = self.kernel.pages.free_pages
        self.domain = self.iommu.new_domain()
        self.iommu.attach(self.kernel.device(EDU), self.domain)
        #: start -> (size, physical address, access) of each mapping.
        self.model: dict[int, tuple[int, int, int]] = {}

    @rule(
        border=st.sampled_from(BORDERS),
        before=st.sampled_from([0, 1, 3, 512]),
        pages=st.sampled_from([1, 2, 5, 512, 513, 1024]),
        shift=st.sampled_from([0, PAGE, 7 * PAGE]),
        access=st.sampled_from([Access.READ, Access.WRITE, Access.BOTH]),
    )
    def map(self, border: int, before: int, pages: int, shift: int, access: Access) -> None:
        iova, size = max(border - before * PAGE, 0), pages * PAGE
        paddr = iova % (256 * GIB) + 4 * GIB + shift
        try:
            self.domain.map(iova, paddr, size, access)
        except OSError as error:
            assert error.errno == EEXIST
            assert any(start < iova + size and iova < start + length for start, (length, *_) in self.model.items())
        else:
            self.model[iova] = size, paddr, access

    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        """Whole mappings, as VFIO and the DMA API do, with what lies between them."""
        starts = sorted(self.model)
        if not starts:
            return
        first = data.draw(st.sampled_from(starts))
        last = data.draw(st.sampled_from([start for start in starts if start >= first]))
        end = last + self.model[last][0]
        gone = [start for start in starts if first <= start <= last]
        assert self.domain.unmap(first, end - first) == sum(self.model.pop(start)[0] for start in gone)

    @rule(border=st.sampled_from(BORDERS), offset=st.integers(-3, 3))
    def unmap_one_page(self, border: int, offset: int) -> None:
        """Any page: a small one is unmapped, a large one refused as a whole."""
        iova = border + offset * PAGE
        holder = next((s for s, (size, *_) in self.model.items() if s <= iova < s + size), None)
        try:
            done = self.domain.unmap(iova, PAGE)
        except OSError as error:
            assert error.errno == EINVAL and holder is not None
            return
        assert done == (PAGE if holder is not None else 0)
        if holder is not None:
            size, paddr, access = self.model.pop(holder)
            if iova > holder:
                self.model[holder] = iova - holder, paddr, access
            if iova + PAGE < holder + size:
                rest = iova + PAGE - holder
                self.model[iova + PAGE] = size - rest, paddr + rest, access

    @invariant()
    def the_unit_agrees(self) -> None:
        edges = set(self.model) | {start + size for start, (size, *_) in self.model.items()}
        for probe in {page for edge in edges | set(BORDERS) for page in (edge - PAGE, edge) if page >= 0}:
            holder = next((s for s, (size, *_) in self.model.items() if s <= probe < s + size), None)
            for access in (Access.READ, Access.WRITE):
                result = self.unit.translate(EDU, probe + 8, access)
                if holder is None or not self.model[holder][2] & access:
                    assert result.reason is not None, f"{probe:#x} still translates"
                else:
                    assert result.address == self.model[holder][1] + probe - holder + 8

    def teardown(self) -> None:
        if hasattr(self, "domain"):
            self.iommu.detach(self.kernel.device(EDU))
            self.iommu.free_domain(self.domain)
            assert self.kernel.pages.free_pages == self.free


TestDomains = Domains.TestCase
TestDomains.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
