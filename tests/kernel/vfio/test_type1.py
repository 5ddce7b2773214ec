"""Type1's rules, each errno by name."""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EFAULT, EINVAL, ENOSPC, EPERM
from typing import Any

import pytest

from tests.kernel.users import ROOT
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec.vtd import Access

PAGE = 4096
RAM = 0x10_0000_0000


def refused(code: int, call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert caught.value.errno == code, caught.value
    return str(caught.value.strerror)


@pytest.mark.parametrize(
    ("iova", "size"),
    [(0x10000, 0x4000), (0x0F000, 0x2000), (0x13000, PAGE), (0x13000, 0x8000), (0x11000, PAGE), (0x8000, 0x20000)],
)
def test_overlap_is_eexist(user: Any, iova: int, size: int) -> None:
    user.map(0x10000, 0x4000)
    refused(EEXIST, user.map, iova, size)
    assert user.unmap(0x10000, 0x4000) == 0x4000


def test_neighbours_do_not_overlap(user: Any) -> None:
    for iova in (0x10000, 0x0F000, 0x11000):
        user.map(iova, PAGE)
    assert user.unmap(0x0F000, 3 * PAGE) == 3 * PAGE


@pytest.mark.parametrize(
    ("iova", "size", "offset"), [(0x10001, PAGE, 0), (0x10000, PAGE - 1, 0), (0x10000, PAGE, 8), (0x10000, 0, 0)]
)
def test_misaligned_or_empty_map_is_einval(user: Any, iova: int, size: int, offset: int) -> None:
    refused(EINVAL, user.map, iova, size, user.vaddr + offset)


def test_wrapping_map_is_einval(user: Any) -> None:
    refused(EINVAL, user.map, (1 << 64) - PAGE, 2 * PAGE)
    refused(EINVAL, user.map, 0x10000, 2 * PAGE, (1 << 64) - PAGE)
    refused(EINVAL, user.map, -PAGE, PAGE)


@pytest.mark.parametrize("flags", [0, 4, 7, 1 << 31])
def test_flags_without_access_or_unknown_are_einval(user: Any, flags: int) -> None:
    refused(EINVAL, user.map, 0x10000, PAGE, flags=flags)


@pytest.mark.parametrize(
    ("iova", "size"), [(0xFEE0_0000, PAGE), (0xFEDF_F000, 2 * PAGE), (0xFEEF_F000, 2 * PAGE), (0xFE00_0000, 0x200_0000)]
)
def test_reserved_msi_region_is_einval(user: Any, iova: int, size: int) -> None:
    refused(EINVAL, user.map, iova, size)


def test_pages_around_the_msi_region_can_be_mapped(user: Any) -> None:
    user.map(0xFEDF_F000, PAGE)
    user.map(0xFEF0_0000, PAGE)


def test_beyond_the_address_width_is_einval(user: Any) -> None:
    refused(EINVAL, user.map, 1 << 48, PAGE)
    refused(EINVAL, user.map, (1 << 48) - PAGE, 2 * PAGE)
    user.map((1 << 48) - PAGE, PAGE)


def test_no_user_memory_is_efault_and_maps_nothing(user: Any, kernel: Any) -> None:
    refused(EFAULT, user.map, 0x10000, PAGE, 0)
    refused(EFAULT, user.map, 0x10000, 2 * PAGE, user.vaddr + (4 << 30) - PAGE)
    assert not kernel.iommu.domains[0].pages
    user.map(0x10000, PAGE)


def test_linux_tests_overlap_before_the_reserved_region(user: Any) -> None:
    user.map(0xFEDF_F000, PAGE)
    refused(EEXIST, user.map, 0xFEDF_F000, 2 * PAGE)


@pytest.mark.parametrize(("iova", "size"), [(0x11000, 0x3000), (0x10000, 0x3000), (0x11000, PAGE), (0x0F000, 0x2000)])
def test_bisecting_unmap_is_einval_and_unmaps_nothing(user: Any, iova: int, size: int) -> None:
    user.map(0x10000, 0x4000)
    refused(EINVAL, user.unmap, iova, size)
    assert user.unmap(0x10000, 0x4000) == 0x4000


def test_unmap_of_nothing_succeeds_with_no_bytes(user: Any) -> None:
    assert user.unmap(0x10000, PAGE) == 0
    user.map(0x10000, PAGE)
    assert user.unmap(0x11000, 0x100000) == 0
    assert user.unmap(0, 0x10000) == 0


def test_unmap_covers_several_and_gaps(user: Any, kernel: Any) -> None:
    for iova in (0x10000, 0x11000, 0x20000, 0x30000):
        user.map(iova, PAGE)
    assert user.unmap(0x10000, 0x20000) == 3 * PAGE
    assert user.unmap(0, 1 << 48) == PAGE
    assert not kernel.iommu.domains[0].pages
    assert kernel.iommu.domains[0].unmaps == [(0x10000, 2 * PAGE), (0x20000, PAGE), (0x30000, PAGE)]


@pytest.mark.parametrize(("iova", "size"), [(1, PAGE), (0, PAGE + 1), (0, 0), ((1 << 64) - PAGE, 2 * PAGE)])
def test_misaligned_empty_or_wrapping_unmap_is_einval(user: Any, iova: int, size: int) -> None:
    refused(EINVAL, user.unmap, iova, size)


def test_65535_mappings_then_enospc(user: Any) -> None:
    for index in range(65535):
        user.map(2 * PAGE * index, PAGE)
    refused(ENOSPC, user.map, 1 << 40, PAGE)
    assert user.vfio.container_info(user.process, user.container).dma_avail == 0
    refused(EEXIST, user.map, 0, PAGE)
    assert user.unmap(2 * PAGE * 30000, PAGE) == PAGE
    user.map(1 << 40, PAGE)
    refused(ENOSPC, user.map, 1 << 41, PAGE)
    assert user.unmap(0, 1 << 48) == 65535 * PAGE
    assert user.vfio.container_info(user.process, user.container).dma_avail == 65535


def test_dma_entry_limit_is_a_parameter(boot: Any) -> None:
    kernel = boot("vfio-pci.ids=01:00.0 vfio_iommu_type1.dma_entry_limit=2")
    user, vfio, container = _attach(kernel)
    vaddr = user.map_memory(RAM, 1 << 20)
    for iova in (0, PAGE):
        vfio.map_dma(user, container, 1, vaddr, iova, PAGE)
    refused(ENOSPC, vfio.map_dma, user, container, 1, vaddr, 2 * PAGE, PAGE)


def test_without_interrupt_remapping_eperm_with_linux_reason(boot: Any) -> None:
    kernel = boot("vfio-pci.ids=01:00.0")
    kernel.iommu.interrupt_remapping = False
    with pytest.raises(OSError) as caught:
        _attach(kernel)
    assert caught.value.errno == EPERM
    assert caught.value.strerror == (
        "vfio_iommu_type1_attach_group: No interrupt remapping support.  "
        'Use the module param "allow_unsafe_interrupts" to enable VFIO IOMMU support on this platform'
    )
    assert caught.value.strerror in kernel.machine.lines
    assert not kernel.iommu.domains
    assert not kernel.iommu.attached


def test_allow_unsafe_interrupts(boot: Any) -> None:
    kernel = boot("vfio-pci.ids=01:00.0 vfio_iommu_type1.allow_unsafe_interrupts=1")
    kernel.iommu.interrupt_remapping = False
    _attach(kernel)
    assert 0x100 in kernel.iommu.attached


def test_access_and_contiguity(user: Any, kernel: Any) -> None:
    user.map(0x4000_0000, 2 << 30, flags=1)
    user.map(0x1000, PAGE, flags=2)
    domain = kernel.iommu.domains[0]
    assert domain.maps == [(0x4000_0000, RAM, 2 << 30), (0x1000, RAM, PAGE)]
    assert domain.pages[0x4000_0000] == (RAM, Access.READ)
    assert domain.pages[0x1000] == (RAM, Access.WRITE)


def test_groups_of_one_container_share_its_mappings(user: Any, kernel: Any) -> None:
    group = user.vfio.open_group(user.process, 2)
    user.vfio.set_container(user.process, group, user.container)
    assert len(set(map(id, kernel.iommu.attached.values()))) == 1
    assert sorted(kernel.iommu.attached) == [0x100, 0x200, 0x201]
    user.map(0x1000, PAGE)
    user.vfio.close(user.process, group)
    assert sorted(kernel.iommu.attached) == [0x100]
    assert user.unmap(0x1000, PAGE) == PAGE


def test_the_last_group_takes_the_mappings_along(user: Any, kernel: Any) -> None:
    user.map(0x1000, PAGE)
    user.vfio.unset_container(user.process, user.group)
    assert not kernel.iommu.domains
    refused(EINVAL, user.unmap, 0x1000, PAGE)
    user.vfio.set_container(user.process, user.group, user.container)
    user.vfio.set_iommu(user.process, user.container)
    assert user.unmap(0x1000, PAGE) == 0


def _attach(kernel: Any) -> tuple[UserProcess, Vfio, int]:
    vfio, process = Vfio(kernel), UserProcess("user", capabilities=ROOT)
    container = vfio.open_container(process)
    vfio.set_container(process, vfio.open_group(process, 1), container)
    vfio.set_iommu(process, container)
    return process, vfio, container
