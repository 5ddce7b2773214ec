"""A PCI function in the hands of an application: by VFIO, by VFIO without an IOMMU, or by UIO.

Memory decoding and bus mastering are the application's to turn on. No interrupt is set up unless it asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EAGAIN, EIO, ENODEV
from typing import ClassVar, Literal, Protocol

from viommu_actors.app.mempool import Hugepage
from viommu_actors.app.system import HUGEPAGE, PciInfo, System
from viommu_actors.kernel.sysfs import VFIO_PCI
from viommu_actors.kernel.uio import NAME as UIO
from viommu_actors.spec import pci
from viommu_actors.spec.vfio import DmaFlags, IommuType, IrqAction, IrqIndex, RegionIndex

#: What stands between a function and the memory: an IOMMU, or nothing, by two ways.
UserDriver = Literal["vfio", "noiommu", "uio"]
#: The kernel's driver behind each.
KERNEL_DRIVERS: dict[UserDriver, str] = {"vfio": VFIO_PCI, "noiommu": VFIO_PCI, "uio": UIO}


class Function(Protocol):
    """Methods raise OSError as the kernel's calls behind them do."""

    @property
    def driver(self) -> UserDriver: ...

    def config_read(self, offset: int, size: int) -> int: ...

    def config_write(self, offset: int, size: int, value: int) -> None: ...

    def map_bar(self, bar: int) -> int:
        """User address of a BAR, until `close`."""
        ...

    def enable_interrupt(self, vector: int) -> int:
        """Has an interrupt signal the descriptor that it returns, until `close`; once. EIO: the device has none."""
        ...

    def take_interrupts(self) -> int:
        """How many came since the last time."""
        ...

    def rearm_interrupt(self) -> None:
        """The device has been seen to: INTx, which masks itself as it comes, is let through again."""
        ...

    def close(self) -> None: ...


class VfioFunction:
    """By its device descriptor."""

    def __init__(self, system: System, device: int, driver: UserDriver) -> None:
        self._system = system
        self._device = device
        self._eventfd: int | None = None
        self._intx = False
        self.driver: UserDriver = driver

    def config_read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._system.region_read(self._device, RegionIndex.CONFIG, offset, size), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._system.region_write(self._device, RegionIndex.CONFIG, offset, value.to_bytes(size, "little"))

    def map_bar(self, bar: int) -> int:
        return self._system.mmap_region(self._device, bar)

    def enable_interrupt(self, vector: int) -> int:
        """By MSI-X where the function has so many vectors, else by its one MSI, else by INTx (VFIO_DEVICE_SET_IRQS)."""
        system, device = self._system, self._device
        index, start = IrqIndex.MSIX, vector
        if system.irq_count(device, index) <= vector:
            index, start = IrqIndex.MSI if system.irq_count(device, IrqIndex.MSI) else IrqIndex.INTX, 0
        if not system.irq_count(device, index):
            raise OSError(EIO, "the device has no interrupt")
        self._eventfd = system.eventfd()
        self._intx = index is IrqIndex.INTX
        system.set_irqs(device, index, start, (self._eventfd,))
        return self._eventfd

    def take_interrupts(self) -> int:
        assert self._eventfd is not None, "there is an interrupt"
        return _count_of(self._system, self._eventfd)

    def rearm_interrupt(self) -> None:
        if self._intx:
            self._system.act_on_irqs(self._device, IrqIndex.INTX, IrqAction.UNMASK, 0, 1)

    def close(self) -> None:
        """The kernel turns the interrupts off with the last close of the device."""
        self._system.close(self._device)
        if self._eventfd is not None:
            self._system.close(self._eventfd)


