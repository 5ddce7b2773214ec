"""MSI-X of an assigned function, from a real device through a real unit to the user's eventfds."""

from __future__ import annotations

from errno import EINVAL, ENOSPC, EPERM
from typing import Any

import pytest

from tests.devices.rig import Rig
from tests.kernel.users import ROOT
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.kernel.process import EventFd, UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.pci import config_space
from viommu_actors.spec import pci, vfio
from viommu_actors.spec.nic import Vector
from viommu_actors.spec.vfio import IrqFlags, IrqIndex, RegionFlags

MSI, MSIX = IrqIndex.MSI, IrqIndex.MSIX
CONFIG, TABLE = vfio.RegionIndex.CONFIG, vfio.RegionIndex.BAR2
SLOT, FUNCTION = 1, 0x100


def a_nic(send: Any, log: Any) -> Endpoint:
    return Nic(send, log, mac=bytes(6))


class Chatty(Endpoint):
    """A function with 4 MSI messages."""

    def __init__(self, send: Any, log: Any) -> None:
        config = config_space.endpoint_header(0x1234, 0x0003, pci.ClassCode.UNCLASSIFIED_OTHER)
        config.add_bar(0, 0x1000)
        config_space.add_msi(config, messages=4)
        config_space.add_express(config, pci.PortType.ENDPOINT, 4096)
        super().__init__(config, send, log)


class User:
    """A process that has 01:00.0 open, and hears of its eventfds by name."""

    def __init__(self, options: str = "", *, intremap: bool = True, device: Any = a_nic) -> None:
        self.rig = Rig({SLOT: device}, f"intel_iommu=on vfio-pci.ids=01:00.0 {options}", intremap=intremap)
        self.endpoint = self.rig.endpoints[SLOT]
        self.function = self.rig.kernel.device(FUNCTION)
        self.woken: list[int] = []
        self.process = UserProcess("user", lambda name, descriptor: self.woken.append(descriptor), ROOT)
        self._vfio = Vfio(self.rig.kernel)
        container = self._vfio.open_container(self.process)
        group = self._vfio.open_group(self.process, self._vfio.group_of("0000:01:00.0"))
        self._vfio.set_container(self.process, group, container)
        self._vfio.set_iommu(self.process, container)
        self.fd = self._vfio.get_device(self.process, group, "0000:01:00.0")
        self.set_command(pci.Command.MEMORY | pci.Command.BUS_MASTER)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._vfio, name)
        return lambda *arguments: method(self.process, self.fd, *arguments)

    def eventfds(self, count: int) -> list[int]:
        return [self._vfio.eventfd(self.process) for _ in range(count)]

    def set_command(self, value: int) -> None:
        self.region_write(CONFIG, pci.COMMAND, value.to_bytes(2, "little"))

    def raise_(self, *vectors: int) -> list[int]:
        """The device raises these; eventfds that were signalled."""
        self.woken.clear()
        for vector in vectors:
            self.endpoint.interrupt(vector)
        self.rig.wait_for_interrupt(0)
        return list(self.woken)

    @property
    def control(self) -> int:
        """MSI-X control as the user reads it."""
        offset = self.function.capability(pci.CapabilityId.MSIX)
        assert offset is not None
        return int.from_bytes(self.region_read(CONFIG, offset + pci.MSIX_CONTROL, 2), "little")


@pytest.fixture
def user() -> User:
    return User()


