"""The IOVA mode, against what DPDK's documentation and `rte_eal_init` say of each case."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.app.iova import IovaMode, choose_iova_mode
from viommu_actors.app.system import PciInfo
from viommu_actors.kernel.sysfs import VFIO_PCI
from viommu_actors.kernel.uio import NAME as UIO


def info(driver: str, group: int | None = 1, bits: int | None = 48) -> PciInfo:
    return PciInfo("0000:00:03.0", 0x7676, 1, driver, group, bits, (0x1000, 0, 0, 0, 0, 0))


def choose(*infos: PciInfo, noiommu: bool = False, physical: bool = True) -> IovaMode:
    return choose_iova_mode(infos, noiommu_mode=noiommu, physical=physical)


def test_vfio_with_an_iommu_is_va() -> None:
    assert choose(info(VFIO_PCI), info(VFIO_PCI)) is IovaMode.VA


def test_one_uio_device_forces_pa_on_all() -> None:
    assert choose(info(VFIO_PCI), info(UIO)) is IovaMode.PA


def test_noiommu_mode_forces_pa_on_vfio_whatever_its_iommu() -> None:
    assert choose(info(VFIO_PCI), noiommu=True) is IovaMode.PA
    assert choose(info("nic"), noiommu=True) is IovaMode.VA


def test_an_iommu_of_39_bits_is_too_narrow_for_user_addresses() -> None:
    assert choose(info(VFIO_PCI, bits=39)) is IovaMode.PA
    assert choose(info(VFIO_PCI, bits=47)) is IovaMode.VA


def test_without_devices_it_is_what_can_be_known() -> None:
    assert choose() is IovaMode.PA
    assert choose(physical=False) is IovaMode.VA


infos = st.builds(
    info,
    st.sampled_from((VFIO_PCI, UIO, "nic", "")),
    st.sampled_from((None, 1, 2)),
    st.sampled_from((None, 39, 48, 57)),
)


@given(st.lists(infos, max_size=4), st.booleans(), st.booleans())
def test_va_is_never_chosen_where_a_device_could_not_work_with_it(
    devices: list[PciInfo], noiommu: bool, physical: bool
) -> None:
    if choose(*devices, noiommu=noiommu, physical=physical) is IovaMode.VA:
        assert all(device.driver != UIO for device in devices)
        assert all(device.iommu_bits is None or device.iommu_bits >= 47 for device in devices)
        assert not noiommu or all(device.driver != VFIO_PCI for device in devices)
