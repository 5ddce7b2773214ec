"""Devices that come and go while the host is up: what the kernel gives them, and that it takes all of it back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.rig import Rig
from tests.devices.test_remapped import EDU, NIC, a_nic, an_edu
from tests.kernel.users import ROOT
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.uio import Uio
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import pci, tlp

FREE = 3
NIC_LINK = slot_name(NIC)


def _rig(**options: Any) -> Rig:
    """A nic, an edu, and an empty slot."""
    rig = Rig({NIC: a_nic(), EDU: an_edu, FREE: a_nic()}, intremap=True, boot=False, **options)
    rig.root.detach(slot_name(FREE))
    rig.kernel.boot(0x7000)
    return rig


def _unplug(rig: Rig, slot: int) -> None:
    rig.root.detach(slot_name(slot))
    assert rig.kernel.hotplug() == []


def _plug(rig: Rig, slot: int, factory: Any) -> None:
    rig.endpoints[slot] = rig.plug(slot_name(slot), factory)
    [found] = rig.kernel.hotplug()
    assert found.bdf == rig.bdf(slot)


def _works(rig: Rig, slot: int) -> bool:
    return bool(rig.driver(slot).run_io(8).verified)


@pytest.mark.parametrize("factory", [a_nic(), an_edu])
def test_a_newcomer_works_like_any_other(factory: Any) -> None:
    rig = _rig()
    _plug(rig, FREE, factory)
    assert _works(rig, FREE) and _works(rig, NIC) and _works(rig, EDU)
    assert f"pcieport 0000:00:03.0: pciehp: Slot({FREE}): Card present" in rig.lines


def test_nothing_happens_where_nothing_has_changed() -> None:
    rig = _rig()
    drivers = dict(rig.kernel.drivers)
    assert rig.kernel.hotplug() == [] and rig.kernel.hotplug() == []
    assert rig.kernel.drivers == drivers and not [line for line in rig.lines if "pciehp" in line]


@pytest.mark.parametrize("factory", [a_nic(), an_edu])
def test_all_that_it_was_given_is_taken_back(factory: Any) -> None:
    rig = _rig()
    iommu, kernel = rig.kernel.iommu, rig.kernel
    assert iommu is not None
    _plug(rig, FREE, factory)
    _unplug(rig, FREE)
    held = kernel.pages.free_pages, len(iommu.domains), len(iommu.groups), len(kernel.drivers)
    for _ in range(300):  # more than there are vectors and interrupt entries
        _plug(rig, FREE, factory)
        _unplug(rig, FREE)
    assert (kernel.pages.free_pages, len(iommu.domains), len(iommu.groups), len(kernel.drivers)) == held
    _plug(rig, FREE, factory)
    assert _works(rig, FREE)


def test_surprise_removal_of_a_device_at_work() -> None:
    """Its mappings are gone with it: who stands there next, by the same ID, reaches nothing of them."""
    rig = _rig()
    driver = rig.driver(NIC)
    iova, paddr, _ = driver.control_mapping()
    source = rig.bdf(NIC)
    rig.memory.write(paddr, b"secret!!")
    _unplug(rig, NIC)
    assert rig.kernel.drivers.keys() == {rig.bdf(EDU)}
    _plug(rig, NIC, a_nic())
    rig.endpoints[NIC].send(tlp.MemWrite(source, 0, iova, 0xF, 0xF, b"stolen!!"))
    rig.pump()
    assert rig.memory.read(paddr, 8) == b"secret!!"
    assert _works(rig, NIC) and _works(rig, EDU)


def test_a_device_of_uio_is_let_go_of_once_its_process_has_closed_it() -> None:
    """Whoever stands there next is not UIO's."""
    rig = _rig()
    kernel, uio, bdf = rig.kernel, Uio(rig.kernel), rig.bdf(NIC)
    kernel.unbind(bdf)
    uio.bind(bdf)
    process = UserProcess("app", capabilities=ROOT)
    opened = uio.open(process, kernel.device(bdf).name)
    _unplug(rig, NIC)
    assert not kernel.slot_settled(NIC) and uio.is_bound(bdf)
    process.close(opened)
    assert kernel.hotplug() == [] and kernel.slot_settled(NIC)
    assert not uio.is_bound(bdf) and not kernel.uio_devices
    _plug(rig, NIC, a_nic())
    assert _works(rig, NIC)


def test_a_dead_device_answers_with_ones_alone() -> None:
    rig = _rig()
    bar = rig.kernel.device(rig.bdf(NIC)).bars[0].address
    _unplug(rig, NIC)
    assert rig.mmio_read(bar, 4) == 0xFFFF_FFFF
    assert rig.mmio_read(0xE000_0000 + pci.ecam_offset(rig.bdf(NIC), 0), 4) == 0xFFFF_FFFF


def test_a_device_that_changes_before_the_kernel_looks_is_another() -> None:
    rig = _rig()
    before = rig.driver(NIC)
    iova, paddr, _ = before.control_mapping()
    rig.root.detach(NIC_LINK)
    _plug(rig, NIC, a_nic())
    assert rig.driver(NIC) is not before and _works(rig, NIC)
    rig.endpoints[NIC].send(tlp.MemWrite(rig.bdf(NIC), 0, iova, 0xF, 0xF, b"stolen!!"))
    rig.pump()
    assert rig.memory.read(paddr, 8) != b"stolen!!"


def test_what_was_reserved_for_vfio_was_the_one_that_is_gone() -> None:
    rig = _rig(cmdline="intel_iommu=on vfio-pci.ids=01:00.0")
    assert rig.bdf(NIC) not in rig.kernel.drivers
    _unplug(rig, NIC)
    _plug(rig, NIC, a_nic())
    assert _works(rig, NIC)


def test_a_device_that_a_user_keeps_is_no_matter_of_other_slots() -> None:
    rig = _rig()
    kept = rig.bdf(NIC)
    rig.kernel.holders.append(lambda device: device.bdf == kept)
    _unplug(rig, NIC)
    assert not rig.kernel.slot_settled(NIC) and rig.kernel.slot_settled(EDU)
    _unplug(rig, EDU)
    assert rig.kernel.slot_settled(EDU) and not rig.kernel.slot_settled(NIC)
    rig.kernel.holders.clear()
    assert rig.kernel.hotplug() == [] and rig.kernel.slot_settled(NIC)
