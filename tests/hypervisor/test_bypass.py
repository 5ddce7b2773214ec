"""Devices that the vIOMMU of their guest is not for."""

from __future__ import annotations

import pytest

from tests.hypervisor.whole_guest import GUEST_RAM, SLOTS, WholeGuest
from viommu_actors.hypervisor.virtio.function import VirtioNet
from viommu_actors.kernel.acpi import AcpiTables
from viommu_actors.kernel.bootparams import read_boot_params
from viommu_actors.kernel.domain import Domain
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import pci, platform
from viommu_actors.spec.acpi import DrhdFlags
from viommu_actors.spec.vtd import Command, Reg
from viommu_actors.vtd.config import UnitConfig

VIOMMU = UnitConfig(caching_mode=True)


def _mapped(guest: WholeGuest, bus: int) -> int:
    """Bytes that the device at this bus of the host reaches."""
    iommu = guest.kernel.iommu
    assert iommu is not None
    domain = iommu.attached(guest.kernel.device(bus << 8))
    assert isinstance(domain, Domain)
    return domain.live


def _scopes(guest: WholeGuest) -> tuple[int, list[tuple[tuple[int, int], ...]]]:
    """Flags of the guest's DRHD, and the paths in its scope."""
    memory = PhysicalMemory([Slot("ram", 0, guest.ram)])
    params = read_boot_params(memory, platform.ZERO_PAGE)
    dmar = AcpiTables(memory, params.rsdp, guest.lines.append).dmar()
    assert dmar is not None
    [unit] = dmar.units
    return unit.flags, [scope.path for scope in unit.scopes]


def test_behind_the_viommu_nothing_is_mapped_and_past_it_all_is() -> None:
    guest = WholeGuest(VIOMMU, bypassing=SLOTS[1:])
    assert (_mapped(guest, 1), _mapped(guest, 2)) == (GUEST_RAM, GUEST_RAM)
    root = GUEST_RAM - 4096
    guest.machine.write(platform.REMAPPING_UNIT_BASE + Reg.RTADDR, 8, root)
    for command in (Command.SRTP, Command.TE):
        guest.machine.write(platform.REMAPPING_UNIT_BASE + Reg.GCMD, 4, command)
    # The guest translates, by an empty table.
    assert (_mapped(guest, 1), _mapped(guest, 2)) == (0, GUEST_RAM)
    iommu = guest.kernel.iommu
    assert iommu is not None
    assert iommu.attached(guest.kernel.device(0x100)) is not iommu.attached(guest.kernel.device(0x200))
    assert len(guest.machine.shadows) == 1


def test_all_that_bypass_share_one_address_space() -> None:
    guest = WholeGuest(VIOMMU, bypassing=SLOTS)
    iommu = guest.kernel.iommu
    assert iommu is not None
    assert iommu.attached(guest.kernel.device(0x100)) is iommu.attached(guest.kernel.device(0x200))
    assert _mapped(guest, 1) == GUEST_RAM and not guest.machine.shadows


@pytest.mark.parametrize(
    ("bypassing", "flags", "paths"),
    [
        ((), DrhdFlags.INCLUDE_PCI_ALL, []),
        (SLOTS[1:], 0, [((0, 0),), ((SLOTS[0], 0),)]),
        (SLOTS, 0, [((0, 0),)]),
    ],
)
def test_the_dmar_table_says_what_the_unit_is_for(bypassing: tuple[int, ...], flags: int, paths: list[object]) -> None:
    assert _scopes(WholeGuest(VIOMMU, bypassing=bypassing)) == (flags, paths)


def test_an_emulated_card_is_in_the_scope_beside_one_that_bypasses() -> None:
    guest = WholeGuest(VIOMMU, bypassing=SLOTS, virtio=(VirtioNet("vnet0", 7, bytes(6)),))
    assert _scopes(guest) == (0, [((0, 0),), ((7, 0),)])
    assert guest.machine.read(guest.config(7, pci.VENDOR_ID), 4) == 0x1041_1AF4


def test_the_interrupts_of_a_device_that_bypasses_are_not_remapped() -> None:
    guest = WholeGuest(UnitConfig(caching_mode=True, intremap=True), bypassing=SLOTS[1:])
    remap = guest.machine._remap
    message = (0xFEE0_0000, 0x41)
    assert remap(1 << 8 | SLOTS[1] << 3, *message, record=False) == message
    assert remap(SLOTS[0] << 3, *message, record=False) == message, "nor are others before the guest asks for it"
