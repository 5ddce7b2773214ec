"""Control commands of a kernel that do one kind of operation over and over and tell what each took.

The clock is the one that all processes share (CLOCK_MONOTONIC), times are nanoseconds, as the bytes of an array('q').
They are taken where the operation is asked for: here by the kernel that maps, in `device_latency` by the device.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

from viommu_actors.kernel.dma import Direction
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.pages import PAGE
from viommu_actors.pci.link import Link, LogEntry, PortLog
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd import Reg

Handlers = dict[str, Callable[..., Any]]
_BOTH = Direction.BIDIRECTIONAL


class KernelLatency:
    """Of the host's kernel or a guest's. BDFs are texts like `00:03.0`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        #: bdf -> (iova, paddr, pages) of what `hold` mapped
        self._held: dict[str, tuple[int, int, int]] = {}

    def handlers(self) -> Handlers:
        """By command name."""
        return {
            "time_maps": self.maps,
            "time_scattered_maps": self.scattered_maps,
            "time_packets": self.packets,
            "time_trapped_reads": self.trapped_reads,
            "time_trapped_writes": self.trapped_writes,
            "time_config_reads": self.config_reads,
            "time_bar_reads": self.bar_reads,
            "hold": self.hold,
            "release": self.release,
        }

    def maps(self, bdf: str, pages: int, count: int) -> dict[str, bytes]:
        """Maps and unmaps a buffer of so many pages by the DMA API, `count` times."""
        kernel, device = self._kernel, self._kernel.device(pci.parse_bdf(bdf))
        dma, size = kernel.dma(device), pages * PAGE
        paddr = kernel.pages.alloc(pages)
        taken: tuple[array[int], ...] = (array("q"), array("q"), array("q"))
        mapped, unmapped, both = taken
        try:
            for _ in range(count):
                began = perf_counter_ns()
                iova = dma.map(paddr, size, _BOTH)
                between = perf_counter_ns()
                dma.unmap(iova, size, _BOTH)
                ended = perf_counter_ns()
                mapped.append(between - began)
                unmapped.append(ended - between)
                both.append(ended - began)
        finally:
            kernel.pages.free(paddr, pages)
        return {"map": mapped.tobytes(), "unmap": unmapped.tobytes(), "map_unmap": both.tobytes()}

    def scattered_maps(self, bdf: str, segments: int, count: int) -> dict[str, bytes]:
        """The same for a buffer of so many pages that do not lie beside each other."""
        kernel, device = self._kernel, self._kernel.device(pci.parse_bdf(bdf))
        dma = kernel.dma(device)
        pages = [kernel.pages.alloc() for _ in range(2 * segments)]
        buffer, sizes = [(page, PAGE) for page in pages[::2]], [PAGE] * segments
        mapped, unmapped = array("q"), array("q")
        try:
            for _ in range(count):
                began = perf_counter_ns()
                iovas = dma.map_sg(buffer, _BOTH)
                between = perf_counter_ns()
                dma.unmap_sg(iovas, sizes, _BOTH)
                mapped.append(between - began)
                unmapped.append(perf_counter_ns() - between)
        finally:
            for page in pages:
                kernel.pages.free(page)
        return {"map": mapped.tobytes(), "unmap": unmapped.tobytes()}

    def packets(self, bdf: str, count: int) -> bytes:
        """Packets that a nic sends to itself: two operations each, with everything that its driver does for them."""
        driver = self._kernel.drivers[pci.parse_bdf(bdf)]

        def packet() -> None:
            if not driver.run_io(2).verified:
                raise ValueError(f"{bdf}: a packet came back changed")

        return _timed(packet, count)

    def trapped_reads(self, count: int) -> bytes:
        """Reads of a vIOMMU register, which the hypervisor answers by itself: the least that a trap costs."""
        read = self._kernel.machine.mmio_read
        return _timed(lambda: read(platform.REMAPPING_UNIT_BASE + Reg.VER, 4), count)

    def trapped_writes(self, count: int) -> bytes:
        """Writes of a vIOMMU register without an effect: the fault event's upper address, as it stands."""
        machine, register = self._kernel.machine, platform.REMAPPING_UNIT_BASE + Reg.FEUADDR
        value = machine.mmio_read(register, 4)
        return _timed(lambda: machine.mmio_write(register, 4, value), count)

    def config_reads(self, bdf: str, count: int) -> bytes:
        """Reads of an assigned device's identity, which the parent kernel keeps: a chain of two hops, and back."""
        device = self._kernel.device(pci.parse_bdf(bdf))
        return _timed(lambda: device.config_read(pci.VENDOR_ID, 2), count)

    def bar_reads(self, bdf: str, count: int) -> bytes:
        """Reads of a register of the device itself, which do not trap."""
        device = self._kernel.device(pci.parse_bdf(bdf))
        return _timed(lambda: device.read(0, 0, 4), count)

    def hold(self, bdf: str, pages: int) -> int:
        """Maps pages for the device both ways, until `release`; their address for the device."""
        if bdf in self._held:
            raise ValueError(f"{bdf} has pages already")
        kernel = self._kernel
        paddr = kernel.pages.alloc(pages)
        kernel.machine.memory.write(paddr, os.urandom(pages * PAGE))
        iova = kernel.dma(kernel.device(pci.parse_bdf(bdf))).map(paddr, pages * PAGE, _BOTH)
        self._held[bdf] = iova, paddr, pages
        return iova

    def release(self, bdf: str) -> None:
        """Ends what `hold` began."""
        iova, paddr, pages = self._held.pop(bdf)
        self._kernel.dma(self._kernel.device(pci.parse_bdf(bdf))).unmap(iova, pages * PAGE, _BOTH)
        self._kernel.pages.free(paddr, pages)


class PortClock:
    """Of the host: when the posted writes of a link's device have reached memory."""

    def __init__(self, ports: Mapping[str, Link]) -> None:
        self._ports = ports

    def handlers(self) -> Handlers:
        """By command name."""
        return {"clock_writes": self.start, "clocked_writes": self.stop}

    def start(self, link: str) -> None:
        """Notes from here on each write of the link's device."""
        self._ports[link].log = _WriteClock()

    def stop(self, link: str) -> bytes:
        """When each write was done since `start`; stops."""
        port = self._ports[link]
        clock, port.log = port.log, None
        if not isinstance(clock, _WriteClock):
            raise ValueError(f"the writes of {link} are not clocked")
        return clock.times.tobytes()


class _WriteClock(PortLog):
    """Keeps times in place of the transactions."""

    def __init__(self) -> None:
        super().__init__(capacity=0)
        self.times = array("q")

    def add(self, entry: LogEntry) -> None:
        if entry.kind == "write":
            self.times.append(perf_counter_ns())


def _timed(operation: Callable[[], object], count: int) -> bytes:
    taken = array("q")
    for _ in range(count):
        began = perf_counter_ns()
        operation()
        taken.append(perf_counter_ns() - began)
    return taken.tobytes()
