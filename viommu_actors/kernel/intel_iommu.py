"""Driver of an Intel VT-d remapping unit (Linux: drivers/iommu/intel/iommu.c), legacy mode.

Root and context tables, domains, enabling and disabling. A device in no domain has no context entry: it is blocked.
"""

from __future__ import annotations

from collections import Counter
from errno import EBUSY, EIO, ENODEV, ENOSPC

from viommu_actors.kernel.ats import AddressTranslation, offers_ats
from viommu_actors.kernel.device_scope import in_scope
from viommu_actors.kernel.domain import AnyDomain, Domain, PassThrough
from viommu_actors.kernel.faults import FaultHandler, FaultRecord
from viommu_actors.kernel.interrupt_remapping import InterruptRemapping
from viommu_actors.kernel.invalidation import QueuedInvalidation, RegisterInvalidation
from viommu_actors.kernel.iommu_groups import IommuGroups
from viommu_actors.kernel.irq import Interrupts
from viommu_actors.kernel.machine import KernelPanic, Machine
from viommu_actors.kernel.pages import PageAllocator
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci
from viommu_actors.spec.acpi import Drhd, DrhdFlags
from viommu_actors.spec.vtd import (
    ENTRY_SIZE,
    ONE_SHOT_COMMANDS,
    Capability,
    Command,
    ContextEntry,
    ContextGranularity,
    ExtendedCapability,
    IotlbGranularity,
    Reg,
    RootEntry,
    TranslationType,
)

#: Reads of a status after which the unit counts as dead.
_PATIENCE = 10_000
#: Domain id of pass-through; 0 is what a unit with caching mode tags entries that are not present with, so it is
#: never used (Linux does the same on every unit).
_PASS_THROUGH_ID = 1
_FIRST_ID = 2


