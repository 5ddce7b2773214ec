"""A device-TLB: the cache, its driver's I/O through it, and devices that do not answer or do not obey."""

from __future__ import annotations

from errno import EIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.rig import HIGH_BASE, Rig
from viommu_actors.devices.ats import CAPACITY, TranslationCache
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.rogue import Rogue, StepResult, parse_plan
from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.vfio.reset import reset_function
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import pci
from viommu_actors.spec.ats import TranslationEntry
from viommu_actors.spec.tlp import AddressType, CfgWrite, Completion, InvalidateRequest
from viommu_actors.spec.vtd import Access

NIC, EDU = 1, 2
PAGE = 4096
READ, BOTH = Access.READ, Access.BOTH


def machine_of(cmdline: str = "intel_iommu=on", **options: Any) -> Rig:
    devices = {
        NIC: lambda send, log: Nic(send, log, mac=bytes(6), ats=True),
        EDU: lambda send, log: Edu(send, log, ats=True),
    }
    return Rig(devices, cmdline, **{"device_iotlb": True} | options)


def counted(machine: Rig, name: str) -> int:
    return machine.unit.counters[name]


def play(machine: Rig, slot: int, *steps: dict[str, object]) -> list[StepResult]:
    over: list[list[StepResult]] = []
    Rogue(machine.endpoints[slot]).play(parse_plan(steps), over.append)
    machine.pump()
    return over[0]


def tlb(machine: Rig, slot: int) -> TranslationCache:
    device_tlb = machine.endpoints[slot].device_tlb
    assert device_tlb is not None
    return device_tlb._cache


def port_outcomes(machine: Rig, slot: int) -> dict[str, int]:
    return dict(machine.root.ports[slot_name(slot)].counters)


# --- the cache


def test_the_cache_answers_for_what_it_was_told() -> None:
    cache = TranslationCache()
    assert cache.find(0x5123, READ) is None
    cache.keep(0x5000, TranslationEntry(0x9000, 12, READ))
    assert cache.find(0x5123, READ) == (0x9123, AddressType.TRANSLATED)
    assert cache.find(0x5123, BOTH) is None and cache.find(0x6000, READ) is None
    cache.keep(0x4000_0000, TranslationEntry(0x20_0000, 21, BOTH))
    assert cache.find(0x401F_FFFF, BOTH) == (0x3F_FFFF, AddressType.TRANSLATED)
    cache.keep(0xFEE0_0000, TranslationEntry(0xFEE0_0000, 12, Access.WRITE, untranslated_only=True))
    assert cache.find(0xFEE0_0010, Access.WRITE) == (0xFEE0_0010, AddressType.UNTRANSLATED)


def test_the_cache_is_bounded() -> None:
    cache = TranslationCache()
    for number in range(CAPACITY + 3):
        cache.keep(number << 12, TranslationEntry(number << 12, 12, READ))
    assert len(cache) == CAPACITY
    assert cache.find(0x2000, READ) is None and cache.find(0x3000, READ) is not None


entries = st.tuples(st.sampled_from([12, 21, 30]), st.integers(0, 600))


@given(st.lists(entries, max_size=20), st.integers(12, 34), st.integers(0, 700))
def test_nothing_that_overlaps_an_invalidation_is_left(
    held: list[tuple[int, int]], shift: int, number: int
) -> None:
    cache = TranslationCache()
    for size, page in held:
        cache.keep(page << size, TranslationEntry(0, size, READ))
    first = (number << 12) >> shift << shift
    question = cache.ask()
    cache.invalidate(first, shift)
    assert question.stale
    for size, page in held:
        apart = (page + 1) << size <= first or first + (1 << shift) <= page << size
        assert apart == (cache.find(page << size, READ) is not None) or not apart
    gone = {(size, page) for size, page in held if page << size < first + (1 << shift) and first < (page + 1) << size}
    assert len(cache) == len(set(held) - gone)


# --- I/O through it


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_honest_io_is_translated_by_the_device_and_verified(seed: int | None) -> None:
    machine = machine_of(seed=seed)
    assert "pci 0000:01:00.0: ATS enabled" in machine.lines
    assert machine.driver(NIC).run_io(64).verified
    assert machine.driver(EDU).run_io(16).verified
    assert counted(machine, "translation_requests") and counted(machine, "translated_requests")
    # Everything but interrupts goes by translated addresses.
    assert counted(machine, "translations") == 0
    assert counted(machine, "faults") == 0


