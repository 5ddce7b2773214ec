"""The system calls of an application over the wires: its kernel's process, and the fabric that its BARs lead to."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from errno import ENOMEM

from viommu_actors.actors.parent_kernel import RemoteVfio
from viommu_actors.actors.signals import Signals
from viommu_actors.app.system import PciInfo
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import pci
from viommu_actors.spec.vfio import RegionIndex
from viommu_actors.wire import messages as m
from viommu_actors.wire.sockets import Channel

#: (offset, bytes) of what moves no BAR and switches none off: interrupt disable.
_COMMAND_HIGH = (pci.COMMAND + 1, 1)


class RemoteSystem(RemoteVfio):
    """`app.system.System`: one blocking call a system call; a BAR, once it is mapped, without any."""

    def __init__(
        self, kernel: Channel, direct: Channel, trap: Channel | None, hugepages: Slot | None, signals: Signals
    ) -> None:
        """`hugepages` is the process's own memory, whatever its base; `trap` leads to what emulates devices, if any."""
        super().__init__(kernel)
        self._direct = direct
        self._trap = trap
        self._signals = signals
        self._hugepages = hugepages
        self.memory = PhysicalMemory()
        self.hugepage_bytes = 0 if hugepages is None else hugepages.size
        #: (first, end, token, emulated) of each BAR that has been touched, by user addresses
        self._windows: list[tuple[int, int, bytes, bool]] = []

    # --- memory

    def mmap_hugepages(self) -> int:
        if self._hugepages is None:
            raise OSError(ENOMEM, "this process has no hugepages")
        vaddr = int(self._ask(m.MmapRam(self._hugepages.name)).value)
        self.memory.add(Slot(self._hugepages.name, vaddr, self._hugepages.view))
        return vaddr

    def pagemap(self, vaddr: int) -> int:
        return int(self._ask(m.Pagemap(vaddr)).value)

    # --- sysfs

    def pci_devices(self) -> list[PciInfo]:
        return [
            PciInfo(name, vendor, device, driver, None if group < 0 else group, bits or None, bars)
            for name, vendor, device, driver, group, bits, bars in self._ask(m.ListPci()).functions
        ]

    def bind(self, device: str, driver: str) -> None:
        self._ask(m.BindDriver(device, driver))

    def noiommu_mode(self) -> bool:
        return bool(self._ask(m.NoiommuMode()).value)

    # --- VFIO without an IOMMU, and UIO

    def open_noiommu_group(self, number: int) -> int:
        return int(self._ask(m.OpenNoiommuGroup(number)).value)

    def open_uio(self, device: str) -> int:
        return int(self._ask(m.OpenUio(device)).value)

    def uio_config_read(self, uio: int, offset: int, size: int) -> bytes:
        return bytes(self._ask(m.UioConfigRead(uio, offset, size)).data)

    def uio_config_write(self, uio: int, offset: int, data: bytes) -> None:
        if (offset, len(data)) != _COMMAND_HIGH:
            self._forget_windows()
        self._ask(m.UioConfigWrite(uio, offset, data))

    def uio_write(self, uio: int, on: int) -> None:
        self._ask(m.UioWrite(uio, on))

    def uio_mmap(self, uio: int, bar: int) -> int:
        return int(self._ask(m.UioMmap(uio, bar)).value)

    # --- sleep

    def wait(self, descriptors: Collection[int], seconds: float) -> Collection[int]:
        return self._signals.wait(descriptors, seconds)

    def read_count(self, descriptor: int) -> int:
        self._signals.read(descriptor)
        return int(self._ask(m.ReadCount(descriptor)).value)

    # --- what takes a BAR away for a time, or for good

    def region_write(self, device: int, index: int, offset: int, data: bytes) -> None:
        if index == RegionIndex.CONFIG:
            self._forget_windows()
        super().region_write(device, index, offset, data)

    def reset(self, device: int) -> None:
        self._forget_windows()
        super().reset(device)

    def close(self, handle: int) -> None:
        self._forget_windows()
        super().close(handle)

    def _forget_windows(self) -> None:
        """The kernel zaps the maps of a BAR that is moved or switched off; the next access faults."""
        self._windows.clear()

    # --- the process itself

    def mmio_read(self, vaddr: int, size: int) -> int:
        first, _, token, emulated = self._window(vaddr, size)
        request = m.DirectRead(token, vaddr - first, size)
        value: int = (self._emulator() if emulated else self._direct).call(request)[0]
        return value

    def mmio_write(self, vaddr: int, size: int, value: int) -> None:
        first, _, token, emulated = self._window(vaddr, size)
        request = m.DirectWrite(token, vaddr - first, size, value)
        if emulated:
            self._emulator().call(request)
        else:
            self._direct.post(request)

    def pause(self) -> None:
        os.sched_yield()

    def clock(self) -> float:
        return time.monotonic()

    def _emulator(self) -> Channel:
        assert self._trap is not None, "whoever emulates a device is known"
        return self._trap

    def _window(self, vaddr: int, size: int) -> tuple[int, int, bytes, bool]:
        """The one of an access; the first access to a BAR faults. Raises OSError(EFAULT) outside of all."""
        for window in self._windows:
            if window[0] <= vaddr and vaddr + size <= window[1]:
                return window
        fault = self._ask(m.PageFault(vaddr))
        self._windows.append((fault.base, fault.base + fault.size, fault.token, fault.emulated))
        return self._windows[-1]
