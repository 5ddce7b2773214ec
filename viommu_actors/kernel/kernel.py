"""A kernel: what it finds at boot, in the order in which Linux finds it. The same on the host and in a guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EBUSY, ENODEV

from viommu_actors.counters import Counters
from viommu_actors.kernel.acpi import AcpiTables
from viommu_actors.kernel.bootparams import BootParams, read_boot_params
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.kernel.default_domains import DefaultDomains
from viommu_actors.kernel.dma import DirectDma, Dma
from viommu_actors.kernel.driver import Driver
from viommu_actors.kernel.drivers import DRIVERS
from viommu_actors.kernel.hotplug import HotPlug
from viommu_actors.kernel.intel_iommu import IntelIommu
from viommu_actors.kernel.irq import Interrupts
from viommu_actors.kernel.lines import LineInterrupts
from viommu_actors.kernel.machine import KernelPanic, Machine
from viommu_actors.kernel.pages import HUGEPAGE, PAGE, PageAllocator
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.kernel.pci_bus import PciBus
from viommu_actors.spec import acpi, pci
from viommu_actors.spec.boot import E820Type
from viommu_actors.spec.pci import ClassCode, format_bdf, parse_bdf

_E820_NAMES: dict[int, str] = {
    E820Type.RAM: "usable",
    E820Type.RESERVED: "reserved",
    E820Type.ACPI: "ACPI data",
    E820Type.NVS: "ACPI NVS",
}


class Kernel:
    """Memory, interrupts, PCI, IOMMU and drivers of one machine; all of it stands once `boot` has returned.

    `counters` counts what the kernel does: pte_writes, invalidations (IOTLB), context_invalidations,
    interrupt_entry_invalidations, device_tlb_invalidations, ats_timeouts, waits, queue_tail_writes, dma_maps,
    dma_unmaps, interrupts, spurious_interrupts.
    """

    cmdline: CommandLine
    pages: PageAllocator
    irq: Interrupts
    lines: LineInterrupts
    bus: PciBus

    def __init__(self, machine: Machine, drivers: Sequence[type[Driver]] = DRIVERS) -> None:
        self.machine = machine
        self.counters = Counters()
        self.iommu: IntelIommu | None = None
        #: Each says whether somebody has a function that is gone, who is then asked to let go of it: of the drivers
        #: that give functions to user processes.
        self.holders: list[Callable[[PciDevice], bool]] = []
        #: Bound drivers by the device's bdf.
        self.drivers: dict[int, Driver] = {}
        #: (address, size) of what was reserved for applications.
        self.hugepages = (0, 0)
        self._driver_classes = drivers
        self._domains: DefaultDomains | None = None
        self._dma: dict[int, Dma] = {}
        #: IOMMU groups that a user process has by VFIO: no device of theirs gets a driver meanwhile (Linux:
        #: iommu_group_claim_dma_owner).
        self.user_groups: set[int] = set()
        #: Devices that uio_pci_generic has for user processes.
        self.uio_devices: set[int] = set()
        #: Letters of /proc/sys/kernel/tainted (Documentation/admin-guide/tainted-kernels.rst).
        self.taints: set[str] = set()
        #: Devices that the kernel's drivers leave to vfio-pci.
        self._reserved_for_vfio: set[int] = set()

    def boot(self, boot_params: int) -> None:
        """Boots from the parameters at physical address `boot_params`. Raises KernelPanic where that cannot be."""
        log = self.machine.log
        params = read_boot_params(self.machine.memory, boot_params)
        self.cmdline = CommandLine(params.command_line)
        log(f"Command line: {params.command_line}")
        log("BIOS-provided physical RAM map:")
        for base, size, kind in params.e820:
            name = _E820_NAMES.get(kind, f"type {kind}")
            log(f"BIOS-e820: [mem {base:#018x}-{base + size - 1:#018x}] {name}")
        tables = AcpiTables(self.machine.memory, params.rsdp, log)
        self.pages = PageAllocator(self.machine.memory, params.ram)
        self._reserve_hugepages()
        gap = params.pci_gap
        log(f"[mem {gap[0]:#010x}-{gap[1] - 1:#010x}] available for PCI devices")
        madt = tables.madt()
        log(f"smpboot: Allowing {len(madt.cpus)} CPUs, 0 hotplug CPUs")
        self.irq = Interrupts(self.counters, log)
        self.lines = LineInterrupts(self.machine, self.irq, madt.io_apic, log)
        self.machine.set_interrupt_handler(self.irq.dispatch)
        dmar = self._detect_iommu(tables)
        self._scan_pci(tables.ecam(), gap, enable_acs=dmar is not None)
        self._reserved_for_vfio = self._named_devices("vfio-pci.ids")
        if dmar is not None:
            self._start_iommu(dmar, params, gap)
        for device in self.pci:
            self._bind(device)
        self._hotplug = HotPlug(self.bus, self.rescan, self.remove, log)

    # --- devices

    @property
    def pci(self) -> list[PciDevice]:
        """Every function found, bridges before what is behind them."""
        return self.bus.devices

    def device(self, bdf: int) -> PciDevice:
        """The function at `bdf`. Raises OSError(ENODEV) where there is none."""
        for device in self.bus.devices:
            if device.bdf == bdf:
                return device
        raise OSError(ENODEV, f"no PCI function at {format_bdf(bdf)}")

    def dma(self, device: PciDevice) -> Dma:
        """DMA of a device that the kernel drives. Raises OSError where its domain cannot be set up."""
        if device.bdf not in self._dma:
            if self._domains is not None and self.iommu is not None and self.iommu.covers(device):
                self._domains.claim(device)
                self._dma[device.bdf] = self._domains.dma(device)
            else:
                self._dma[device.bdf] = DirectDma(self.pages, self.counters)
        return self._dma[device.bdf]

    @property
    def live_buffers(self) -> int | None:
        """Buffers of the DMA API that are mapped now; None where devices use physical addresses."""
        return None if self._domains is None else self._domains.live_buffers

    def rescan(self) -> list[PciDevice]:
        """Finds devices plugged into empty slots since, and takes them into use."""
        found = self.bus.rescan()
        for device in found:
            if self.iommu is not None:
                self.iommu.add_device(device)
                self.claim(device)
        for device in found:
            self._bind(device)
        return found

    def hotplug(self) -> list[PciDevice]:
        """Cares for slots whose device has come or gone; the functions that were found. See `kernel.hotplug`."""
        return self._hotplug.service()

    def slot_settled(self, slot: int) -> bool:
        """Whether nobody has anything any more of a device that is gone from a slot; else `hotplug` has more to do."""
        return self._hotplug.settled(slot)

    def bind(self, bdf: int) -> None:
        """Probes the drivers for a function, as a write to sysfs's `bind` does. Raises OSError(ENODEV) for none."""
        device = self.device(bdf)
        # What the command line left to vfio-pci is so until somebody says otherwise.
        self._reserved_for_vfio.discard(bdf)
        # A user who had it before has left it in no domain.
        self.claim(device)
        self._bind(device)

    def unbind(self, bdf: int) -> None:
        """Takes the driver away from a function. Raises KeyError where none is bound."""
        self.drivers.pop(bdf).remove()

    def remove(self, bdf: int) -> None:
        """Lets go of an unplugged function: driver, domain, addresses.

        Raises OSError: ENODEV for none, EBUSY where somebody has it.
        """
        device = self.device(bdf)
        if any(holds(device) for holds in self.holders):
            raise OSError(EBUSY, f"{device.name} is in use")
        # Whoever is there next was not what was reserved.
        self._reserved_for_vfio.discard(bdf)
        driver = self.drivers.pop(bdf, None)
        if driver is not None:
            driver.remove()
        self._dma.pop(bdf, None)
        if self.iommu is not None:
            group = self.iommu.group_of(bdf)
            self.iommu.remove_device(device)
            if self._domains is not None and group is not None and group not in self.iommu.groups:
                self._domains.forget(group)
        self.bus.remove(device)
        self.machine.log(f"pci {device.name}: removed")

    def taint(self, letter: str, why: str) -> None:
        """From here on the kernel may do anything, and says so."""
        self.taints.add(letter)
        self.machine.log(why)

    # --- steps of the boot

    def _reserve_hugepages(self) -> None:
        """`hugepages=N`: so many of 2 MiB, the highest that there are, which nobody but applications gets."""
        wanted = self.cmdline.get("hugepages", "0")
        if not wanted.isdecimal():
            raise KernelPanic(f"hugepages={wanted} is no number")
        if int(wanted):
            size = int(wanted) * HUGEPAGE
            try:
                self.hugepages = self.pages.reserve(size // PAGE, HUGEPAGE // PAGE), size
            except OSError as error:
                raise KernelPanic(f"HugeTLB: hugepages={wanted}: {error.strerror}") from error
            self.machine.log(f"HugeTLB: registered 2.00 MiB page size, pre-allocated {wanted} pages")

    def _detect_iommu(self, tables: AcpiTables) -> acpi.Dmar | None:
        """The DMAR table, where there is one and the command line wants it used."""
        log = self.machine.log
        dmar = tables.dmar()
        if dmar is None:
            if self.cmdline.iommu:
                log("DMAR: No DMAR table found; devices reach all memory")
            return None
        log(f"DMAR: Host address width {dmar.host_address_width}")
        for unit in dmar.units:
            log(f"DMAR: DRHD base: {unit.base:#016x} flags: {unit.flags:#x}")
        if not self.cmdline.iommu:
            log("DMAR: IOMMU disabled; devices reach all memory")
            return None
        log("DMAR: IOMMU enabled")
        if len(dmar.units) > 1:
            log(f"DMAR: only the first of {len(dmar.units)} units is driven; what is behind another reaches all memory")
        return dmar

    def _scan_pci(self, ecam: acpi.Ecam, gap: tuple[int, int], enable_acs: bool) -> None:
        size = ecam.last_bus + 1 << 20
        self.machine.log(
            f"PCI: MMCONFIG for domain 0000 [bus {ecam.first_bus:02x}-{ecam.last_bus:02x}]"
            f" at [mem {ecam.base:#010x}-{ecam.base + size - 1:#010x}]"
        )
        self.bus = PciBus(self.machine, ecam, gap, enable_acs, self._last_bus())
        self.bus.scan()

    def _last_bus(self) -> int:
        """`pci=lastbus=N`: the last bus that may be the root of another host bridge; 0 without."""
        words = [word.removeprefix("lastbus=") for word in self.cmdline.values("pci") if word.startswith("lastbus=")]
        if words and not words[-1].isdecimal():
            raise KernelPanic(f"pci=lastbus={words[-1]} is no number")
        return int(words[-1]) if words else 0

    def _start_iommu(self, dmar: acpi.Dmar, params: BootParams, gap: tuple[int, int]) -> None:
        log = self.machine.log
        unit = dmar.units[0]
        try:
            iommu = IntelIommu(
                self.machine,
                unit,
                self.pages,
                self.irq,
                self.counters,
                dmar.host_address_width,
                ats="noats" not in self.cmdline.values("pci"),
                large_pages="sp_off" not in self.cmdline.values("intel_iommu"),
            )
        except OSError as error:
            log(f"DMAR: {error.strerror}")
            log("DMAR: Initialization failed; devices reach all memory")
            return
        self.iommu = iommu
        self.lines.source = next(
            (pci.bdf(scope.start_bus, *scope.path[0]) for scope in unit.scopes if scope.kind == acpi.ScopeType.IOAPIC),
            None,
        )
        self._remap_interrupts(iommu, dmar)
        passthrough = self.cmdline.get("iommu") == "pt" or self.cmdline.enabled("iommu.passthrough")
        log(f"iommu: Default domain type: {'Passthrough' if passthrough else 'Translated'}")
        if not passthrough:
            self._log_policy(iommu.capability.caching_mode)
        self._domains = DefaultDomains(
            iommu, self.pages, self.counters, identity=params.ram if passthrough else None, windows=[gap]
        )
        for device in self.pci:
            iommu.add_device(device)
            self.claim(device)
        iommu.enable()
        log("DMAR: Intel(R) Virtualization Technology for Directed I/O")

    def _remap_interrupts(self, iommu: IntelIommu, dmar: acpi.Dmar) -> None:
        """Interrupt remapping, where firmware and unit offer it and `intremap=off` does not forbid it.

        In Linux's words (drivers/iommu/intel/irq_remapping.c); `intremap=nosid` verifies no source.
        """
        log = self.machine.log
        options = self.cmdline.values("intremap")
        offered = dmar.flags & acpi.DmarFlags.INTR_REMAP and iommu.extended.interrupt_remapping
        if not offered or "off" in options:
            return
        extended = self.cmdline.enabled("x2apic")
        if extended and not iommu.extended.extended_interrupt_mode:
            log("DMAR-IR: dmar0 does not support EIM")
            extended = False
        try:
            self.irq.remapping = iommu.remap_interrupts(extended=extended, verify_sources="nosid" not in options)
        except OSError as error:
            log(f"DMAR-IR: {error.strerror}")
            log("DMAR-IR: Failed to setup irq remapping for dmar0")
            log("DMAR-IR: Failed to enable irq remapping. You are vulnerable to irq-injection attacks.")
            return
        log(f"DMAR-IR: Enabled IRQ remapping in {'x2apic' if extended else 'xapic'} mode")

    def _log_policy(self, caching_mode: bool) -> None:
        """Strict, and why, where the command line asks for lazy unmapping (iommu.strict=0)."""
        log = self.machine.log
        if caching_mode:
            log("DMAR: IOMMU batching disallowed due to virtualization")
        elif not self.cmdline.enabled("iommu.strict", default=True):
            log("iommu: lazy mode (iommu.strict=0) is not implemented; strict mode is used")
        log("iommu: DMA domain TLB invalidation policy: strict mode")

    def claim(self, device: PciDevice) -> None:
        """Default domain of a device that the kernel may drive; bridges and those for VFIO stay blocked."""
        if self._domains is None or device.bdf in self._reserved_for_vfio:
            return
        if device.is_bridge or device.class_code == ClassCode.HOST_BRIDGE:
            return
        assert self.iommu is not None
        if self.iommu.covers(device) and self.iommu.group_of(device.bdf) not in self.user_groups:
            try:
                self._domains.claim(device)
            except OSError as error:
                self.machine.log(f"pci {device.name}: no DMA domain: {error.strerror}")

    def _bind(self, device: PciDevice) -> None:
        if device.bdf in self._reserved_for_vfio:
            self.machine.log(f"vfio-pci {device.name}: left to vfio-pci")
            return
        if self.iommu is not None and self.iommu.group_of(device.bdf) in self.user_groups:
            self.machine.log(f"pci {device.name}: no driver: a user process has its IOMMU group")
            return
        for driver in self._driver_classes:
            if (device.vendor, device.device) in driver.ids:
                try:
                    self.drivers[device.bdf] = driver.probe(self, device)
                except OSError as error:
                    self.machine.log(f"{driver.name} {device.name}: probe failed: {error.strerror}")
                return

    def _named_devices(self, key: str) -> set[int]:
        found = set()
        for name in self.cmdline.values(key):
            try:
                found.add(parse_bdf(name))
            except ValueError as error:
                raise KernelPanic(f"{key}: {error}") from error
        return found