def test_each_unmap_invalidates_the_device_too_and_a_map_does_not() -> None:
    machine = machine_of()
    kernel = machine.kernel
    dma = kernel.dma(kernel.device(machine.bdf(NIC)))
    paddr = kernel.pages.alloc(4)
    before = kernel.counters.copy()
    iova = dma.map(paddr, 4 * PAGE, Direction.BIDIRECTIONAL)
    assert kernel.counters["device_tlb_invalidations"] == before["device_tlb_invalidations"]
    dma.unmap(iova, 4 * PAGE, Direction.BIDIRECTIONAL)
    assert kernel.counters["device_tlb_invalidations"] == before["device_tlb_invalidations"] + 1
    assert kernel.counters["invalidations"] == before["invalidations"] + 1


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_once_an_unmap_is_done_the_device_has_no_translation_of_it(seed: int, choices: list[int]) -> None:
    machine = machine_of(seed=seed, drivers=())
    kernel, endpoint = machine.kernel, machine.endpoints[NIC]
    device = kernel.device(machine.bdf(NIC))
    device.set_bus_master(True)
    dma, paddr = kernel.dma(device), kernel.pages.alloc(8)
    mapped: dict[int, int] = {}
    seen: list[bytes | None] = []

    def fetch(iova: int) -> Any:
        seen.append((yield from endpoint.dma_read(iova, 4)))

    for page in choices:
        place = paddr + page * PAGE
        if page in mapped:
            iova = mapped.pop(page)
            # Under way when the unmap begins, and over when that is done.
            endpoint.start(fetch(iova))
            dma.unmap(iova, PAGE, Direction.BIDIRECTIONAL)
            assert tlb(machine, NIC).find(iova, READ) is None
            machine.memory.write(place, b"gone")
        else:
            machine.memory.write(place, b"good")
            mapped[page] = dma.map(place, PAGE, Direction.BIDIRECTIONAL)
            endpoint.start(fetch(mapped[page]))
    machine.pump()
    assert len(seen) == len(choices) and set(seen) <= {b"good", None}
    assert kernel.counters["ats_timeouts"] == 0


def test_what_was_asked_before_an_invalidation_is_asked_again() -> None:
    sent: list[Any] = []
    endpoint = Nic(sent.append, mac=bytes(6), ats=True)
    ats = endpoint.config.extended_capability(pci.ExtendedCapabilityId.ATS)
    assert ats is not None
    for offset, value in ((pci.COMMAND, 6), (ats + pci.ATS_CONTROL, pci.ATS_ENABLE)):
        endpoint.receive(_cfg_write(offset, value))
    sent.clear()
    endpoint.start(_read(endpoint, 0x5000))
    (question,) = sent
    assert question.at == AddressType.TRANSLATION_REQUEST
    endpoint.receive(InvalidateRequest(0, 3, endpoint.requester, 0x5000))
    assert sent == [question]
    endpoint.receive(_completion(question.tag, TranslationEntry(0x9000, 12, BOTH).encode()))
    # Its answer is stale: the page is asked for anew; and what waited for nothing else is complete.
    again, completed = sent[1:]
    assert again.at == AddressType.TRANSLATION_REQUEST
    assert completed.itags == 1 << 3 and completed.copies == 1
    endpoint.receive(_completion(again.tag, TranslationEntry(0xA000, 12, BOTH).encode()))
    assert (sent[-1].at, sent[-1].address) == (AddressType.TRANSLATED, 0xA000)


def test_a_page_without_leave_is_not_accessed() -> None:
    machine = machine_of()
    assert play(machine, NIC, {"do": "control", "iova": 0x123_4000, "data": b"1234"})[0].status == "refused"
    assert counted(machine, "faults") == 0


def test_without_device_tlbs_of_the_unit_or_with_noats_nothing_is_translated() -> None:
    for machine in (machine_of(device_iotlb=False), machine_of("intel_iommu=on pci=noats")):
        assert machine.driver(NIC).run_io(8).verified
        assert not counted(machine, "translation_requests") and not counted(machine, "translated_requests")
        assert not machine.kernel.counters["device_tlb_invalidations"]


def test_pass_through_has_no_ats() -> None:
    machine = machine_of("intel_iommu=on iommu=pt")
    assert machine.driver(NIC).run_io(8).verified
    assert not counted(machine, "translation_requests")


