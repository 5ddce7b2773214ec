"""What a user sees of an assigned function, and what of it he may change."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EFAULT, EINVAL, EIO, ENOTTY
from typing import Any

import pytest

from tests.kernel.users import ROOT
from viommu_actors.kernel.process import UserProcess
from viommu_actors.spec import pci
from viommu_actors.spec.vfio import DeviceFlags, IrqFlags, RegionFlags

CONFIG, MSI = 7, 1
PAGE = 4096
BAR_ADDRESS = 0xC000_0000
MIB = 1 << 20


def refused(code: int, call: Callable[..., object], *args: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == code, caught.value


class Open:
    """An open device, its process bound in."""

    def __init__(self, user: Any, kernel: Any) -> None:
        self.user, self.kernel = user, kernel
        self.fd = user.open()
        self.function = kernel.pci[0]
        self.msi = self.function.capability(pci.CapabilityId.MSI)
        self.express = self.function.capability(pci.CapabilityId.PCI_EXPRESS)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.user.vfio, name)
        return lambda *arguments: method(self.user.process, self.fd, *arguments)

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.region_read(CONFIG, offset, size), "little")

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.region_write(CONFIG, offset, value.to_bytes(size, "little"))


@pytest.fixture
def device(user: Any, kernel: Any) -> Open:
    return Open(user, kernel)


def test_open_resets_with_bus_mastering_off(user: Any, kernel: Any) -> None:
    kernel.pci[0].set_bus_master(True)
    device = Open(user, kernel)
    assert kernel.machine.events == ["flr 01:00.0 command 0x400"]
    assert kernel.iommu.resets == [kernel.pci[0].bdf]
    assert device.config(pci.COMMAND, 2) == pci.Command.MEMORY


def test_info(device: Open) -> None:
    assert device.device_info() == (DeviceFlags.PCI | DeviceFlags.RESET, 9, 5)
    assert device.region_info(0)[:2] == (RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP, MIB)
    assert device.region_info(1)[:2] == (0, 0)
    assert device.region_info(CONFIG)[:2] == (RegionFlags.READ | RegionFlags.WRITE, 4096)
    refused(EINVAL, device.region_info, 9)
    assert device.irq_info(MSI).count == 1
    assert device.irq_info(MSI).flags & IrqFlags.EVENTFD
    assert device.irq_info(0).count == 0
    refused(EINVAL, device.irq_info, 5)


def test_config_reads_through(device: Open) -> None:
    whole = device.region_read(CONFIG, 0, 4096)
    assert len(whole) == 4096
    assert device.config(0, 4) == 0x11E8_1234
    assert whole[:4] == bytes.fromhex("3412e811")
    assert device.region_read(CONFIG, 1, 5) == whole[1:6]
    refused(EINVAL, device.region_read, CONFIG, 4090, 8)
    refused(EINVAL, device.region_write, CONFIG, 4096, b"x")


def test_bars_are_virtual(device: Open) -> None:
    assert device.config(pci.BAR0, 4) == BAR_ADDRESS
    device.set_config(pci.BAR0, 4, 0xFFFF_FFFF)
    assert device.config(pci.BAR0, 4) == 0xFFF0_0000
    device.set_config(pci.BAR0, 4, 0xDEAD_BEEF)
    assert device.config(pci.BAR0, 4) == 0xDEA0_0000
    device.set_config(pci.BAR0 + 4, 4, 0xFFFF_FFFF)
    assert device.config(pci.BAR0 + 4, 4) == 0
    assert device.function.config_read(pci.BAR0, 4) == BAR_ADDRESS


def test_identity_is_not_writable(device: Open) -> None:
    device.set_config(0, 4, 0)
    device.set_config(pci.ROM_ADDRESS, 4, 0xFFFF_FFFF)
    assert device.config(0, 4) == 0x11E8_1234
    assert device.config(pci.ROM_ADDRESS, 4) == 0
    assert device.config(pci.INTERRUPT_PIN, 1) == 0


def test_bus_master_is_the_users(device: Open) -> None:
    device.set_config(pci.COMMAND, 4, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    assert device.function.config_read(pci.COMMAND, 2) == pci.Command.MEMORY | pci.Command.BUS_MASTER


def test_a_write_beside_status_does_not_clear_it(device: Open, kernel: Any) -> None:
    kernel.machine.spaces[0x100].set(pci.STATUS, 2, pci.Status.RECEIVED_MASTER_ABORT | pci.Status.CAPABILITIES)
    device.set_config(pci.COMMAND, 4, pci.Command.MEMORY)
    assert device.config(pci.STATUS, 2) & pci.Status.RECEIVED_MASTER_ABORT


def test_bars_need_memory_decoding(device: Open) -> None:
    device.set_config(pci.COMMAND, 2, 0)
    assert device.config(pci.COMMAND, 2) == 0
    assert not device.function.config_read(pci.COMMAND, 2) & pci.Command.MEMORY
    refused(EIO, device.region_read, 0, 0, 4)
    refused(EIO, device.region_write, 0, 0, b"abcd")
    device.set_config(pci.COMMAND, 2, pci.Command.MEMORY)
    device.region_read(0, 0, 4)


def test_msi_address_and_data_are_the_kernels(device: Open, user: Any, kernel: Any) -> None:
    event = user.vfio.eventfd(user.process)
    device.set_irqs(MSI, 0, (event,))
    real = device.function.config_read(device.msi + pci.MSI_DATA_64, 2)
    assert device.function.config_read(device.msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    device.set_config(device.msi + pci.MSI_ADDRESS, 4, 0xDEAD_BEEC)
    device.set_config(device.msi + pci.MSI_DATA_64, 2, 0x1234)
    device.set_config(device.msi + pci.MSI_CONTROL, 2, 0)
    assert device.config(device.msi + pci.MSI_ADDRESS, 4) == 0xDEAD_BEEC
    assert device.config(device.msi + pci.MSI_DATA_64, 2) == 0x1234
    assert device.function.config_read(device.msi + pci.MSI_ADDRESS, 4) == 0xFEE0_0000
    assert device.function.config_read(device.msi + pci.MSI_DATA_64, 2) == real
    assert device.function.config_read(device.msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE


def test_msi_enable_shows_only_while_it_is_set_by_ioctl(device: Open, user: Any) -> None:
    device.set_config(device.msi + pci.MSI_CONTROL, 2, pci.MSI_ENABLE)
    assert not device.config(device.msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    assert not device.function.config_read(device.msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    device.set_irqs(MSI, 0, (user.vfio.eventfd(user.process),))
    device.set_config(device.msi + pci.MSI_CONTROL, 2, pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK)
    control = device.config(device.msi + pci.MSI_CONTROL, 2)
    assert control & pci.MSI_ENABLE
    assert not control & pci.MSI_MULTIPLE_ENABLE_MASK


def test_interrupts_reach_the_eventfd(device: Open, user: Any, kernel: Any) -> None:
    woken: list[tuple[str, int]] = []
    user.process._notify = lambda name, fd: woken.append((name, fd))
    event = user.vfio.eventfd(user.process)
    device.set_irqs(MSI, 0, (event,))
    vector = device.function.config_read(device.msi + pci.MSI_DATA_64, 2)
    kernel.irq.dispatch(vector)
    assert woken == [("user", event)]
    device.set_irqs(MSI, 0, (-1,))
    kernel.irq.dispatch(vector)
    assert len(woken) == 1
    other = user.vfio.eventfd(user.process)
    device.set_irqs(MSI, 0, (other,))
    kernel.irq.dispatch(vector)
    assert woken[1:] == [("user", other)]
    device.set_irqs(MSI, 0, ())
    assert not device.function.config_read(device.msi + pci.MSI_CONTROL, 2) & pci.MSI_ENABLE
    kernel.irq.dispatch(vector)
    assert kernel.counters["spurious_interrupts"] == 1


def test_interrupts_that_are_not_offered(device: Open, user: Any) -> None:
    event = user.vfio.eventfd(user.process)
    refused(EINVAL, device.set_irqs, 0, 0, (event,))
    refused(EINVAL, device.set_irqs, MSI, 1, (event,))
    refused(EINVAL, device.set_irqs, MSI, 0, (event, event))
    refused(EINVAL, device.set_irqs, 2, 0, (event,))
    refused(EINVAL, device.set_irqs, 99, 0, (event,))
    refused(EINVAL, device.set_irqs, MSI, 0, (user.container,))
    refused(EBADF, device.set_irqs, MSI, 0, (99,))


def test_bar_access(device: Open, kernel: Any) -> None:
    device.region_write(0, 3, bytes(range(1, 14)))
    assert kernel.machine.bar[:17] == bytes(3) + bytes(range(1, 14)) + b"\0"
    assert device.region_read(0, 3, 13) == bytes(range(1, 14))
    assert device.region_read(0, MIB - 4, 16) == bytes(4)
    refused(EINVAL, device.region_read, 0, MIB, 4)
    refused(EINVAL, device.region_read, 1, 0, 4)
    refused(EINVAL, device.region_write, 8, 0, b"abcd")


def test_mmap_lasts_until_the_device_is_closed(device: Open, user: Any) -> None:
    gone: list[int] = []
    user.process.mmu_notifiers.append(lambda area: gone.append(area.start))
    vaddr = device.mmap_region(0)
    assert user.process.translate(vaddr + PAGE, PAGE) == [(BAR_ADDRESS + PAGE, PAGE)]
    refused(EINVAL, device.mmap_region, CONFIG)
    refused(EINVAL, device.mmap_region, 2)
    second = user.open()
    user.vfio.close(user.process, second)
    assert user.process.translate(vaddr, PAGE)
    user.vfio.close(user.process, device.fd)
    refused(EFAULT, user.process.translate, vaddr, PAGE)
    assert gone == [vaddr]


def test_reset_keeps_the_configuration(device: Open, user: Any, kernel: Any) -> None:
    device.set_irqs(MSI, 0, (user.vfio.eventfd(user.process),))
    device.set_config(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    before = kernel.machine.spaces[0x100].dump()
    kernel.machine.events.clear()
    device.reset()
    assert kernel.machine.events == ["flr 01:00.0 command 0x400"]
    assert kernel.machine.spaces[0x100].dump() == before


def test_flr_by_config_space_is_a_reset(device: Open, kernel: Any) -> None:
    kernel.machine.events.clear()
    control = device.express + pci.EXP_DEVICE_CONTROL
    device.set_config(control, 2, device.config(control, 2) | pci.DEVCTL_FLR)
    assert kernel.machine.events == ["flr 01:00.0 command 0x400"]
    assert not device.config(control, 2) & pci.DEVCTL_FLR
    assert device.config(pci.BAR0, 4) == BAR_ADDRESS


def test_payload_is_virtual_and_read_request_has_a_floor(device: Open) -> None:
    control = device.express + pci.EXP_DEVICE_CONTROL
    device.function.config_write(control, 2, 1 << pci.DEVCTL_MAX_PAYLOAD_SHIFT | 2 << pci.DEVCTL_MAX_READ_SHIFT)
    device.set_config(control, 2, 5 << pci.DEVCTL_MAX_PAYLOAD_SHIFT)
    assert device.config(control, 2) & pci.DEVCTL_MAX_PAYLOAD_MASK == 5 << pci.DEVCTL_MAX_PAYLOAD_SHIFT
    real = device.function.config_read(control, 2)
    assert real & pci.DEVCTL_MAX_PAYLOAD_MASK == 1 << pci.DEVCTL_MAX_PAYLOAD_SHIFT
    assert real & pci.DEVCTL_MAX_READ_MASK == 1 << pci.DEVCTL_MAX_READ_SHIFT


def test_device_without_flr(user: Any, kernel: Any) -> None:
    vfio, process = user.vfio, UserProcess("other", capabilities=ROOT)
    container, group = vfio.open_container(process), vfio.open_group(process, 2)
    vfio.set_container(process, group, container)
    vfio.set_iommu(process, container)
    device = vfio.get_device(process, group, "0000:02:00.1")
    assert vfio.device_info(process, device).flags == DeviceFlags.PCI
    refused(EINVAL, vfio.reset, process, device)
    vfio.release(process)


def test_reset_of_a_deaf_function_is_enotty(device: Open, kernel: Any) -> None:
    kernel.machine.deaf = True
    refused(ENOTTY, device.reset)