def refused(code: int, user: User, *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        user.set_irqs(*arguments)
    assert caught.value.errno == code, caught.value


def test_with_remapping_no_unsafe_interrupts_are_to_be_allowed() -> None:
    User()
    User("vfio_iommu_type1.allow_unsafe_interrupts=1", intremap=False)
    for options, intremap in (("", False), ("intremap=off", True)):
        with pytest.raises(OSError) as caught:
            User(options, intremap=intremap)
        assert caught.value.errno == EPERM and "allow_unsafe_interrupts" in str(caught.value)


def test_info(user: User) -> None:
    assert user.irq_info(MSIX).count == 3
    assert user.irq_info(MSIX).flags == IrqFlags.EVENTFD
    assert user.irq_info(MSI).count == 1
    assert user.region_info(TABLE)[:2] == (RegionFlags.READ | RegionFlags.WRITE, 4096)
    with pytest.raises(OSError) as caught:
        user.mmap_region(TABLE)
    assert caught.value.errno == EINVAL
    assert user.region_info(0).flags & RegionFlags.MMAP


def test_each_vector_signals_its_eventfd(user: User) -> None:
    events = user.eventfds(3)
    user.set_irqs(MSIX, 0, tuple(events))
    for vector in (Vector.OTHER, Vector.RECEIVE, Vector.TRANSMIT):
        assert user.raise_(vector) == [events[vector]]
    assert user.control == pci.MSIX_ENABLE | 2
    user.set_irqs(MSIX, 0, ())
    assert user.control == 2
    assert user.raise_(0, 1, 2) == []
    assert user.rig.kernel.iommu is not None
    assert user.rig.kernel.iommu.take_faults() == ([], 0)


def test_vectors_come_and_go_in_any_order(user: User) -> None:
    first, second, third = user.eventfds(3)
    user.set_irqs(MSIX, 2, (third,))
    user.set_irqs(MSIX, 0, (first,))
    assert user.raise_(2, 0) == [third, first]
    user.set_irqs(MSIX, 2, (-1,))
    assert user.raise_(2, 0) == [first]
    user.set_irqs(MSIX, 0, (second, first, -1))
    assert user.raise_(0, 1) == [second, first]


def test_an_interrupt_of_a_vector_that_is_not_set_waits_in_the_device(user: User) -> None:
    user.set_irqs(MSIX, 0, (-1, -1, -1))
    assert user.control == pci.MSIX_ENABLE | 2
    assert user.raise_(1) == []
    assert user.region_read(TABLE, 0x800, 8) == b"\2" + bytes(7)
    (event,) = user.eventfds(1)
    user.woken.clear()
    user.set_irqs(MSIX, 1, (event,))
    user.rig.wait_for_interrupt(0)
    assert user.woken == [event]


def test_an_eventfd_with_an_irqfd_does_not_wake_the_process(user: User) -> None:
    (event,) = user.eventfds(1)
    injected: list[int] = []
    file = user.process.file(event, EventFd)
    file.irqfd = lambda: injected.append(1)
    user.set_irqs(MSIX, 1, (event,))
    assert user.raise_(1) == [] and injected == [1]


def test_the_table_is_the_kernels(user: User) -> None:
    (event,) = user.eventfds(1)
    user.set_irqs(MSIX, 0, (event,))
    held = user.region_read(TABLE, 0, 16)
    assert int.from_bytes(held[:4], "little") & 1 << 4, "remappable format"
    for offset in (0, 4, 8, 12, 0x800):
        user.region_write(TABLE, offset, b"\xff" * 4)
    user.region_write(TABLE, 0, bytes(64))
    assert user.region_read(TABLE, 0, 16) == held
    assert user.raise_(0) == [event]


def test_the_capability_is_the_kernels(user: User) -> None:
    offset = user.function.capability(pci.CapabilityId.MSIX)
    user.region_write(CONFIG, offset + pci.MSIX_CONTROL, (pci.MSIX_ENABLE).to_bytes(2, "little"))
    assert user.control == 2
    user.set_irqs(MSIX, 0, tuple(user.eventfds(1)))
    user.region_write(CONFIG, offset + pci.MSIX_CONTROL, bytes(2))
    assert user.control == pci.MSIX_ENABLE | 2


def test_what_is_refused(user: User) -> None:
    events = tuple(user.eventfds(4))
    refused(EINVAL, user, MSIX, 0, events)
    refused(EINVAL, user, MSIX, 3, events[:1])
    refused(EINVAL, user, MSIX, -1, events[:1])
    user.set_irqs(MSIX, 0, events[:1])
    refused(EINVAL, user, MSI, 0, events[:1])
    refused(EINVAL, user, MSI, 0, ())
    user.set_irqs(MSIX, 0, ())
    user.set_irqs(MSI, 0, events[:1])
    refused(EINVAL, user, MSIX, 0, events[:1])
    assert user.raise_(2) == [events[0]], "MSI has one message for all"


def test_memory_decoding_off_does_not_keep_the_kernel_from_the_table(user: User) -> None:
    user.set_command(pci.Command.BUS_MASTER)
    (event,) = user.eventfds(1)
    user.set_irqs(MSIX, 2, (event,))
    assert not user.function.config_read(pci.COMMAND, 2) & pci.Command.MEMORY
    assert user.raise_(2) == [event]


def test_a_reset_keeps_the_interrupts(user: User) -> None:
    events = user.eventfds(2)
    user.set_irqs(MSIX, 0, tuple(events))
    user.reset()
    assert user.raise_(1, 0) == [events[1], events[0]]
    assert user.raise_(2) == []
    express = user.function.capability(pci.CapabilityId.PCI_EXPRESS)
    user.region_write(CONFIG, express + pci.EXP_DEVICE_CONTROL, pci.DEVCTL_FLR.to_bytes(2, "little"))
    assert user.raise_(1) == [events[1]]


def test_the_last_close_takes_everything_back(user: User) -> None:
    remapping = user.rig.kernel.irq.remapping
    assert remapping is not None
    user.set_irqs(MSIX, 0, tuple(user.eventfds(3)))
    message = user.region_read(TABLE, 0, 12)
    user._vfio.release(user.process)
    assert user.raise_(0, 1, 2) == []
    address, data = int.from_bytes(message[:8], "little"), int.from_bytes(message[8:], "little")
    assert user.rig.unit.remap_interrupt(FUNCTION, address, data) == (0x22,)
    assert remapping.allocate(FUNCTION, [0x40] * 256) == 0, "every entry is free"


def test_several_msi_messages() -> None:
    user = User(device=Chatty)
    assert user.irq_info(MSI).count == 4 and user.irq_info(MSI).flags & IrqFlags.NORESIZE
    assert user.irq_info(MSIX).count == 0
    events = user.eventfds(4)
    user.set_irqs(MSI, 0, tuple(events))
    assert user.raise_(3, 0, 2) == [events[3], events[0], events[2]]
    user.set_irqs(MSI, 1, (-1, events[0]))
    assert user.raise_(1, 2) == [events[0]]
    user.set_irqs(MSI, 0, ())
    user.set_irqs(MSI, 0, tuple(events[:2]))
    refused(EINVAL, user, MSI, 2, (events[2],))
    assert user.raise_(1) == [events[1]]
    user.set_irqs(MSI, 0, ())
    unprotected = User("vfio_iommu_type1.allow_unsafe_interrupts=1", intremap=False, device=Chatty)
    refused(ENOSPC, unprotected, MSI, 0, tuple(unprotected.eventfds(2)))
    unprotected.set_irqs(MSI, 0, tuple(unprotected.eventfds(1)))


def test_a_guest_sees_the_messages_that_it_is_given() -> None:
    user = User(device=Chatty)
    offset = user.function.capability(pci.CapabilityId.MSI)
    user.region_write(CONFIG, offset + pci.MSI_CONTROL, (0x7 << 4).to_bytes(2, "little"))
    control = int.from_bytes(user.region_read(CONFIG, offset + pci.MSI_CONTROL, 2), "little")
    assert control & pci.MSI_MULTIPLE_CAPABLE_MASK == 2 << 1
    assert control & pci.MSI_MULTIPLE_ENABLE_MASK == 2 << 4, "no more than are offered"
