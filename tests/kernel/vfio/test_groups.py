"""Containers, groups and devices: who may open what, in which order, and what a close does."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EBADFD, EBUSY, EINVAL, ENODEV, ENOENT, ENOTTY, EPERM
from typing import Any

import pytest

from tests.kernel.users import ROOT
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec import pci
from viommu_actors.spec.vfio import GroupFlags

PAGE = 4096


def refused(code: int, call: Callable[..., object], *args: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == code, caught.value
    return str(caught.value.strerror)


def test_second_open_of_a_group_is_ebusy(kernel: Any) -> None:
    vfio = Vfio(kernel)
    first, second = UserProcess("first", capabilities=ROOT), UserProcess("second", capabilities=ROOT)
    group = vfio.open_group(first, 1)
    refused(EBUSY, vfio.open_group, second, 1)
    refused(EBUSY, vfio.open_group, first, 1)
    vfio.close(first, group)
    vfio.open_group(second, 1)


def test_group_without_a_vfio_device_is_enoent(boot: Any) -> None:
    kernel = boot("vfio-pci.ids=01:00.0")
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    refused(ENOENT, vfio.open_group, process, 2)
    refused(ENOENT, vfio.open_group, process, 99)
    vfio.bind(0x200)
    vfio.open_group(process, 2)
    assert vfio.group_of("0000:02:00.1") == 2
    refused(ENODEV, vfio.group_of, "0000:05:00.0")
    refused(ENODEV, vfio.group_of, "nonsense")


def test_without_an_iommu_there_are_no_groups(kernel: Any) -> None:
    kernel.iommu = None
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    refused(ENOENT, vfio.open_group, process, 1)
    refused(ENODEV, vfio.group_of, "0000:01:00.0")


def test_kernel_driver_in_the_group_makes_it_not_viable(kernel: Any) -> None:
    kernel.drivers[0x201] = object()
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    refused(EBUSY, vfio.bind, 0x201)
    refused(ENODEV, vfio.bind, 0x500)
    group, container = vfio.open_group(process, 2), vfio.open_container(process)
    assert vfio.group_status(process, group) == GroupFlags(0)
    assert "02:00.1" in refused(EPERM, vfio.set_container, process, group, container)
    del kernel.drivers[0x201]
    assert vfio.group_status(process, group) == GroupFlags.VIABLE
    vfio.set_container(process, group, container)
    assert vfio.group_status(process, group) == GroupFlags.VIABLE | GroupFlags.CONTAINER_SET


def test_set_iommu_order(kernel: Any) -> None:
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    container, group = vfio.open_container(process), vfio.open_group(process, 1)
    refused(EINVAL, vfio.set_iommu, process, container)
    refused(EINVAL, vfio.map_dma, process, container, 3, 0, 0, PAGE)
    refused(EINVAL, vfio.unmap_dma, process, container, 0, PAGE)
    refused(EINVAL, vfio.get_device, process, group, "0000:01:00.0")
    refused(EINVAL, vfio.unset_container, process, group)
    vfio.set_container(process, group, container)
    refused(EINVAL, vfio.set_container, process, group, container)
    refused(EINVAL, vfio.get_device, process, group, "0000:01:00.0")
    refused(ENODEV, vfio.set_iommu, process, container, 8)
    vfio.set_iommu(process, container)
    refused(EINVAL, vfio.set_iommu, process, container)
    refused(ENODEV, vfio.get_device, process, group, "0000:02:00.0")
    vfio.get_device(process, group, "0000:01:00.0")


def test_descriptors_of_the_wrong_kind(kernel: Any) -> None:
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    container, group, event = vfio.open_container(process), vfio.open_group(process, 1), vfio.eventfd(process)
    refused(EBADF, vfio.set_container, process, 77, container)
    refused(EBADF, vfio.close, process, 77)
    refused(EBADFD, vfio.set_container, process, group, event)
    refused(ENOTTY, vfio.set_iommu, process, group)
    vfio.close(process, event)
    refused(EBADF, vfio.set_container, process, group, event)


def test_a_group_lasts_as_long_as_its_devices(user: Any, kernel: Any) -> None:
    device = user.open()
    user.map(0, PAGE)
    refused(EBUSY, user.vfio.unset_container, user.process, user.group)
    user.vfio.close(user.process, user.group)
    user.vfio.close(user.process, user.container)
    refused(EBUSY, user.vfio.open_group, UserProcess("second", capabilities=ROOT), 1)
    assert kernel.iommu.domains[0].pages
    user.vfio.close(user.process, device)
    assert not kernel.iommu.domains
    user.vfio.open_group(UserProcess("second", capabilities=ROOT), 1)


def test_release_stops_dma_resets_then_detaches(user: Any, kernel: Any) -> None:
    device = user.open()
    other = user.open()
    user.map(0, PAGE)
    event = user.vfio.eventfd(user.process)
    user.vfio.set_irqs(user.process, device, 1, 0, (event,))
    user.vfio.mmap_region(user.process, other, 0)
    kernel.pci[0].set_bus_master(True)
    kernel.machine.events.clear()
    user.vfio.release(user.process)
    assert kernel.machine.events == ["flr 01:00.0 command 0x400", "detach 01:00.0"]
    assert not kernel.pci[0].config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER
    assert not kernel.iommu.domains
    assert not user.process.files
    refused(14, user.process.translate, user.vaddr, PAGE)
    user.vfio.open_group(UserProcess("second", capabilities=ROOT), 1)


def test_release_of_a_function_that_is_gone(user: Any, kernel: Any) -> None:
    user.open()
    kernel.machine.deaf = True
    user.vfio.release(user.process)
    assert not kernel.iommu.domains
    assert "vfio-pci: 0000:01:00.0 is gone" in kernel.machine.lines
