"""A device that is gone: its hypervisor is asked for it, keeps nothing of it, and the guest reads ones where it was."""

from __future__ import annotations

import pytest

from tests.hypervisor.whole_guest import SLOTS, WholeGuest
from tests.kernel.fake_machine import MIB
from viommu_actors.spec import pci
from viommu_actors.vtd.config import UnitConfig

GONE, STAYS = 0x100, 0x200
BAR = 0xC000_0000


@pytest.fixture(params=["viommu", "none"])
def guest(request: pytest.FixtureRequest) -> WholeGuest:
    guest = WholeGuest(UnitConfig(caching_mode=True) if request.param == "viommu" else None)
    for number, slot in enumerate(SLOTS):
        guest.machine.write(guest.config(slot, pci.BAR0), 4, BAR + number * MIB)
        guest.machine.write(guest.config(slot, pci.COMMAND), 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        msi = guest.kernel.device(GONE).capability(pci.CapabilityId.MSI)
        assert msi is not None
        guest.machine.write(guest.config(slot, msi + pci.MSI_ADDRESS), 4, 0xFEE0_0000)
        guest.machine.write(guest.config(slot, msi + pci.MSI_DATA_64), 2, 0x31 + number)
        guest.machine.write(guest.config(slot, msi + pci.MSI_CONTROL), 2, pci.MSI_ENABLE)
    return guest


def _pull(guest: WholeGuest) -> None:
    """The device is gone; its user is asked for it, and the second time the kernel lets go of it."""
    guest.host.functions[0x08].children.clear()
    with pytest.raises(OSError, match=r"0000:01:00\.0 is in use"):
        guest.kernel.remove(GONE)
    guest.kernel.remove(GONE)


def test_the_guest_reads_ones_where_it_was_and_has_the_other(guest: WholeGuest) -> None:
    gone, stays = SLOTS
    assert guest.machine.read(guest.config(gone, 0), 4) == guest.machine.read(guest.config(stays, 0), 4)
    channels = len(guest.beneath.ports.lent)
    _pull(guest)
    assert guest.machine.read(guest.config(gone, 0), 4) == 0xFFFF_FFFF
    assert guest.machine.read(BAR, 4) == 0xFFFF_FFFF
    for address in (BAR, guest.config(gone, pci.COMMAND)):
        assert guest.machine.write(address, 2, 1) is False
    assert guest.machine.read(guest.config(stays, 0), 4) != 0xFFFF_FFFF
    assert 0 < len(guest.beneath.ports.lent) < channels
    guest.raise_all()
    assert guest.beneath.ports.injected == [0x32]


def test_nothing_of_it_reaches_memory_any_more(guest: WholeGuest) -> None:
    iommu = guest.kernel.iommu
    assert iommu is not None
    _pull(guest)
    assert not guest.host.dma_write(GONE, 0, b"residue")
    assert all(GONE not in domain.devices for domain in iommu.domains)
    assert {device.bdf for device in guest.kernel.pci} & {GONE, STAYS} == {STAYS}


def test_its_user_is_asked_once(guest: WholeGuest) -> None:
    guest.machine.eventfd_signalled = lambda eventfd: asked.append(eventfd)  # type: ignore[method-assign]
    asked: list[int] = []
    guest.host.functions[0x08].children.clear()
    for _ in range(3):
        with pytest.raises(OSError, match="in use"):
            guest.kernel.remove(GONE)
    assert len(asked) == 1
