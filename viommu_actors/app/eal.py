"""The start of an application in DPDK's manner: hugepages, one kind of addresses for its devices, devices opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from errno import EINVAL, ENODEV

from viommu_actors.app.iova import IovaMode, choose_iova_mode
from viommu_actors.app.mempool import Heap, Hugepage
from viommu_actors.app.pci import Function, UserDriver, Vfio, open_function
from viommu_actors.app.system import HUGEPAGE, PciInfo, System


class Eal:
    """What stands from the start to `close`; `allowed` are the functions to use (DPDK's option `-a`), by name."""

    def __init__(self, system: System, allowed: Sequence[str], log: Callable[[str], None]) -> None:
        """Raises OSError: ENODEV for a function that is not there, EINVAL where physical addresses are needed and
        may not be known, ENOMEM without hugepages."""
        self._system = system
        self._log = log
        there = {info.name: info for info in system.pci_devices()}
        missing = [name for name in allowed if name not in there]
        if missing:
            raise OSError(ENODEV, f"no such device: {', '.join(missing)}")
        self._infos: dict[str, PciInfo] = {name: there[name] for name in allowed}
        start = system.mmap_hugepages()
        #: Whether physical addresses may be known; pagemap tells 0 instead where they may not.
        self._physical = system.pagemap(start) != 0
        self.iova_mode = choose_iova_mode(
            list(self._infos.values()), noiommu_mode=system.noiommu_mode(), physical=self._physical
        )
        log(f"EAL: Selected IOVA mode '{self.iova_mode}'")
        hugepages = [
            Hugepage(vaddr, self._iova(vaddr)) for vaddr in range(start, start + system.hugepage_bytes, HUGEPAGE)
        ]
        self.heap = Heap(hugepages)
        self._vfio = Vfio(system, hugepages)
        self._open = ExitStack()
        self._open.callback(self._vfio.close)

    def identity(self, name: str) -> tuple[int, int]:
        """(vendor, device) of an allowed function."""
        return self._infos[name].vendor, self._infos[name].device

    def probe(self, name: str, driver: UserDriver) -> Function:
        """Opens an allowed function, once. Raises OSError with the kernel's errno and reason."""
        function = open_function(self._system, self._vfio, self._infos[name], driver)
        self._open.callback(function.close)
        self._log(f"EAL: Probe PCI device {name}: {driver}")
        return function

    def close(self) -> None:
        """Gives every function back, then the mappings."""
        self._open.close()

    def _iova(self, vaddr: int) -> int:
        if self.iova_mode is IovaMode.VA:
            return vaddr
        if not self._physical:
            raise OSError(EINVAL, "Cannot use IOVA as 'PA' since physical addresses are not available")
        return self._system.pagemap(vaddr)
