"""Address space and descriptors of a user process."""

from __future__ import annotations

from errno import EBADF, EFAULT, EINVAL, ENOMEM

import pytest

from viommu_actors.kernel.process import UserProcess

PAGE = 4096
GIB = 1 << 30


def test_areas_agree_with_physical_memory_modulo_a_gib() -> None:
    process = UserProcess("p")
    for paddr in (0x10_0000_0000, 0x10_4020_0000, PAGE):
        assert process.map_memory(paddr, PAGE) % GIB == paddr % GIB


def test_translate_gives_few_pieces_and_efault_in_holes() -> None:
    process = UserProcess("p")
    vaddr = process.map_memory(GIB, GIB)
    following = process.map_memory(4 * GIB, PAGE)
    assert following == vaddr + GIB
    assert process.translate(vaddr + GIB - PAGE, 2 * PAGE) == [(2 * GIB - PAGE, PAGE), (4 * GIB, PAGE)]
    assert process.translate(vaddr, 8) == [(GIB, 8)]
    for bad, size in ((vaddr - 1, 2), (following, PAGE + 1), (0, 1)):
        with pytest.raises(OSError) as caught:
            process.translate(bad, size)
        assert caught.value.errno == EFAULT
    process.unmap_memory(vaddr)
    with pytest.raises(OSError):
        process.translate(vaddr, 1)
    assert process.translate(following, 1) == [(4 * GIB, 1)]


def test_physically_adjacent_areas_make_one_piece() -> None:
    process = UserProcess("p")
    vaddr = process.map_memory(GIB, GIB)
    process.map_memory(2 * GIB, GIB)
    assert process.translate(vaddr, 2 * GIB) == [(GIB, 2 * GIB)]


def test_map_errors() -> None:
    process = UserProcess("p")
    for paddr, size, code in ((1, PAGE, EINVAL), (0, 0, EINVAL), (0, 100, EINVAL), (0, 1 << 47, ENOMEM)):
        with pytest.raises(OSError) as caught:
            process.map_memory(paddr, size)
        assert caught.value.errno == code
    with pytest.raises(OSError) as caught:
        process.unmap_memory(0x1000)
    assert caught.value.errno == EINVAL


def test_lowest_descriptor_first() -> None:
    process = UserProcess("p")
    first, second = process.eventfd(), process.eventfd()
    process.close(first)
    assert process.eventfd() == first < second
    with pytest.raises(OSError) as caught:
        process.close(99)
    assert caught.value.errno == EBADF