class UioFunction:
    """By the descriptor of its uio device."""

    driver: ClassVar[UserDriver] = "uio"

    def __init__(self, system: System, name: str) -> None:
        self._system = system
        self._uio = system.open_uio(name)
        #: interrupts in all, up to the last time; None until the kernel has told
        self._taken: int | None = None

    def config_read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._system.uio_config_read(self._uio, offset, size), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._system.uio_config_write(self._uio, offset, value.to_bytes(size, "little"))

    def map_bar(self, bar: int) -> int:
        return self._system.uio_mmap(self._uio, bar)

    def enable_interrupt(self, vector: int) -> int:
        """INTx, for whatever the device interrupts. The kernel's driver listens from the start."""
        self._taken = _count_of(self._system, self._uio) or None
        self.rearm_interrupt()
        return self._uio

    def take_interrupts(self) -> int:
        count = _count_of(self._system, self._uio)
        if not count:
            return 0
        # The first count has in it those of whoever had the device before; one alone has come since it was let through.
        came = 1 if self._taken is None else count - self._taken
        self._taken = count
        return came

    def rearm_interrupt(self) -> None:
        """Clears interrupt disable, which the kernel's driver has set (DPDK: uio_intx_intr_enable)."""
        high = self.config_read(pci.COMMAND + 1, 1)
        self.config_write(pci.COMMAND + 1, 1, high & ~(pci.Command.INTX_DISABLE >> 8))

    def close(self) -> None:
        self._system.close(self._uio)


class Vfio:
    """Containers and groups of one application.

    Its hugepages are mapped once, when the first group with an IOMMU joins. One container for each kind of
    IOMMU: the kernel lets none hold both.
    """

    def __init__(self, system: System, hugepages: Sequence[Hugepage]) -> None:
        self._system = system
        self._hugepages = hugepages
        self._containers: dict[IommuType, int] = {}
        self._groups: dict[int, int] = {}

    def open(self, info: PciInfo, driver: UserDriver) -> VfioFunction:
        """Opens a function by its group, which "noiommu" looks for among those without an IOMMU.

        Raises OSError: ENODEV for a function without a group, and what the kernel raises.
        """
        number = info.iommu_group
        if number is None:
            raise OSError(ENODEV, f"{info.name} has no IOMMU group")
        if number not in self._groups:
            self._groups[number] = self._join(number, driver)
        return VfioFunction(self._system, self._system.get_device(self._groups[number], info.name), driver)

    def close(self) -> None:
        """Once all functions are closed: the mappings end with it."""
        for group in self._groups.values():
            self._system.close(group)
        for container in self._containers.values():
            self._system.close(container)
        self._groups.clear()
        self._containers.clear()

    def _join(self, number: int, driver: UserDriver) -> int:
        """Opens a group and puts it into the container of its kind."""
        system = self._system
        if driver == "noiommu":
            group, kind = system.open_noiommu_group(number), IommuType.NOIOMMU
        else:
            group, kind = system.open_group(number), IommuType.TYPE1V2
        try:
            self._attach(group, kind)
        except OSError:
            system.close(group)
            raise
        return group

    def _attach(self, group: int, kind: IommuType) -> None:
        system = self._system
        if kind in self._containers:
            system.set_container(group, self._containers[kind])
            return
        container = system.open_container()
        try:
            system.set_container(group, container)
            system.set_iommu(container, kind)
            if kind is not IommuType.NOIOMMU:
                for page in self._hugepages:
                    system.map_dma(container, DmaFlags.READ | DmaFlags.WRITE, page.vaddr, page.iova, HUGEPAGE)
        except OSError:
            system.close(container)
            raise
        self._containers[kind] = container


def _count_of(system: System, descriptor: int) -> int:
    """0 where nothing came since the last time."""
    try:
        return system.read_count(descriptor)
    except OSError as error:
        if error.errno != EAGAIN:
            raise
        return 0


def open_function(system: System, vfio: Vfio, info: PciInfo, driver: UserDriver) -> Function:
    """Opens a function that is bound accordingly. Raises OSError as the kernel does."""
    return UioFunction(system, info.name) if driver == "uio" else vfio.open(info, driver)


def set_command(function: Function, bits: int, mask: int) -> None:
    """Changes the `mask` bits of the command register to `bits`."""
    command = function.config_read(pci.COMMAND, 2)
    function.config_write(pci.COMMAND, 2, command & ~mask | bits)