# --- forged requests


@pytest.mark.parametrize(("cmdline", "acs"), [("intel_iommu=on", True), ("intel_iommu=on", False)])
def test_with_ats_on_a_forged_translated_request_reaches_all_memory(cmdline: str, acs: bool) -> None:
    machine = machine_of(cmdline, acs=acs)
    at = AddressType.TRANSLATED
    play(machine, NIC, {"do": "write", "address": HIGH_BASE + 0x8000, "data": b"evil", "at": at})
    assert machine.memory.read(HIGH_BASE + 0x8000, 4) == b"evil"


def test_with_ats_off_the_port_drops_it() -> None:
    machine = machine_of("intel_iommu=on pci=noats")
    at = AddressType.TRANSLATED
    play(machine, NIC, {"do": "write", "address": HIGH_BASE + 0x8000, "data": b"evil", "at": at})
    assert play(machine, NIC, {"do": "translate", "address": 0})[0].status == "completer abort"
    assert machine.memory.read(HIGH_BASE + 0x8000, 4) == bytes(4)
    assert port_outcomes(machine, NIC)["acs translation blocking"] == 2


def test_with_ats_off_and_without_acs_the_context_entry_blocks_it() -> None:
    machine = machine_of("intel_iommu=on pci=noats", acs=False)
    step = {"do": "read", "address": HIGH_BASE + 0x8000, "length": 4, "at": AddressType.TRANSLATED}
    assert play(machine, NIC, step)[0].status == "unsupported request"
    assert play(machine, NIC, {"do": "translate", "address": 0})[0].status == "unsupported request"
    machine.wait_for_interrupt(0)
    iommu = machine.kernel.iommu
    assert iommu is not None
    records, _ = iommu.take_faults()
    assert [(record.reason, record.address) for record in records][:1] == [(0xD, HIGH_BASE + 0x8000)]


def test_a_translation_that_is_asked_for_is_told() -> None:
    machine = machine_of()
    kernel = machine.kernel
    paddr = kernel.pages.alloc()
    iova = kernel.dma(kernel.device(machine.bdf(NIC))).map(paddr, PAGE, Direction.TO_DEVICE)
    (result,) = play(machine, NIC, {"do": "translate", "address": iova})
    assert TranslationEntry.decode(result.data) == TranslationEntry(paddr, 12, READ)


# --- devices that do not answer, or do not obey


def test_a_device_that_never_answers_is_blocked_and_the_others_go_on() -> None:
    machine = machine_of()
    kernel = machine.kernel
    assert machine.driver(NIC).run_io(8).verified
    play(machine, NIC, {"do": "invalidations", "policy": "ignore"})
    dma = kernel.dma(kernel.device(machine.bdf(NIC)))
    paddr = kernel.pages.alloc(2)
    stale = dma.map(paddr, PAGE, Direction.BIDIRECTIONAL)
    kept = dma.map(paddr + PAGE, PAGE, Direction.BIDIRECTIONAL)
    dma.unmap(stale, PAGE, Direction.BIDIRECTIONAL)
    assert kernel.counters["ats_timeouts"] == 1
    assert "DMAR: VT-d detected Invalidation Time-out Error: SID 100" in machine.lines
    # Whatever it still holds is of no use to it, translated or not.
    for at in (AddressType.UNTRANSLATED, AddressType.TRANSLATED):
        for address in (paddr, kept):
            step = {"do": "read", "address": address, "length": 4, "at": at}
            assert play(machine, NIC, step)[0].status in ("unsupported request", "completer abort")
    assert machine.driver(EDU).run_io(16).verified
    dma.unmap(kept, PAGE, Direction.BIDIRECTIONAL)
    assert kernel.counters["ats_timeouts"] == 1
    iommu = kernel.iommu
    assert iommu is not None
    with pytest.raises(OSError, match="did not complete an invalidation") as raised:
        iommu.attach(kernel.device(machine.bdf(NIC)), iommu.new_domain())
    assert raised.value.errno == EIO


