"""Devices without an IOMMU group: VFIO's no-iommu mode, UIO, and how sysfs hands them from driver to driver."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, ENOTTY, EPERM
from typing import Any

import pytest

from tests.kernel.vfio.conftest import BAR_ADDRESS, BAR_SIZE, EDU, RAM
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.sysfs import Sysfs
from viommu_actors.kernel.uio import Uio
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec import pci
from viommu_actors.spec.privileges import Capability
from viommu_actors.spec.vfio import IommuType, RegionIndex

NAME = "0000:01:00.0"
UNSAFE = "vfio.enable_unsafe_noiommu_mode=1"


def refused(code: int, call: Callable[..., object], *args: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == code, caught.value
    return str(caught.value.strerror)


def root() -> UserProcess:
    return UserProcess("root", capabilities=frozenset(Capability))


class Without:
    """A kernel without IOMMU, its drivers for user processes, and a process of root."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        kernel.iommu = None
        self.vfio, self.uio, self.process = Vfio(kernel), Uio(kernel), root()
        self.sysfs = Sysfs(kernel, self.vfio, self.uio)

    def bind(self, driver: str, name: str = NAME) -> None:
        self.sysfs.bind(self.process, name, driver)

    def driver(self) -> str:
        [driver] = [each.driver for each in self.sysfs.devices() if each.name == NAME]
        return driver

    def container(self) -> tuple[int, int]:
        """A container with an IOMMU that is none, and its group."""
        vfio, process = self.vfio, self.process
        container = vfio.open_container(process)
        group = vfio.open_noiommu_group(process, vfio.group_of(NAME))
        vfio.set_container(process, group, container)
        vfio.set_iommu(process, container, IommuType.NOIOMMU)
        return container, group


def test_vfio_takes_no_device_without_a_group(boot: Any) -> None:
    user = Without(boot(""))
    assert "enable_unsafe_noiommu_mode" in refused(EINVAL, user.bind, "vfio-pci")
    assert user.driver() == "" and not user.vfio.noiommu_mode and not user.kernel.taints
    refused(ENODEV, user.vfio.group_of, NAME)


def test_unsafe_mode_makes_a_group_and_taints_the_kernel(boot: Any) -> None:
    user = Without(boot(UNSAFE))
    user.bind("vfio-pci")
    assert user.driver() == "vfio-pci" and user.kernel.taints == {"U"}
    assert [line for line in user.kernel.machine.lines if "Adding kernel taint" in line]
    number = user.vfio.group_of(NAME)
    refused(ENOENT, user.vfio.open_group, user.process, number)
    refused(ENOENT, user.vfio.open_noiommu_group, user.process, number + 1)
    user.vfio.open_noiommu_group(user.process, number)
    refused(EBUSY, user.vfio.open_noiommu_group, user.process, number)
    refused(EBUSY, user.bind, "")
    user.vfio.release(user.process)
    user.bind("")
    assert user.driver() == ""
    refused(ENOENT, user.vfio.open_noiommu_group, user.process, number)


def test_no_iommu_needs_the_capability(boot: Any) -> None:
    user = Without(boot(UNSAFE))
    user.bind("vfio-pci")
    number = user.vfio.group_of(NAME)
    reason = refused(EPERM, user.vfio.open_noiommu_group, UserProcess("nobody"), number)
    assert "CAP_SYS_RAWIO" in reason
    user.vfio.open_noiommu_group(UserProcess("raw", capabilities=frozenset({Capability.SYS_RAWIO})), number)


def test_a_device_without_iommu_is_used_without_any_map(boot: Any) -> None:
    user = Without(boot(UNSAFE))
    user.bind("vfio-pci")
    container, group = user.container()
    vfio, process = user.vfio, user.process
    vaddr = process.map_memory(RAM, 2 << 20)
    refused(ENOTTY, vfio.map_dma, process, container, 3, vaddr, 0, 4096)
    refused(ENOTTY, vfio.unmap_dma, process, container, 0, 4096)
    device = vfio.get_device(process, group, NAME)
    vfio.region_write(process, device, RegionIndex.CONFIG, pci.COMMAND, b"\x06\x00")
    assert user.kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    assert process.area(vfio.mmap_region(process, device, 0), BAR_SIZE).physical == BAR_ADDRESS
    assert [line for line in user.kernel.machine.lines if "opened by user (root)" in line]
    vfio.close(process, device)
    assert not user.kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER


@pytest.mark.parametrize("kind", [IommuType.TYPE1, IommuType.TYPE1V2])
def test_c8_no_iommu_has_no_container_that_maps(boot: Any, kind: int) -> None:
    """What a hypervisor needs to assign a device is refused."""
    user = Without(boot(UNSAFE))
    user.bind("vfio-pci")
    container = user.vfio.open_container(user.process)
    group = user.vfio.open_noiommu_group(user.process, user.vfio.group_of(NAME))
    user.vfio.set_container(user.process, group, container)
    refused(ENODEV, user.vfio.set_iommu, user.process, container, kind)
    refused(EINVAL, user.vfio.get_device, user.process, group, NAME)


