"""A function's configuration space: bytes, which of them software may change, and the capability chains.

PCI 3.0 chapter 6 and PCI Express 5.0 chapter 7. A write keeps read-only bits, and clears the bits
that are cleared by ones. BAR sizing needs no code of its own: the low bits of a BAR are read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from viommu_actors.spec import pci


@dataclass(frozen=True)
class BarLayout:
    """A memory BAR as the function implements it."""

    index: int
    size: int
    is64: bool
    prefetch: bool


class ConfigSpace:
    """4096 bytes of registers; what nobody defined reads as zero and ignores writes."""

    def __init__(self) -> None:
        self._data = bytearray(pci.CONFIG_SIZE)
        self._initial = bytearray(pci.CONFIG_SIZE)
        self._writable = bytearray(pci.CONFIG_SIZE)
        self._clear = bytearray(pci.CONFIG_SIZE)
        self._bars: dict[int, BarLayout] = {}
        self._next_capability = pci.FIRST_CAPABILITY
        self._last_capability = 0
        self._next_extended = pci.FIRST_EXTENDED_CAPABILITY
        self._last_extended = 0

    def define(self, offset: int, size: int, value: int, writable: int = 0, clear: int = 0) -> None:
        """Sets a register's reset value, its read-write bits and its write-one-to-clear bits."""
        place = slice(offset, offset + size)
        self._data[place] = self._initial[place] = value.to_bytes(size, "little")
        self._writable[place] = writable.to_bytes(size, "little")
        self._clear[place] = clear.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A write by software."""
        place = slice(offset, offset + size)
        writable = int.from_bytes(self._writable[place], "little")
        clear = int.from_bytes(self._clear[place], "little")
        old = int.from_bytes(self._data[place], "little")
        self._data[place] = ((old & ~writable | value & writable) & ~(clear & value)).to_bytes(size, "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """A change by the hardware itself, whatever software may write."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        """Every register back to its reset value."""
        self._data[:] = self._initial

    def dump(self) -> bytes:
        return bytes(self._data)

    def load(self, dump: bytes) -> None:
        """What software had written, as a `dump` of the same function shows it; the rest stays this function's own."""
        writable = int.from_bytes(self._writable, "little")
        merged = int.from_bytes(self._data, "little") & ~writable | int.from_bytes(dump, "little") & writable
        self._data[:] = merged.to_bytes(pci.CONFIG_SIZE, "little")

    # --- base address registers

    def add_bar(self, index: int, size: int, is64: bool = False, prefetch: bool = False) -> None:
        """Adds a memory BAR; `size` is a power of two of at least 16 bytes. A 64-bit BAR takes the next index too."""
        if size < pci.BAR_MIN_SIZE or size & (size - 1):
            raise ValueError(f"BAR size {size:#x} is no power of two of at least {pci.BAR_MIN_SIZE}")
        flags = (pci.BAR_TYPE_64 if is64 else 0) | (pci.BAR_PREFETCH if prefetch else 0)
        width = 8 if is64 else 4
        self.define(pci.BAR0 + 4 * index, width, flags, writable=(1 << 8 * width) - size)
        self._bars[index] = BarLayout(index, size, is64, prefetch)

    @property
    def bars(self) -> dict[int, BarLayout]:
        return self._bars

    def bar_address(self, index: int) -> int:
        layout = self._bars[index]
        return self.read(pci.BAR0 + 4 * index, 8 if layout.is64 else 4) & ~0xF

    # --- capabilities

    def add_capability(self, identifier: int, size: int) -> int:
        """Links a capability of `size` bytes into the chain; returns its offset."""
        offset = self._next_capability
        if self._last_capability:
            self._link(self._last_capability + pci.CAPABILITY_NEXT, offset)
        else:
            self._link(pci.CAPABILITY_POINTER, offset)
            self.define(pci.STATUS, 2, self.read(pci.STATUS, 2) | pci.Status.CAPABILITIES, clear=self._status_clear())
        self.define(offset + pci.CAPABILITY_ID, 1, identifier)
        self._last_capability = offset
        self._next_capability = offset + (size + 3 & ~3)
        return offset

    def add_extended_capability(self, identifier: int, version: int, size: int) -> int:
        """Links an extended capability of `size` bytes into its chain; returns its offset."""
        offset = self._next_extended
        if self._last_extended:
            previous = self.read(self._last_extended, 4)
            self.define(self._last_extended, 4, previous | offset << pci.EXTENDED_NEXT_SHIFT)
        self.define(offset, 4, identifier | version << pci.EXTENDED_VERSION_SHIFT)
        self._last_extended = offset
        self._next_extended = offset + (size + 3 & ~3)
        return offset

    def capability(self, identifier: int) -> int | None:
        """Offset of a capability by its ID."""
        return next((offset for found, offset in self.capabilities() if found == identifier), None)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(ID, offset) along the chain, each offset once at most."""
        seen: set[int] = set()
        offset = self.read(pci.CAPABILITY_POINTER, 1)
        while offset and offset not in seen:
            seen.add(offset)
            yield self.read(offset + pci.CAPABILITY_ID, 1), offset
            offset = self.read(offset + pci.CAPABILITY_NEXT, 1)

    def extended_capability(self, identifier: int) -> int | None:
        """Offset of an extended capability by its ID."""
        offset = pci.FIRST_EXTENDED_CAPABILITY
        while offset:
            header = self.read(offset, 4)
            if header and header & pci.EXTENDED_ID_MASK == identifier:
                return offset
            offset = header >> pci.EXTENDED_NEXT_SHIFT
        return None

    def _link(self, offset: int, target: int) -> None:
        self.define(offset, 1, target)

    def _status_clear(self) -> int:
        return int.from_bytes(self._clear[pci.STATUS : pci.STATUS + 2], "little")


# --- headers


def endpoint_header(vendor: int, device: int, class_code: int, revision: int = 0) -> ConfigSpace:
    """Type 0 header of a function with memory BARs only, its subsystem named as itself."""
    space = _header(vendor, device, class_code, revision, pci.HEADER_TYPE_ENDPOINT)
    space.define(pci.SUBSYSTEM_VENDOR_ID, 2, vendor)
    space.define(pci.SUBSYSTEM_ID, 2, device)
    return space


def bridge_header(vendor: int, device: int, revision: int = 0) -> ConfigSpace:
    """Type 1 header of a PCI-to-PCI bridge: bus numbers, a 32-bit and a 64-bit prefetchable window, no I/O."""
    space = _header(vendor, device, pci.ClassCode.PCI_BRIDGE, revision, pci.HEADER_TYPE_BRIDGE)
    for register in (pci.PRIMARY_BUS, pci.SECONDARY_BUS, pci.SUBORDINATE_BUS):
        space.define(register, 1, 0, writable=0xFF)
    space.define(pci.SECONDARY_STATUS, 2, 0, clear=pci.STATUS_WRITE_ONE_TO_CLEAR)
    for register in (pci.MEMORY_BASE, pci.MEMORY_LIMIT):
        space.define(register, 2, 0, writable=pci.WINDOW_MASK)
    for register in (pci.PREFETCH_BASE, pci.PREFETCH_LIMIT):
        space.define(register, 2, pci.PREFETCH_64, writable=pci.WINDOW_MASK)
    for register in (pci.PREFETCH_BASE_UPPER, pci.PREFETCH_LIMIT_UPPER):
        space.define(register, 4, 0, writable=0xFFFF_FFFF)
    space.define(pci.BRIDGE_CONTROL, 2, 0, writable=pci.SECONDARY_BUS_RESET)
    return space


def _header(vendor: int, device: int, class_code: int, revision: int, header_type: int) -> ConfigSpace:
    space = ConfigSpace()
    space.define(pci.VENDOR_ID, 2, vendor)
    space.define(pci.DEVICE_ID, 2, device)
    command = pci.Command.MEMORY | pci.Command.BUS_MASTER | pci.Command.PARITY | pci.Command.SERR
    space.define(pci.COMMAND, 2, 0, writable=command | pci.Command.INTX_DISABLE)
    space.define(pci.STATUS, 2, 0, clear=pci.STATUS_WRITE_ONE_TO_CLEAR)
    space.define(pci.REVISION_ID, 1, revision)
    space.define(pci.CLASS_DEVICE, 2, class_code)
    space.define(pci.CACHE_LINE_SIZE, 1, 0, writable=0xFF)
    space.define(pci.HEADER_TYPE, 1, header_type)
    space.define(pci.INTERRUPT_LINE, 1, 0, writable=0xFF)
    return space


# --- capabilities


def add_power_management(space: ConfigSpace) -> int:
    """D0 and D3hot, no PME; leaving D3hot keeps the registers."""
    offset = space.add_capability(pci.CapabilityId.POWER_MANAGEMENT, pci.PM_SIZE)
    space.define(offset + pci.PM_CAPABILITIES, 2, pci.PM_VERSION_1_2)
    space.define(offset + pci.PM_CONTROL, 2, pci.PM_NO_SOFT_RESET, writable=pci.PM_STATE_MASK)
    return offset


def add_msi(space: ConfigSpace, messages: int = 1) -> int:
    """`messages` (a power of two up to 32) with 64-bit addresses and without mask bits; QEMU's edu has one."""
    if messages not in pci.MSI_MESSAGES:
        raise ValueError(f"MSI has no {messages} messages")
    offset = space.add_capability(pci.CapabilityId.MSI, pci.MSI_SIZE_64)
    capable = pci.MSI_MESSAGES.index(messages) << pci.MSI_MULTIPLE_CAPABLE_SHIFT
    writable = pci.MSI_ENABLE | pci.MSI_MULTIPLE_ENABLE_MASK
    space.define(offset + pci.MSI_CONTROL, 2, pci.MSI_64BIT | capable, writable=writable)
    space.define(offset + pci.MSI_ADDRESS, 4, 0, writable=0xFFFF_FFFC)
    space.define(offset + pci.MSI_ADDRESS_UPPER, 4, 0, writable=0xFFFF_FFFF)
    space.define(offset + pci.MSI_DATA_64, 2, 0, writable=0xFFFF)
    return offset