def test_a_reset_ends_the_quarantine() -> None:
    machine = machine_of()
    kernel, iommu = machine.kernel, machine.kernel.iommu
    assert iommu is not None
    device = kernel.device(machine.bdf(NIC))
    domain = iommu.attached(device)
    dma, paddr = kernel.dma(device), kernel.pages.alloc()
    play(machine, NIC, {"do": "invalidations", "policy": "ignore"})
    dma.unmap(dma.map(paddr, PAGE, Direction.BIDIRECTIONAL), PAGE, Direction.BIDIRECTIONAL)
    assert iommu.attached(device) is None
    play(machine, NIC, {"do": "invalidations", "policy": "honest"})
    reset_function(device)
    iommu.was_reset(device)
    assert iommu.attached(device) is domain
    kernel.unbind(device.bdf)
    kernel.bind(device.bdf)
    before = counted(machine, "translated_requests")
    assert machine.driver(NIC).run_io(8).verified
    assert counted(machine, "translated_requests") > before


def test_a_device_that_was_detached_in_quarantine_stays_detached_after_its_reset() -> None:
    machine = machine_of()
    kernel, iommu = machine.kernel, machine.kernel.iommu
    assert iommu is not None
    device = kernel.device(machine.bdf(NIC))
    dma, paddr = kernel.dma(device), kernel.pages.alloc()
    play(machine, NIC, {"do": "invalidations", "policy": "ignore"})
    dma.unmap(dma.map(paddr, PAGE, Direction.BIDIRECTIONAL), PAGE, Direction.BIDIRECTIONAL)
    iommu.detach(device)
    iommu.was_reset(device)
    assert iommu.attached(device) is None
    other = iommu.new_domain()
    iommu.attach(device, other)
    assert iommu.attached(device) is other


def test_a_device_that_says_so_and_does_not_obey_keeps_its_access() -> None:
    machine = machine_of()
    kernel = machine.kernel
    play(machine, NIC, {"do": "invalidations", "policy": "keep"})
    dma = kernel.dma(kernel.device(machine.bdf(NIC)))
    paddr = kernel.pages.alloc()
    iova = dma.map(paddr, PAGE, Direction.BIDIRECTIONAL)
    machine.memory.write(paddr, b"first")
    (told,) = play(machine, NIC, {"do": "translate", "address": iova})
    dma.unmap(iova, PAGE, Direction.BIDIRECTIONAL)
    machine.memory.write(paddr, b"later")
    address = TranslationEntry.decode(told.data).address
    step = {"do": "read", "address": address, "length": 5, "at": AddressType.TRANSLATED}
    assert play(machine, NIC, step)[0].data == b"later"
    assert kernel.counters["ats_timeouts"] == 0


def test_a_forged_completion_is_an_error_that_hides_no_fault() -> None:
    machine = machine_of()
    step = {"do": "message", "name": "InvalidateCompletion", "fields": (machine.bdf(NIC), 0, 1, 1)}
    play(machine, NIC, step)
    machine.wait_for_interrupt(0)
    assert "DMAR: VT-d detected Invalidation Completion Error: SID 100" in machine.lines
    play(machine, EDU, {"do": "read", "address": 0xDEAD_0000, "length": 4})
    assert machine.wait_for_interrupt(0)
    assert any("DMA Read NO_PASID] Request device [02:00.0]" in line for line in machine.lines)


def test_a_completion_in_the_name_of_another_is_dropped_by_acs() -> None:
    machine = machine_of()
    step = {"do": "message", "name": "InvalidateCompletion", "fields": (machine.bdf(NIC), 0, 1, 1)}
    play(machine, EDU, step)
    assert port_outcomes(machine, EDU)["acs"] == 1
    assert not counted(machine, "invalidation_completion_errors")


def test_a_function_without_ats_takes_no_part_in_it() -> None:
    machine = Rig({NIC: lambda send, log: Nic(send, log, mac=bytes(6))}, device_iotlb=True)
    assert machine.driver(NIC).run_io(8).verified
    endpoint = machine.endpoints[NIC]
    endpoint.receive(InvalidateRequest(0, 0, endpoint.requester, 0))
    assert endpoint.counters["unsupported"] == 1
    assert play(machine, NIC, {"do": "invalidations", "policy": "keep"})[0].status == "unsupported request"


def _cfg_write(offset: int, value: int) -> Any:
    return CfgWrite(0, 1, 0, offset, value.to_bytes(2, "little"))


def _completion(tag: int, data: bytes) -> Any:
    return Completion(tag, 0, len(data), data)


def _read(endpoint: Endpoint, address: int) -> Any:
    yield from endpoint.dma_read(address, 8)