def test_groups_with_and_without_an_iommu_share_no_container(boot: Any) -> None:
    kernel = boot(f"{UNSAFE} vfio-pci.ids=02:00.0")
    numbers = iter((7, 8))
    kernel.iommu.groups.pop(1)
    kernel.iommu.reserve_group = lambda: next(numbers)
    vfio, process = Vfio(kernel), root()
    vfio.bind(EDU)
    assert vfio.group_of(NAME) == 7 and vfio.group_of("0000:02:00.0") == 2
    container = vfio.open_container(process)
    without, behind = vfio.open_noiommu_group(process, 7), vfio.open_group(process, 2)
    vfio.set_container(process, behind, container)
    refused(EPERM, vfio.set_container, process, without, container)
    refused(ENODEV, vfio.set_iommu, process, container, IommuType.NOIOMMU)


def test_a_device_with_a_group_is_no_device_without(kernel: Any) -> None:
    kernel.cmdline.flags.add("vfio.enable_unsafe_noiommu_mode")
    vfio, process = Vfio(kernel), root()
    vfio.bind(EDU)
    refused(ENOENT, vfio.open_noiommu_group, process, vfio.group_of(NAME))
    assert not kernel.taints


def test_what_is_left_to_vfio_at_boot_has_its_group_then(boot: Any) -> None:
    kernel = boot(f"{UNSAFE} vfio-pci.ids=01:00.0")
    kernel.iommu = None
    assert Vfio(kernel).group_of(NAME) == 0 and kernel.taints == {"U"}


# --- UIO


def test_uio_gives_registers_and_no_more(boot: Any) -> None:
    user = Without(boot(""))
    refused(ENODEV, user.uio.open, user.process, NAME)
    user.bind("uio_pci_generic")
    assert user.driver() == "uio_pci_generic"
    process = user.process
    refused(EACCES, user.uio.open, UserProcess("nobody"), NAME)
    uio = user.uio.open(process, NAME)
    assert user.uio.config_read(process, uio, pci.VENDOR_ID, 2) == b"\x34\x12"
    assert not user.kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    user.uio.config_write(process, uio, pci.COMMAND, b"\x06\x00")
    assert user.kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    for offset, size in ((-1, 1), (4095, 2), (0, 0)):
        refused(EINVAL, user.uio.config_read, process, uio, offset, size)
    refused(ENOENT, user.uio.mmap, process, uio, 1)
    vaddr = user.uio.mmap(process, uio, 0)
    assert process.area(vaddr, BAR_SIZE).physical == BAR_ADDRESS
    refused(EBUSY, user.bind, "vfio-pci")
    process.close(uio)
    assert not user.kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    with pytest.raises(OSError, match="bad address"):
        process.area(vaddr, 1)
    user.bind("")
    refused(ENODEV, user.uio.open, process, NAME)


def test_sysfs_is_roots_and_knows_its_drivers(boot: Any) -> None:
    user = Without(boot(""))
    refused(EACCES, user.sysfs.bind, UserProcess("nobody"), NAME, "uio_pci_generic")
    refused(ENODEV, user.bind, "uio_pci_generic", "0000:07:00.0")
    refused(ENODEV, user.bind, "uio_pci_generic", "nonsense")
    info = user.sysfs.devices()[0]
    assert info[:6] == (NAME, 0x1234, 0x11E8, "", None, None)
    assert info.bars == (BAR_SIZE, 0, 0, 0, 0, 0)


def test_a_function_that_vfio_does_not_have_is_no_part_of_what_a_process_has_open(boot: Any) -> None:
    kernel = boot("intel_iommu=on vfio-pci.ids=02:00.0")
    vfio, uio, process = Vfio(kernel), Uio(kernel), root()
    uio.bind(0x201)
    vfio.open_group(process, 2)
    Sysfs(kernel, vfio, uio).bind(process, "0000:02:00.1", "")
    assert not uio.is_bound(0x201)
    refused(EBUSY, Sysfs(kernel, vfio, uio).bind, process, "0000:02:00.0", "")


def test_a_group_is_roots(kernel: Any) -> None:
    vfio, nobody = Vfio(kernel), UserProcess("nobody")
    refused(ENOENT, vfio.open_group, nobody, 7)
    assert "CAP_DAC_OVERRIDE" in refused(EACCES, vfio.open_group, nobody, 1)
    vfio.open_group(UserProcess("owner", capabilities=frozenset({Capability.DAC_OVERRIDE})), 1)


def test_uio_makes_a_group_not_viable_and_is_kept_out_of_a_users(kernel: Any) -> None:
    vfio, uio, process = Vfio(kernel), Uio(kernel), root()
    uio.bind(0x201)
    group, container = vfio.open_group(process, 2), vfio.open_container(process)
    assert "02:00.1" in refused(EPERM, vfio.set_container, process, group, container)
    uio.unbind(0x201)
    vfio.set_container(process, group, container)
    refused(EBUSY, uio.bind, 0x201)