def add_msix(space: ConfigSpace, bar: int, vectors: int, table: int, pba: int) -> int:
    """MSI-X with its table and pending bits at offsets (multiples of 8) in a BAR that is there already."""
    if not 1 <= vectors <= pci.MSIX_MAX_VECTORS or (table | pba) & pci.MSIX_BAR_MASK:
        raise ValueError(f"no MSI-X of {vectors} vectors with its table at {table:#x} and its pending bits at {pba:#x}")
    ends = table + vectors * pci.MSIX_ENTRY_SIZE, pba + -(-vectors // 64) * pci.MSIX_PBA_UNIT
    if max(ends) > space.bars[bar].size or (table < ends[1] and pba < ends[0]):
        raise ValueError(f"MSI-X table and pending bits overlap, or do not fit into BAR {bar}")
    offset = space.add_capability(pci.CapabilityId.MSIX, pci.MSIX_SIZE)
    space.define(offset + pci.MSIX_CONTROL, 2, vectors - 1, writable=pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
    space.define(offset + pci.MSIX_TABLE, 4, table | bar)
    space.define(offset + pci.MSIX_PBA, 4, pba | bar)
    return offset


def add_express(space: ConfigSpace, port_type: pci.PortType, max_payload: int, lanes: int = 4) -> int:
    """PCI Express capability; a root port gets a hot-plug slot by `add_slot`. `max_payload` in bytes.

    An endpoint of the root complex has no link.
    """
    offset = space.add_capability(pci.CapabilityId.PCI_EXPRESS, pci.EXP_SIZE)
    endpoint = port_type in (pci.PortType.ENDPOINT, pci.PortType.ROOT_COMPLEX_ENDPOINT)
    space.define(offset + pci.EXP_FLAGS, 2, pci.EXP_FLAGS_VERSION | port_type << pci.EXP_FLAGS_TYPE_SHIFT)
    capabilities = pci.payload_code(max_payload) | pci.DEVCAP_ROLE_BASED_ERRORS
    if endpoint:
        capabilities |= pci.DEVCAP_FLR | pci.DEVCAP_EXTENDED_TAG
    space.define(offset + pci.EXP_DEVICE_CAPABILITIES, 4, capabilities)
    control = pci.DEVCTL_ERROR_REPORTING | pci.DEVCTL_MAX_PAYLOAD_MASK
    if endpoint:
        control |= pci.DEVCTL_MAX_READ_MASK | pci.DEVCTL_RELAXED_ORDERING | pci.DEVCTL_NO_SNOOP
        control |= pci.DEVCTL_EXTENDED_TAG
    reset = pci.DEVCTL_MAX_PAYLOAD_DEFAULT << pci.DEVCTL_MAX_PAYLOAD_SHIFT
    if endpoint:
        reset |= pci.DEVCTL_MAX_READ_DEFAULT << pci.DEVCTL_MAX_READ_SHIFT
    space.define(offset + pci.EXP_DEVICE_CONTROL, 2, reset, writable=control)
    space.define(offset + pci.EXP_DEVICE_STATUS, 2, 0, clear=pci.DEVSTA_WRITE_ONE_TO_CLEAR)
    if port_type is not pci.PortType.ROOT_COMPLEX_ENDPOINT:
        link = pci.LNKCAP_SPEED_8GT | lanes << pci.LNKCAP_WIDTH_SHIFT
        space.define(offset + pci.EXP_LINK_CAPABILITIES, 4, link)
        space.define(offset + pci.EXP_LINK_STATUS, 2, link)
        space.define(offset + pci.EXP_LINK_CAPABILITIES_2, 4, pci.LNKCAP2_SPEEDS_8GT)
        space.define(offset + pci.EXP_LINK_CONTROL_2, 2, pci.LNKCAP_SPEED_8GT)
    space.define(offset + pci.EXP_DEVICE_CAPABILITIES_2, 4, pci.DEVCAP2_TIMEOUT_DISABLE)
    atomic = pci.DEVCTL2_ATOMIC_REQUESTER if endpoint else 0
    space.define(offset + pci.EXP_DEVICE_CONTROL_2, 2, 0, writable=pci.DEVCTL2_TIMEOUT_MASK | atomic)
    return offset


def add_intx(space: ConfigSpace) -> None:
    """The function interrupts by INTA where neither MSI nor MSI-X is on."""
    space.define(pci.INTERRUPT_PIN, 1, 1)


def number_port(space: ConfigSpace, express: int, number: int) -> None:
    """Numbers the port of a PCI Express capability, which from here on tells whether its link is up."""
    link = space.read(express + pci.EXP_LINK_CAPABILITIES, 4) | pci.LNKCAP_DLL_ACTIVE_REPORTING
    space.define(express + pci.EXP_LINK_CAPABILITIES, 4, link | number << pci.LNKCAP_PORT_NUMBER_SHIFT)


def add_slot(space: ConfigSpace, express: int, number: int) -> None:
    """Makes the port of a PCI Express capability a hot-plug slot that also completes AtomicOps."""
    number_port(space, express, number)
    flags = space.read(express + pci.EXP_FLAGS, 2)
    space.define(express + pci.EXP_FLAGS, 2, flags | pci.EXP_FLAGS_SLOT)
    capabilities = pci.SLTCAP_HOTPLUG_SURPRISE | pci.SLTCAP_HOTPLUG_CAPABLE | pci.SLTCAP_NO_COMMAND_COMPLETED
    space.define(express + pci.EXP_SLOT_CAPABILITIES, 4, capabilities | number << pci.SLTCAP_NUMBER_SHIFT)
    control = pci.SLTCTL_PRESENCE_CHANGE_ENABLE | pci.SLTCTL_HOTPLUG_INTERRUPT_ENABLE | pci.SLTCTL_LINK_CHANGE_ENABLE
    space.define(express + pci.EXP_SLOT_CONTROL, 2, pci.SLTCTL_INDICATORS_OFF, writable=control)
    space.define(express + pci.EXP_SLOT_STATUS, 2, 0, clear=pci.SLTSTA_WRITE_ONE_TO_CLEAR)
    atomics = pci.DEVCAP2_ATOMIC_32 | pci.DEVCAP2_ATOMIC_64 | pci.DEVCAP2_ATOMIC_128_CAS
    timeouts = space.read(express + pci.EXP_DEVICE_CAPABILITIES_2, 4)
    space.define(express + pci.EXP_DEVICE_CAPABILITIES_2, 4, timeouts | atomics)


def add_ats(space: ConfigSpace) -> int:
    """Address translation services, 32 invalidations at a time."""
    offset = space.add_extended_capability(pci.ExtendedCapabilityId.ATS, 1, pci.ATS_SIZE)
    space.define(offset + pci.ATS_CAPABILITY, 2, pci.ATS_PAGE_ALIGNED)
    space.define(offset + pci.ATS_CONTROL, 2, 0, writable=pci.ATS_ENABLE | pci.ATS_UNIT_MASK)
    return offset


def add_acs(space: ConfigSpace, services: pci.Acs, enabled: pci.Acs) -> int:
    """Access control services that the port has, and those that firmware left on."""
    offset = space.add_extended_capability(pci.ExtendedCapabilityId.ACS, 1, pci.ACS_SIZE)
    space.define(offset + pci.ACS_CAPABILITY, 2, services)
    space.define(offset + pci.ACS_CONTROL, 2, enabled, writable=services)
    return offset
