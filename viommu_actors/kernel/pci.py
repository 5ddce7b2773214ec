"""A PCI function as a kernel sees it: configuration space by ECAM, BARs, capabilities."""

from __future__ import annotations

from errno import ENODEV
from typing import NamedTuple

from viommu_actors.kernel.machine import Machine
from viommu_actors.pci.capabilities import capabilities
from viommu_actors.spec import pci
from viommu_actors.spec.acpi import Ecam

_EXTENDED_LIMIT = (pci.CONFIG_SIZE - pci.FIRST_EXTENDED_CAPABILITY) // 8
#: No extended capability is shorter than 8 bytes, so that none starts later.
_LAST_EXTENDED = pci.CONFIG_SIZE - 8


class Bar(NamedTuple):
    """An assigned memory BAR: physical address and size in bytes."""

    address: int
    size: int
    is64: bool
    prefetch: bool


class PciDevice:
    """One function. Its registers are the device's to answer: nothing read here may be trusted."""

    def __init__(self, machine: Machine, ecam: Ecam, bdf: int, parent: PciDevice | None) -> None:
        """`parent` is the bridge above, None on the root bus."""
        self._machine = machine
        self._config = ecam.base + pci.ecam_offset(bdf, 0)
        self.bdf = bdf
        self.parent = parent
        self.name = f"0000:{pci.format_bdf(bdf)}"
        identity = self.config_read(pci.VENDOR_ID, 4)
        self.vendor, self.device = identity & 0xFFFF, identity >> 16
        header = self.config_read(pci.HEADER_TYPE, 1)
        self.header_type = header & pci.HEADER_TYPE_MASK
        self.multifunction = bool(header & pci.HEADER_MULTI_FUNCTION)
        self.class_code = self.config_read(pci.CLASS_DEVICE, 2)
        self.bars: dict[int, Bar] = {}
        #: Requester IDs in place of its own that its requests may arrive with: a bridge to conventional PCI puts in
        #: that of its secondary bus (Linux: pci_for_each_dma_alias).
        self.aliases: tuple[int, ...] = ()
        if parent is not None:
            bridged = parent.port_type == pci.PortType.PCI_BRIDGE
            self.aliases = (*((pci.bdf(self.bus, 0, 0),) if bridged else ()), *parent.aliases)
        self._capabilities = self._walk_capabilities()
        self._extended = self._walk_extended() if pci.CapabilityId.PCI_EXPRESS in self._capabilities else {}

    def __repr__(self) -> str:
        return f"PciDevice({self.name} [{self.vendor:04x}:{self.device:04x}])"

    @property
    def bus(self) -> int:
        return pci.bdf_bus(self.bdf)

    @property
    def requester_ids(self) -> tuple[int, ...]:
        """Its own and its aliases, each once."""
        return tuple(dict.fromkeys((self.bdf, *self.aliases)))

    @property
    def is_bridge(self) -> bool:
        return self.header_type == pci.HEADER_TYPE_BRIDGE

    @property
    def port_type(self) -> int | None:
        """Device/port type of a PCI Express function, None for others."""
        offset = self.capability(pci.CapabilityId.PCI_EXPRESS)
        if offset is None:
            return None
        flags = self.config_read(offset + pci.EXP_FLAGS, 2)
        return (flags & pci.EXP_FLAGS_TYPE_MASK) >> pci.EXP_FLAGS_TYPE_SHIFT

    @property
    def hotplug_slot(self) -> int | None:
        """Number of the hot-plug slot that a port leads to, None where it leads to none."""
        offset = self.capability(pci.CapabilityId.PCI_EXPRESS)
        if offset is None or not self.config_read(offset + pci.EXP_FLAGS, 2) & pci.EXP_FLAGS_SLOT:
            return None
        slot = self.config_read(offset + pci.EXP_SLOT_CAPABILITIES, 4)
        return slot >> pci.SLTCAP_NUMBER_SHIFT if slot & pci.SLTCAP_HOTPLUG_CAPABLE else None

    def config_read(self, offset: int, size: int) -> int:
        """Reads 1, 2 or 4 naturally aligned bytes. Raises ValueError otherwise."""
        _check_config(offset, size)
        return self._machine.mmio_read(self._config + offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Writes 1, 2 or 4 naturally aligned bytes. Raises ValueError otherwise."""
        _check_config(offset, size)
        self._machine.mmio_write(self._config + offset, size, value)

    def capability(self, identifier: int) -> int | None:
        """Offset of a capability."""
        return self._capabilities.get(identifier)

    def extended_capability(self, identifier: int) -> int | None:
        """Offset of an extended capability."""
        return self._extended.get(identifier)

    def read(self, bar: int, offset: int, size: int) -> int:
        """Reads a register in a BAR. Raises OSError(ENODEV) where the device, whatever it says it is, has none."""
        return self._machine.mmio_read(self._register(bar, offset, size), size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Writes a register in a BAR. Raises as `read` does."""
        self._machine.mmio_write(self._register(bar, offset, size), size, value)

    def set_bus_master(self, enabled: bool) -> None:
        """Lets the device master the bus, or forbids it."""
        self.set_command(pci.Command.BUS_MASTER if enabled else 0, pci.Command.BUS_MASTER)

    def set_command(self, bits: int, mask: int) -> None:
        """Changes the `mask` bits of the command register to `bits`."""
        command = self.config_read(pci.COMMAND, 2)
        self.config_write(pci.COMMAND, 2, command & ~int(mask) | int(bits))

    def _register(self, bar: int, offset: int, size: int) -> int:
        window = self.bars.get(bar)
        if window is None or offset < 0 or offset + size > window.size:
            raise OSError(ENODEV, f"{self.name}: nothing at {offset:#x} of BAR {bar}")
        return window.address + offset

    def _walk_capabilities(self) -> dict[int, int]:
        """First offset of each capability; a list that is broken or loops ends where it does so."""
        listed, broken = capabilities(self.config_read)
        if broken:
            self._machine.log(f"pci {self.name}: broken capability list at {broken:#x}")
        found: dict[int, int] = {}
        for identifier, offset in listed:
            found.setdefault(identifier, offset)
        return found

    def _walk_extended(self) -> dict[int, int]:
        found: dict[int, int] = {}
        offset = pci.FIRST_EXTENDED_CAPABILITY
        for _ in range(_EXTENDED_LIMIT):
            header = self.config_read(offset, 4)
            if header in (0, 0xFFFF_FFFF):
                break
            found.setdefault(header & pci.EXTENDED_ID_MASK, offset)
            offset = header >> pci.EXTENDED_NEXT_SHIFT & ~3
            if not pci.FIRST_EXTENDED_CAPABILITY <= offset <= _LAST_EXTENDED:
                break
        else:
            self._machine.log(f"pci {self.name}: extended capability list has no end")
        return found


def _check_config(offset: int, size: int) -> None:
    if not pci.is_config_access(offset, size):
        raise ValueError(f"no configuration access of {size} bytes at {offset:#x}")