class IntelIommu:
    """One remapping unit, set up with an empty root table; `enable` starts translation."""

    def __init__(
        self,
        machine: Machine,
        unit: Drhd,
        pages: PageAllocator,
        irq: Interrupts,
        counters: Counter[str],
        physical_width: int,
        *,
        ats: bool = True,
        large_pages: bool = True,
    ) -> None:
        """`physical_width` is the machine's host address width in bits; without `ats` no device's ATS is switched on,
        without `large_pages` tables have leaves of 4 KiB alone. Raises OSError(ENODEV) for no usable unit."""
        self._machine = machine
        self._memory = machine.memory
        self._unit = unit
        self._pages = pages
        self._counters = counters
        self._physical_width = physical_width
        capability, extended = self._read(Reg.CAP, 8), self._read(Reg.ECAP, 8)
        if capability in (0, (1 << 64) - 1):
            ones = "ones" if capability else "zeros"
            raise OSError(ENODEV, f"DMAR reported at address {unit.base:x} returns all {ones}!")
        version = self._read(Reg.VER, 4)
        self._log(
            f"dmar0: reg_base_addr {unit.base:x} ver {version >> 4 & 0xF}:{version & 0xF}"
            f" cap {capability:x} ecap {extended:x}"
        )
        self.capability = Capability.decode(capability)
        self.extended = ExtendedCapability.decode(extended)
        if not self.capability.widths:
            raise OSError(ENODEV, "Cannot get a valid agaw for iommu (seq_id = 0)")
        self._groups = IommuGroups()
        if not large_pages:
            self._log("Disable supported super page")
        self._large_pages = self.capability.large_pages if large_pages else 0
        self._allows_ats = ats and self.extended.device_iotlb
        self._ats = AddressTranslation()
        #: Devices that did not complete an invalidation, and the domain that each comes back to with its reset.
        self._quarantined: dict[int, AnyDomain | None] = {}
        self._attached: dict[int, AnyDomain] = {}
        #: By requester ID: the domain that its context entry names, and the devices that are in one by it.
        self._entries: dict[int, tuple[AnyDomain, set[int]]] = {}
        self._next_id = _FIRST_ID
        self._free_ids: list[int] = []
        self._domains: list[Domain] = []
        self._contexts: dict[int, int] = {}
        self._command = self._read(Reg.GSTS, 4) & ~ONE_SHOT_COMMANDS & 0xFFFF_FFFF
        self._set_command(Command.TE, False)
        self._set_command(Command.IRE, False)
        self._remapping: InterruptRemapping | None = None
        self.invalidation = self._start_invalidation()
        self._faults = FaultHandler(machine, unit.base, self.capability, irq, counters)
        self._root = pages.alloc()
        self._write(Reg.RTADDR, 8, self._root)
        self._set_command(Command.SRTP, True)
        self.invalidation.context(ContextGranularity.GLOBAL)
        self.invalidation.iotlb(IotlbGranularity.GLOBAL)
        self.pass_through: PassThrough | None = None
        if self.extended.pass_through:
            self.pass_through = PassThrough(_PASS_THROUGH_ID, max(self.capability.widths))

    # --- groups

    @property
    def groups(self) -> dict[int, list[PciDevice]]:
        """Devices that only go together into a domain, by group number."""
        return self._groups.groups

    def group_of(self, bdf: int) -> int | None:
        """The device's group; None for one that no unit translates."""
        return self._groups.group_of(bdf)

    def reserve_group(self) -> int:
        """The number of a group that no device of this unit is in (vfio-noiommu's)."""
        return self._groups.reserve()

    def add_device(self, device: PciDevice) -> None:
        """A function was found; bridges come before what is behind them."""
        if self.covers(device):
            self._machine.log(f"pci {device.name}: Adding to iommu group {self._groups.add(device)}")

    def remove_device(self, device: PciDevice) -> None:
        """A function was unplugged."""
        if self._groups.group_of(device.bdf) is not None:
            self.detach(device)
            self._groups.remove(device)
            self._quarantined.pop(device.bdf, None)

    def covers(self, device: PciDevice) -> bool:
        """Whether the device is in the unit's scope (VT-d section 8.3.1)."""
        if self._unit.flags & DrhdFlags.INCLUDE_PCI_ALL:
            return True
        return any(in_scope(scope, device) for scope in self._unit.scopes)

    # --- domains

    @property
    def domains(self) -> list[Domain]:
        """Those that were made and not freed."""
        return list(self._domains)

    def new_domain(self) -> Domain:
        """An empty domain. Raises OSError: ENOSPC without a domain id, ENOMEM without memory."""
        capability = self.capability
        number = self._free_ids.pop() if self._free_ids else self._next_id
        if number >> capability.domains:
            raise OSError(ENOSPC, "no IOMMU domain id left")
        width = min(max(capability.widths), capability.address_width)
        try:
            domain = Domain(
                number,
                width,
                self._memory,
                self._pages,
                self._counters,
                self.invalidation,
                physical_width=self._physical_width,
                large_pages=self._large_pages,
                max_mask=capability.max_address_mask if capability.page_selective else -1,
                flush_maps=capability.caching_mode,
                flush_device=self._flush_device,
            )
        except OSError:
            if number != self._next_id:
                self._free_ids.append(number)
            raise
        self._next_id = max(self._next_id, number + 1)
        self._domains.append(domain)
        return domain

    def free_domain(self, domain: Domain) -> None:
        """Gives tables and id back. Raises OSError(EBUSY) while a device is attached."""
        if domain.devices:
            raise OSError(EBUSY, f"domain {domain.id} still has devices")
        self._domains.remove(domain)
        domain.destroy()
        self._free_ids.append(domain.id)

    def attached(self, device: PciDevice) -> AnyDomain | None:
        """The domain that the device is in."""
        return self._attached.get(device.bdf)

    def attach(self, device: PciDevice, domain: AnyDomain) -> None:
        """Puts the device into the domain, out of any other before, by its own requester ID and its aliases.

        An alias belongs to all that share it: whoever was in another domain by it is so no more. A device that offers
        ATS gets it with tables of its own (Linux: dmar_domain_attach_device): it asks for translations and keeps them,
        and its context entry lets translated requests pass.

        Raises OSError: ENODEV for a device that the unit does not translate, ENOMEM without a context table, EIO for
        one that is in quarantine.
        """
        if self._groups.group_of(device.bdf) is None:
            raise OSError(ENODEV, f"{device.name} is behind no IOMMU")
        if device.bdf in self._quarantined:
            raise OSError(EIO, f"{device.name} is blocked: it did not complete an invalidation")
        if self._attached.get(device.bdf) is domain:
            return
        self.detach(device)
        own = domain if isinstance(domain, Domain) and self._may_translate(device) else None
        entry = domain.context_entry()
        if own is not None:
            entry = entry._replace(translation_type=TranslationType.DEVICE_IOTLB)
        for source in device.requester_ids:
            self._enter(source, domain, entry, device)
        self._attached[device.bdf] = domain
        domain.devices.add(device.bdf)
        self.invalidation.iotlb(IotlbGranularity.DOMAIN, domain.id)
        if own is not None:
            own.device_tlbs.add(device.bdf)
            self._ats.enable(device)
            self._machine.log(f"pci {device.name}: ATS enabled")

    def detach(self, device: PciDevice) -> None:
        """Blocks the device: from here on nothing of it reaches memory."""
        if device.bdf in self._quarantined:
            self._quarantined[device.bdf] = None
        self._ats.disable(device)
        self._block(device)

    def was_reset(self, device: PciDevice) -> None:
        """The function holds nothing any more of before: one in quarantine comes back to its domain."""
        domain = self._quarantined.pop(device.bdf, None)
        if domain is not None:
            self.attach(device, domain)

    def _block(self, device: PciDevice) -> None:
        """Takes its context entry away."""
        domain = self._attached.pop(device.bdf, None)
        if domain is None:
            return
        if isinstance(domain, Domain):
            domain.device_tlbs.discard(device.bdf)
        for source in device.requester_ids:
            named, users = self._entries[source]
            users.discard(device.bdf)
            if not users:
                self._clear(source, named)
        domain.devices.discard(device.bdf)

    def _enter(self, source: int, domain: AnyDomain, entry: ContextEntry, device: PciDevice) -> None:
        """Has the context entry of a requester ID name the domain."""
        named, users = self._entries.get(source, (domain, set[int]()))
        users.add(device.bdf)
        if named is not domain:
            self._clear(source, named)
        slot = self._context_slot(source)
        low, high = entry.encode()
        self._memory.write_u64(slot + 8, high)
        self._memory.write_u64(slot, low)
        self._entries[source] = domain, users
        # What was not present is cached in caching mode only, under domain id 0 (VT-d section 6.1).
        self.invalidation.context(ContextGranularity.DEVICE, 0, source)

    def _clear(self, source: int, domain: AnyDomain) -> None:
        """Blocks a requester ID."""
        slot = self._context_slot(source)
        self._memory.write_u64(slot, 0)
        self._memory.write_u64(slot + 8, 0)
        del self._entries[source]
        self.invalidation.context(ContextGranularity.DEVICE, domain.id, source)
        self.invalidation.iotlb(IotlbGranularity.DOMAIN, domain.id)

    # --- device-TLBs

    def _may_translate(self, device: PciDevice) -> bool:
        queued = isinstance(self.invalidation, QueuedInvalidation)
        # An alias is the bridge's name, and the bridge caches nothing.
        return self._allows_ats and queued and not device.aliases and offers_ats(device)

    def _flush_device(self, source: int, first: int, shift: int) -> None:
        """Has a device forget translations. One that does not say that it has is blocked instead, until it is reset, so
        that what it may still hold is of no use to it, and the others go on."""
        assert isinstance(self.invalidation, QueuedInvalidation)
        device, depth = self._ats.of(source)
        if not self.invalidation.device_tlb(source, first, shift, depth):
            self._counters["ats_timeouts"] += 1
            self._quarantined[source] = self._attached[source]
            self._machine.log(f"pci {device.name}: no answer to an invalidation, device is blocked")
            # The unit first: what a device that answers nothing is told may take long, and not arrive.
            self._block(device)
            self._ats.disable(device)

    # --- the unit

    def enable(self) -> None:
        """Starts translation."""
        self._set_command(Command.TE, True)

    @property
    def interrupt_remapping(self) -> bool:
        """Whether no device behind the unit can raise an interrupt that it was not given."""
        return self._remapping is not None

    def remap_interrupts(self, *, extended: bool, verify_sources: bool) -> InterruptRemapping:
        """Starts interrupt remapping with an empty table: from here on every interrupt of a device is blocked that
        has no entry, and so is the compatibility format.

        Raises OSError(ENODEV) for a unit without invalidation queue: its entries could not be taken back.
        """
        if not isinstance(self.invalidation, QueuedInvalidation):
            raise OSError(ENODEV, "Failed to enable queued invalidation")
        remapping = InterruptRemapping(
            self._memory,
            self._pages,
            self.invalidation,
            self.covers,
            extended=extended,
            verify_sources=verify_sources,
        )
        self._write(Reg.IRTA, 8, remapping.table_register)
        self._set_command(Command.SIRTP, True)
        self.invalidation.interrupt_entries()
        self._set_command(Command.IRE, True)
        self._set_command(Command.CFI, False)
        self._remapping = remapping
        return remapping

    @property
    def faults(self) -> list[FaultRecord]:
        """Records not taken yet."""
        return self._faults.records

    @property
    def faults_lost(self) -> int:
        return self._faults.lost

    def take_faults(self) -> tuple[list[FaultRecord], int]:
        """Records since the last call, read from the unit now, and how many were lost."""
        return self._faults.take()

    def table_pages(self) -> list[int]:
        """Addresses of the page table pages of all domains."""
        return [page for domain in self._domains for page in domain.tables]

    def structure_pages(self) -> list[int]:
        """Addresses of root table, context tables, invalidation queue and interrupt remapping table."""
        tables = [] if self._remapping is None else [self._remapping.table]
        return [self._root, *self._contexts.values(), *self.invalidation.pages, *tables]

    def _context_slot(self, bdf: int) -> int:
        bus = pci.bdf_bus(bdf)
        if bus not in self._contexts:
            self._contexts[bus] = self._pages.alloc()
            low, high = RootEntry(True, self._contexts[bus]).encode()
            self._memory.write_u64(self._root + bus * ENTRY_SIZE + 8, high)
            self._memory.write_u64(self._root + bus * ENTRY_SIZE, low)
        return self._contexts[bus] + (bdf & 0xFF) * ENTRY_SIZE

    def _start_invalidation(self) -> QueuedInvalidation | RegisterInvalidation:
        drain = self.capability.drain_write, self.capability.drain_read
        if not self.extended.queued_invalidation:
            self._log("dmar0: Using Register based invalidation")
            return RegisterInvalidation(
                self._machine, self._unit.base, self.extended.iotlb_offset, self._counters, drain
            )
        self._set_command(Command.QIE, False)
        queue = QueuedInvalidation(self._machine, self._unit.base, self._pages, self._counters, drain)
        self._write(Reg.IQT, 4, 0)
        self._write(Reg.IQA, 8, queue.ring)
        self._set_command(Command.QIE, True)
        self._log("dmar0: Using Queued invalidation")
        return queue

    def _set_command(self, bit: int, on: bool) -> None:
        """Writes one GCMD bit and waits until GSTS shows it (VT-d section 11.4.4)."""
        if on and bit & ONE_SHOT_COMMANDS:
            self._write(Reg.GCMD, 4, self._command | bit)
        elif bool(self._command & bit) != on:
            self._command ^= bit
            self._write(Reg.GCMD, 4, self._command)
        for _ in range(_PATIENCE):
            if bool(self._read(Reg.GSTS, 4) & bit) == on:
                return
        raise KernelPanic(f"DMAR: the unit does not take command {bit:#010x} (GSTS bit {on:d})")

    def _read(self, register: int, size: int) -> int:
        return self._machine.mmio_read(self._unit.base + register, size)

    def _write(self, register: int, size: int, value: int) -> None:
        self._machine.mmio_write(self._unit.base + register, size, value)

    def _log(self, line: str) -> None:
        self._machine.log(f"DMAR: {line}")
