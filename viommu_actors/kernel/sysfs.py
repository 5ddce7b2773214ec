"""PCI functions as user processes find and bind them: /sys/bus/pci/devices, driver_override, bind and unbind."""

from __future__ import annotations

from errno import EACCES, ENODEV
from typing import TYPE_CHECKING, Final, NamedTuple

from viommu_actors.kernel import uio as uio_driver
from viommu_actors.kernel.uio import Uio
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec.pci import ENDPOINT_BARS, parse_bdf
from viommu_actors.spec.privileges import Capability

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice
    from viommu_actors.kernel.process import UserProcess

VFIO_PCI: Final = "vfio-pci"


class PciInfo(NamedTuple):
    """A function as /sys/bus/pci/devices shows it."""

    #: "0000:00:03.0".
    name: str
    vendor: int
    device: int
    #: Of the link `driver`; "" without.
    driver: str
    #: Of the link `iommu_group`; None without. What vfio-pci takes without an IOMMU gets one, named noiommu-N.
    iommu_group: int | None
    #: Widest address that the device's IOMMU translates, in bits (`iommu/intel-iommu/cap`, MGAW + 1); None without.
    iommu_bits: int | None
    #: Bytes of each BAR, 0 for one that is not there.
    bars: tuple[int, ...]


class Sysfs:
    """The PCI bus of one kernel. Every method raises OSError with Linux's errno and a reason."""

    def __init__(self, kernel: Kernel, vfio: Vfio, uio: Uio) -> None:
        self._kernel = kernel
        self._vfio = vfio
        self._uio = uio

    def devices(self) -> list[PciInfo]:
        """Every function that is no bridge."""
        return [self._info(device) for device in self._kernel.pci if not device.is_bridge]

    def bind(self, process: UserProcess, name: str, driver: str) -> None:
        """Takes a function from its driver and gives it to another; "" to none.

        EACCES: the process is not root; ENODEV: no such function or driver, or the driver does not take it; EBUSY: a
        process has it open; EINVAL: vfio-pci refuses one without an IOMMU group. What refuses leaves it without driver.
        """
        process.require(Capability.DAC_OVERRIDE, EACCES)
        kernel = self._kernel
        try:
            bdf = kernel.device(parse_bdf(name)).bdf
        except ValueError as error:
            raise OSError(ENODEV, str(error)) from None
        if bdf in kernel.drivers:
            kernel.unbind(bdf)
        self._vfio.unbind(bdf)
        self._uio.unbind(bdf)
        if driver == VFIO_PCI:
            self._vfio.bind(bdf)
        elif driver == uio_driver.NAME:
            self._uio.bind(bdf)
        elif driver:
            kernel.bind(bdf)
            if self._driver(bdf) != driver:
                raise OSError(ENODEV, f"{name}: no driver {driver} takes it")

    def _info(self, device: PciDevice) -> PciInfo:
        iommu = self._kernel.iommu
        bits = iommu.capability.address_width if iommu is not None and iommu.covers(device) else None
        bars = tuple(device.bars[bar].size if bar in device.bars else 0 for bar in range(ENDPOINT_BARS))
        return PciInfo(
            device.name,
            device.vendor,
            device.device,
            self._driver(device.bdf),
            self._vfio.group_number(device.bdf),
            bits,
            bars,
        )

    def _driver(self, bdf: int) -> str:
        if self._vfio.is_bound(bdf):
            return VFIO_PCI
        if self._uio.is_bound(bdf):
            return uio_driver.NAME
        driver = self._kernel.drivers.get(bdf)
        return "" if driver is None else driver.name
