"""Back ends of emulated cards that mean no good, at a guest whose kernel drives the card."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.hypervisor.virtio_guest import BDF, Guest, serve
from viommu_actors.hypervisor.virtio import told_pages
from viommu_actors.kernel.dma import Direction
from viommu_actors.spec import pci, platform, vhost, virtio_net, virtio_pci
from viommu_actors.spec.vhost import ReadStatus
from viommu_actors.spec.vtd import QUEUE_INDEX_SHIFT, FaultReason, IotlbGranularity, Reg
from viommu_actors.spec.vtd_invalidation import IotlbInvalidate
from viommu_actors.vtd.config import UnitConfig

SECRET = 0x30_0000


class Rogue:
    """A back end that says what a test wants, on a guest whose driver runs."""

    def __init__(self, viommu: UnitConfig | None, cmdline: str = "intel_iommu=on") -> None:
        self.guest = Guest(viommu, cmdline)
        self.cable = self.guest.connect()
        self.cable.port = self.receive
        #: Whether it does what a front end asks.
        self.obeys = True
        self.completions: list[vhost.ReadCompletion] = []
        self.driver = self.guest.boot()
        self.serve()
        self.driver.listen()
        self.guest.memory.write(SECRET, b"secret")

    def receive(self, message: Any) -> None:
        match message:
            case vhost.GetFeatures():
                self.cable.say(vhost.Features((1 << 64) - 1))
            case vhost.IotlbInvalidate(sequence) if self.obeys:
                self.cable.say(vhost.IotlbInvalidated(sequence))
            case vhost.StopVring(queue) if self.obeys:
                self.cable.say(vhost.VringBase(queue, 0))
            case vhost.ReadCompletion():
                self.completions.append(message)

    def serve(self) -> None:
        while serve(self.guest.cables):
            pass

    def read(self, iova: int, size: int = 6) -> bytes | None:
        """What a read of its returns."""
        self.cable.say(vhost.MemoryRead(7, iova, size))
        self.serve()
        tag, status, data = self.completions.pop()
        assert tag == 7 and (status == ReadStatus.DONE) == bool(data)
        return data or None

    def write(self, iova: int, data: bytes) -> None:
        self.cable.say(vhost.MemoryWrite(iova, data))
        self.serve()

    @property
    def rings(self) -> list[vhost.SetVring]:
        return self.cable.kinds(vhost.SetVring)[-2:]


def test_without_a_viommu_it_reaches_all_of_the_guest() -> None:
    rogue = Rogue(None)
    assert rogue.read(SECRET) == b"secret"
    rogue.write(SECRET, b"public")
    assert rogue.guest.memory.read(SECRET, 6) == b"public"
    # There is nothing beyond it.
    assert rogue.read(1 << 32) is None
    assert rogue.read((1 << 64) - 2) is None
    assert rogue.guest.vmm.counters["virtio_outside_ram"] == 2


def test_behind_a_viommu_what_was_not_mapped_is_blocked_and_the_guest_is_told() -> None:
    rogue = Rogue(UnitConfig())
    iommu = rogue.guest.kernel.iommu
    assert iommu is not None
    assert rogue.read(SECRET) is None
    rogue.guest.wait_for_interrupt(0)
    [fault], lost = iommu.take_faults()
    assert (fault.source, fault.address, fault.write, fault.reason) == (BDF, SECRET, False, FaultReason.READ_DENIED)
    rogue.write(SECRET, b"public")
    rogue.guest.wait_for_interrupt(0)
    [fault], lost = iommu.take_faults()
    assert (fault.source, fault.address, fault.write, lost) == (BDF, SECRET, True, 0)
    assert rogue.guest.memory.read(SECRET, 6) == b"secret"
    assert rogue.guest.vmm.counters["virtio_blocked"] == 2
    # What the driver mapped still works.
    assert rogue.read(rogue.rings[0].available, 4) is not None


def test_a_queue_that_it_cannot_serve_needs_a_reset_and_the_driver_is_told_once() -> None:
    rogue = Rogue(UnitConfig())
    interrupts = len(rogue.guest.beneath.vectors)
    for _ in range(30):
        rogue.cable.say(vhost.VringError(1))
    rogue.serve()
    assert rogue.driver._net.needs_reset
    assert len(rogue.guest.beneath.vectors) == interrupts + 1
    assert rogue.guest.vmm.counters["virtio_broken"] == 1
    assert len([line for line in rogue.guest.lines if "cannot serve queue 1" in line]) == 1
    # What stops the queues is the reset, and nothing of the back end's.
    assert not rogue.cable.kinds(vhost.StopVring)
    with pytest.raises(OSError, match="needs a reset"):
        rogue.driver.send(bytes(60))
    assert len(rogue.cable.kinds(vhost.StopVring)) == 2
    rogue.driver.listen()
    assert not rogue.driver._net.needs_reset
    # One that comes late is nothing to a driver that has gone.
    rogue.guest.kernel.unbind(BDF)
    rogue.cable.say(vhost.VringError(1))
    rogue.serve()
    assert not rogue.driver._net.needs_reset


@pytest.mark.parametrize("kind", [vhost.IotlbMiss, vhost.IotlbAccessFail])
def test_a_miss_of_what_is_not_mapped_is_a_fault_and_has_no_answer(kind: type) -> None:
    rogue = Rogue(UnitConfig())
    updates = len(rogue.cable.kinds(vhost.IotlbUpdate))
    rogue.cable.say(kind(SECRET, *((8,) if kind is vhost.IotlbAccessFail else ()), 2))
    rogue.serve()
    assert len(rogue.cable.kinds(vhost.IotlbUpdate)) == updates
    rogue.guest.wait_for_interrupt(0)
    assert rogue.guest.kernel.iommu is not None
    [fault], _ = rogue.guest.kernel.iommu.take_faults()
    assert (fault.source, fault.address, fault.write) == (BDF, SECRET, True)


def test_an_answer_to_a_miss_gives_the_leave_of_the_page() -> None:
    rogue = Rogue(UnitConfig())
    ring = rogue.rings[0]
    page = ring.available & ~0xFFF
    rogue.cable.say(vhost.IotlbMiss(ring.available, 1))
    rogue.serve()
    update = rogue.cable.kinds(vhost.IotlbUpdate)[-1]
    assert (update.iova, update.size, update.access) == (page, 4096, 3)
    memory = rogue.guest.memory
    assert memory.read(update.address + ring.available - page, 4) == rogue.read(ring.available, 4)


def test_a_large_page_is_told_of_and_forgotten_as_one() -> None:
    rogue = Rogue(UnitConfig(caching_mode=True))
    size, dma = 2 << 20, rogue.driver._binding.dma
    iova = dma.map(size, size, Direction.BIDIRECTIONAL)
    rogue.cable.say(vhost.IotlbMiss(iova + SECRET - size + 5, 1))
    rogue.serve()
    update = rogue.cable.kinds(vhost.IotlbUpdate)[-1]
    assert (update.iova, update.size, update.address, update.access) == (iova, size, size, 3)
    assert rogue.read(iova + SECRET - size) == b"secret"
    dma.unmap(iova, size, Direction.BIDIRECTIONAL)
    gone = rogue.cable.kinds(vhost.IotlbInvalidate)[-1]
    assert gone.iova <= iova and iova + size <= gone.iova + gone.size
    assert rogue.read(iova + SECRET - size) is None


def test_an_access_over_pages_is_judged_page_by_page() -> None:
    rogue = Rogue(UnitConfig())
    page = rogue.rings[0].descriptors & ~0xFFF
    mapped, free = rogue.read(page + 4090, 6), rogue.read(page + 4096, 6)
    if free is None:
        assert rogue.read(page + 4090, 12) is None
    else:
        assert rogue.read(page + 4090, 12) == (mapped or b"") + free
    before = rogue.read(page, 6)
    rogue.write(page - 3, b"abcdef")
    if rogue.read(page - 3, 3) is None:
        assert rogue.read(page, 6) == before


def test_it_raises_no_interrupt_by_writing_to_the_interrupt_range() -> None:
    rogue = Rogue(UnitConfig())
    rogue.write(0xFEE0_0000, b"\x20\x00\x00\x00")
    assert not rogue.guest.beneath.vectors
    assert rogue.guest.vmm.counters["virtio_outside_ram"] == 1


def test_one_that_does_not_acknowledge_an_invalidation_is_cut_off_and_the_barrier_holds() -> None:
    rogue = Rogue(UnitConfig())
    driver, guest = rogue.driver, rogue.guest
    iova, paddr, _ = driver._binding.control_mapping()
    guest.memory.write(paddr, b"before")
    assert rogue.read(iova) == b"before"
    rogue.cable.say(vhost.IotlbMiss(iova, 1))
    rogue.serve()
    rogue.obeys = False
    driver._binding.release_control()
    assert not rogue.cable.open and not driver.link_up
    assert guest.vmm.counters["virtio_cut_off"] == 1
    assert [line for line in guest.lines if "did not acknowledge an invalidation" in line]


def test_what_it_has_under_way_is_served_while_the_guest_waits_for_it() -> None:
    rogue = Rogue(UnitConfig())
    driver = rogue.driver
    iova, _, _ = driver._binding.control_mapping()
    rogue.cable.say(vhost.IotlbMiss(iova, 1))
    rogue.serve()
    ring, owed = rogue.rings[0].available, []

    def slow(message: Any) -> None:
        """Acknowledges once a read of its own has been answered."""
        if isinstance(message, vhost.IotlbInvalidate):
            owed.append(message.sequence)
            rogue.cable.say(vhost.MemoryRead(3, ring, 4))
        elif isinstance(message, vhost.ReadCompletion) and owed:
            assert message.status == ReadStatus.DONE
            rogue.cable.say(vhost.IotlbInvalidated(owed.pop()))

    rogue.cable.port = slow
    driver._binding.release_control()
    assert rogue.cable.open and not owed
    # It is gone for everybody, and the guest hears of who tries.
    assert rogue.guest.vmm.counters["virtio_blocked"] == 0
    rogue.cable.port = rogue.receive
    assert rogue.read(iova) is None
    assert rogue.guest.vmm.counters["virtio_blocked"] == 1


def test_a_trap_waits_for_few_of_its_acknowledgements_and_the_rest_of_the_queue_for_its_turn() -> None:
    rogue = Rogue(UnitConfig(), "intel_iommu=on iommu=pt")
    guest = rogue.guest
    waits = 0

    def ask() -> None:
        rogue.cable.say(vhost.IotlbMiss(0, 1))
        rogue.cable.step()

    def wait(until: Callable[[], bool]) -> None:
        """It acknowledges, and asks again at once."""
        nonlocal waits
        waits += 1
        rogue.serve()
        assert until()
        ask()

    rogue.cable.wait = wait  # type: ignore[method-assign]
    ask()
    unit = guest.vmm.unit
    assert unit is not None
    queue = unit.read(Reg.IQA, 8) & ~0xFFF
    tail = unit.read(Reg.IQT, 4) >> QUEUE_INDEX_SHIFT
    low, high = IotlbInvalidate(IotlbGranularity.GLOBAL).encode()
    for index in range(tail, tail + 200):
        guest.memory.write(queue + (index % 256 << QUEUE_INDEX_SHIFT), struct.pack("<QQ", low, high))
    guest.vmm.write(platform.REMAPPING_UNIT_BASE + Reg.IQT, 4, (tail + 200) % 256 << QUEUE_INDEX_SHIFT)
    assert guest.vmm.behind and 1 < waits < 50
    slices = 1
    while guest.vmm.behind:
        guest.vmm.go_on()
        slices += 1
    assert waits == 200 and slices > 4


def test_an_unmap_waits_for_those_who_were_told_to_forget_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_pages, "CAPACITY", 2)
    rogue = Rogue(UnitConfig())
    iova, _, _ = rogue.driver._binding.control_mapping()
    ring, held = rogue.rings[0], []
    rogue.cable.port = lambda message: held.append(message) if type(message) is vhost.IotlbInvalidate else None
    for place in (iova, ring.available, rogue.rings[1].available):
        rogue.cable.say(vhost.IotlbMiss(place, 1))
    rogue.serve()
    # It was told to forget all, and may not have done so yet.
    assert len(held) == 1 and held[0].iova <= iova < held[0].iova + held[0].size
    rogue.driver._binding.release_control()
    assert not rogue.cable.open and rogue.guest.vmm.counters["virtio_cut_off"] == 1


def test_what_it_was_not_told_is_not_invalidated() -> None:
    rogue = Rogue(UnitConfig())
    before = len(rogue.cable.kinds(vhost.IotlbInvalidate))
    rogue.driver._binding.control_mapping()
    rogue.driver._binding.release_control()
    assert len(rogue.cable.kinds(vhost.IotlbInvalidate)) == before


def test_a_back_end_that_does_not_stop_is_cut_off_and_the_driver_has_its_reset() -> None:
    rogue = Rogue(UnitConfig())
    rogue.obeys = False
    rogue.driver._stop()
    assert not rogue.cable.open
    assert not [line for line in rogue.guest.lines if "does not reset" in line]


def test_a_back_end_that_takes_nothing_is_cut_off() -> None:
    rogue = Rogue(UnitConfig())
    rogue.cable.listens = False
    rogue.cable.say(vhost.MemoryRead(0, 0, 1))
    rogue.serve()
    assert not rogue.cable.open and not rogue.driver.link_up


def test_a_guest_that_notifies_without_end_loses_nothing_but_repetitions() -> None:
    rogue = Rogue(None)
    rogue.cable.listens = False
    for _ in range(1000):
        for queue in (1, 0):
            rogue.driver._net.notify(virtio_net.Queue(queue))
    assert rogue.cable.open
    rogue.cable.listens = True
    kicks = len(rogue.cable.kinds(vhost.Kick))
    rogue.serve()
    assert sorted(each.queue for each in rogue.cable.kinds(vhost.Kick)[kicks:]) == [0, 1]


def test_one_that_takes_nothing_is_cut_off_once_for_all_that_it_is_to_stop() -> None:
    rogue = Rogue(None)
    rogue.cable.listens = False
    rogue.driver._stop()
    assert not rogue.cable.open
    assert rogue.guest.vmm.counters["virtio_cut_off"] == 1
    assert [line.rpartition("the back end ")[2] for line in rogue.guest.lines if "cut off" in line] == [
        "takes no more messages"
    ]


def test_one_that_dies_while_it_is_to_stop_is_not_said_to_owe_anything() -> None:
    rogue = Rogue(None)
    rogue.cable.port = lambda message: rogue.cable.die()
    rogue.driver._stop()
    assert rogue.guest.vmm.counters["virtio_cut_off"] == 0 and not rogue.driver.link_up


def test_its_interrupts_are_remapped_and_one_that_is_not_the_drivers_is_blocked() -> None:
    rogue = Rogue(UnitConfig(intremap=True))
    guest = rogue.guest
    iommu = guest.kernel.iommu
    assert iommu is not None
    rogue.cable.say(vhost.Call(virtio_net.Queue.RECEIVE))
    rogue.serve()
    assert len(guest.beneath.vectors) == 1
    guest.beneath.vectors.clear()
    # The message of an interrupt without remapping: to any vector that it likes.
    table = guest.mmio_read(guest.config(pci.BAR0 + 4 * virtio_pci.MSIX_BAR), 4) & ~0xF
    entry = table + virtio_net.Vector.RECEIVE * pci.MSIX_ENTRY_SIZE
    guest.mmio_write(entry, 8, 0xFEE0_0000)
    guest.mmio_write(entry + 8, 4, 0x41)
    rogue.cable.say(vhost.Call(virtio_net.Queue.RECEIVE))
    rogue.serve()
    [vector] = guest.beneath.vectors
    assert vector != 0x41, "the fault's own"
    guest.wait_for_interrupt(0)
    [fault], _ = iommu.take_faults()
    assert (fault.source, fault.reason) == (BDF, FaultReason.IR_COMPATIBILITY_BLOCKED)


def test_no_access_is_served_before_the_driver_is_ready_or_after_its_reset() -> None:
    rogue = Rogue(None)
    rogue.driver._stop()
    rogue.write(SECRET, b"public")
    assert rogue.read(SECRET) is None
    assert rogue.guest.memory.read(SECRET, 6) == b"secret"
    assert rogue.guest.vmm.counters["virtio_refused"] == 2


def test_answers_that_nobody_asked_for_change_nothing() -> None:
    rogue = Rogue(UnitConfig())
    for message in (vhost.Features(0), vhost.VringBase(0, 9), vhost.IotlbInvalidated(0), vhost.IotlbInvalidated(77)):
        rogue.cable.say(message)
    rogue.serve()
    assert rogue.cable.open and rogue.driver.link_up
    assert rogue.guest.vmm.counters["virtio_unexpected"] == 4


def test_what_it_says_before_its_features_is_of_another_connection() -> None:
    guest = Guest()
    cable = guest.connect()
    for message in (vhost.MemoryRead(1, SECRET, 8), vhost.IotlbMiss(SECRET, 1), vhost.Call(0), vhost.VringBase(0, 0)):
        cable.say(message)
    while serve(guest.cables):
        pass
    assert cable.sent == [vhost.GetFeatures()]
    assert guest.vmm.counters["virtio_early"] == 4 and guest.vmm.counters["virtio_refused"] == 0


def test_a_back_end_without_the_features_that_were_promised_serves_nobody() -> None:
    guest = Guest(UnitConfig())
    cable = guest.connect()
    cable.port = lambda message: cable.say(vhost.Features(1 << 32))
    while serve(guest.cables):
        pass
    assert not cable.open and not guest.card.link_up


def test_one_that_asks_for_more_pages_than_are_remembered_is_told_to_forget_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(told_pages, "CAPACITY", 16)
    rogue = Rogue(UnitConfig(), "intel_iommu=on iommu=pt")
    told = rogue.guest.card.front_end.told
    for page in range(100):
        rogue.cable.say(vhost.IotlbMiss(page * 4096, 1))
        rogue.serve()
    assert len(told) <= 16
    assert len(rogue.cable.kinds(vhost.IotlbUpdate)) == 100
    forgotten = rogue.cable.kinds(vhost.IotlbInvalidate)
    assert [(each.iova // 4096, each.size // 4096) for each in forgotten] == [(first, 16) for first in range(0, 96, 16)]
