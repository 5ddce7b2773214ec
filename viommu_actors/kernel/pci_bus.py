"""Finds PCI functions through ECAM, numbers buses, and sets up windows, BARs, payload sizes and ACS.

What a boot's firmware and Linux's drivers/pci do together. A device's answers are bounded, never believed.
"""

from __future__ import annotations

from collections.abc import Iterator

from viommu_actors.kernel.machine import Machine
from viommu_actors.kernel.pci import Bar, PciDevice
from viommu_actors.kernel.ranges import FreeRanges
from viommu_actors.spec import pci
from viommu_actors.spec.acpi import Ecam

#: Deepest bridge that is followed.
_DEPTH_LIMIT = 16
#: BARs of two devices never share a page, so that each can be mapped alone.
_BAR_ALIGN = 4096
#: Window kept for a device yet to be plugged into a hot-plug slot (Linux: pci=hpmmiosize, 2 MiB).
_HOTPLUG_WINDOW = 2 << 20
#: Largest read request, set on every endpoint: a page is then one request.
_MAX_READ_REQUEST = 4096
_ACS_SERVICES = (
    pci.Acs.SOURCE_VALIDATION
    | pci.Acs.TRANSLATION_BLOCKING
    | pci.Acs.REQUEST_REDIRECT
    | pci.Acs.COMPLETION_REDIRECT
    | pci.Acs.UPSTREAM_FORWARDING
)


class PciBus:
    """The PCI hierarchy of a machine, with the root buses of further host bridges."""

    def __init__(
        self, machine: Machine, ecam: Ecam, window: tuple[int, int], enable_acs: bool, last_bus: int = 0
    ) -> None:
        """`window` is [first, end) of the addresses for BARs; `enable_acs` turns on what isolates ports' devices.

        Buses up to `last_bus` that are behind no bridge are looked at as root buses (Linux: pcibios_fixup_peer_bridges,
        pci=lastbus=).
        """
        self._machine = machine
        self._ecam = ecam
        self._enable_acs = enable_acs
        self._last_bus = min(last_bus, ecam.last_bus)
        self._next_bus = ecam.first_bus + 1
        self._secondary: dict[int, int] = {}
        self._sizes: dict[int, dict[int, Bar]] = {}
        self._space: dict[int, FreeRanges] = {ecam.first_bus: _free(*window)}
        self.devices: list[PciDevice] = []

    def scan(self) -> None:
        """Finds and sets up everything."""
        self._scan_bus(self._ecam.first_bus, None)
        while self._next_bus <= self._last_bus:
            bus = self._next_bus
            self._next_bus += 1
            self._space[bus] = self._space[self._ecam.first_bus]
            self._scan_bus(bus, None)
        self._assign(self.children(None))
        for device in self.devices:
            self._enable(device)
        for device in self.children(None):
            self._set_payload(device)

    def rescan(self) -> list[PciDevice]:
        """Looks behind the hot-plug slots that are empty; returns the devices found there, set up."""
        known = len(self.devices)
        for port in [device for device in self.devices if device.is_bridge and not self.children(device)]:
            if port.bdf in self._secondary:
                self._scan_bus(self._secondary[port.bdf], port)
                self._assign(self.children(port))
        found = self.devices[known:]
        for device in found:
            self._enable(device)
            self._set_payload([device, *_path(device)][-1])
        return found

    def remove(self, device: PciDevice) -> None:
        """Forgets a function that was unplugged, and takes its addresses back."""
        self.devices.remove(device)
        self._sizes.pop(device.bdf)
        space = self._space[device.bus]
        for bar in device.bars.values():
            space.give(bar.address, max(bar.size, _BAR_ALIGN))
        device.bars.clear()

    def children(self, parent: PciDevice | None) -> list[PciDevice]:
        """The functions on the bus right behind a bridge, or on the root bus."""
        return [device for device in self.devices if device.parent is parent]

    # --- finding

    def _scan_bus(self, bus: int, parent: PciDevice | None) -> None:
        # A link leads to device 0 only (PCIe section 7.3.1); a switch's inner bus and a conventional one have more.
        linked = parent is not None and parent.port_type in (pci.PortType.ROOT_PORT, pci.PortType.DOWNSTREAM_PORT)
        for slot in range(1 if linked else pci.DEVICES_PER_BUS):
            for function in range(pci.FUNCTIONS_PER_DEVICE):
                device = self._probe(pci.bdf(bus, slot, function), parent)
                if device is not None and device.is_bridge:
                    self._scan_behind(device)
                if function == 0 and not (device and device.multifunction):
                    break

    def _probe(self, bdf: int, parent: PciDevice | None) -> PciDevice | None:
        vendor = self._machine.mmio_read(self._ecam.base + pci.ecam_offset(bdf, pci.VENDOR_ID), 2)
        if vendor in (0, pci.ABSENT_VENDOR):
            return None
        device = PciDevice(self._machine, self._ecam, bdf, parent)
        self._machine.log(
            f"pci {device.name}: [{device.vendor:04x}:{device.device:04x}] type {device.header_type:02x}"
            f" class {device.class_code:#06x}"
        )
        if device.header_type > pci.HEADER_TYPE_BRIDGE:
            self._machine.log(f"pci {device.name}: unknown header type {device.header_type:02x}, ignoring device")
            return None
        device.set_command(0, pci.Command.IO | pci.Command.MEMORY | pci.Command.BUS_MASTER)
        self.devices.append(device)
        self._sizes[bdf] = dict(self._bar_sizes(device))
        return device

    def _scan_behind(self, bridge: PciDevice) -> None:
        if self._next_bus > self._ecam.last_bus or len(list(_path(bridge))) >= _DEPTH_LIMIT:
            self._machine.log(f"pci {bridge.name}: no bus number left behind this bridge")
            bridge.config_write(pci.PRIMARY_BUS, 4, bridge.bus)
            return
        secondary = self._secondary[bridge.bdf] = self._next_bus
        self._next_bus += 1
        numbers = bridge.bus | secondary << 8
        bridge.config_write(pci.PRIMARY_BUS, 4, numbers | self._ecam.last_bus << 16)
        self._scan_bus(secondary, bridge)
        bridge.config_write(pci.PRIMARY_BUS, 4, numbers | self._next_bus - 1 << 16)
        self._machine.log(f"pci {bridge.name}: PCI bridge to [bus {secondary:02x}-{self._next_bus - 1:02x}]")

    def _bar_sizes(self, device: PciDevice) -> Iterator[tuple[int, Bar]]:
        """(index, BAR without an address) of each memory BAR, by writing ones (PCI 3.0 section 6.2.5.1)."""
        count = pci.BRIDGE_BARS if device.is_bridge else pci.ENDPOINT_BARS
        index = 0
        while index < count:
            offset = pci.BAR0 + 4 * index
            device.config_write(offset, 4, 0xFFFF_FFFF)
            low = device.config_read(offset, 4)
            this, index = index, index + 1
            if low & pci.BAR_IO or not low:
                device.config_write(offset, 4, 0)
                continue
            is64 = low & pci.BAR_TYPE_MASK == pci.BAR_TYPE_64 and index < count
            mask = low & pci.BAR_MEMORY_MASK | 0xFFFF_FFFF << 32
            if is64:
                device.config_write(offset + 4, 4, 0xFFFF_FFFF)
                mask = low & pci.BAR_MEMORY_MASK | device.config_read(offset + 4, 4) << 32
                index += 1
            size = mask & -mask
            if mask + size != 1 << 64 or (size > 1 << 31 and not is64):
                self._machine.log(f"pci {device.name}: BAR {this}: invalid; can't size")
                continue
            yield this, Bar(0, size, is64, bool(low & pci.BAR_PREFETCH))

    # --- addresses

    def _assign(self, siblings: list[PciDevice]) -> None:
        """Gives the functions of one bus their places in its window, largest alignment first, and so on below."""
        wants: list[tuple[int, int, PciDevice, int | None]] = []
        for device in siblings:
            if not device.bars:
                for number, bar in self._sizes[device.bdf].items():
                    span = max(bar.size, _BAR_ALIGN)
                    wants.append((span, span, device, number))
            if device.is_bridge:
                align, size = self._window_need(device)
                wants.append((align, size, device, None))
        for align, size, device, index in sorted(wants, key=lambda want: -want[0]):
            space = self._space.get(device.bus)
            address = space.take_lowest(size, align) if space and size else None
            if index is None:
                self._set_window(device, address, size)
                self._assign(self.children(device))
            elif address is None:
                self._machine.log(f"pci {device.name}: BAR {index}: can't assign; no space for size {size:#x}")
                device.config_write(pci.BAR0 + 4 * index, 4, 0)
            else:
                self._set_bar(device, index, address)

    def _window_need(self, bridge: PciDevice) -> tuple[int, int]:
        """(alignment, size) of the window that all behind `bridge` fits in; size 0 where nothing is or can be."""
        needs: list[tuple[int, int]] = []
        for device in self.children(bridge):
            spans = [max(bar.size, _BAR_ALIGN) for bar in self._sizes[device.bdf].values()]
            needs += zip(spans, spans, strict=True)
            if device.is_bridge:
                needs.append(self._window_need(device))
        align = max([pci.WINDOW_GRANULARITY, *(align for align, _ in needs)])
        size = sum(size for _, size in needs)
        if bridge.hotplug_slot is not None:
            size = max(size, _HOTPLUG_WINDOW)
        return align, -(-size // pci.WINDOW_GRANULARITY) * pci.WINDOW_GRANULARITY

    def _set_window(self, bridge: PciDevice, address: int | None, size: int) -> None:
        """One memory window for everything behind; the prefetchable one stays shut (base above limit)."""
        bridge.config_write(pci.PREFETCH_BASE, 4, pci.WINDOW_MASK)
        if address is None or bridge.bdf not in self._secondary:
            bridge.config_write(pci.MEMORY_BASE, 4, pci.WINDOW_MASK)
            if size:
                self._machine.log(f"pci {bridge.name}: no space for a bridge window of size {size:#x}")
            return
        limit = address + size - 1
        base = address >> 16 & pci.WINDOW_MASK
        bridge.config_write(pci.MEMORY_BASE, 4, base | (limit >> 16 & pci.WINDOW_MASK) << 16)
        self._space[self._secondary[bridge.bdf]] = _free(address, address + size)
        self._machine.log(f"pci {bridge.name}:   bridge window [mem {address:#010x}-{limit:#010x}]")

    def _set_bar(self, device: PciDevice, index: int, address: int) -> None:
        bar = self._sizes[device.bdf][index]._replace(address=address)
        device.config_write(pci.BAR0 + 4 * index, 4, address & 0xFFFF_FFFF)
        if bar.is64:
            device.config_write(pci.BAR0 + 4 * index + 4, 4, address >> 32)
        device.bars[index] = bar
        self._machine.log(
            f"pci {device.name}: BAR {index}: assigned [mem {address:#010x}-{address + bar.size - 1:#010x}"
            f"{' 64bit' if bar.is64 else ''}{' pref' if bar.prefetch else ''}]"
        )

    # --- features

    def _enable(self, device: PciDevice) -> None:
        """Memory decoding on; a bridge also forwards what comes from below. An endpoint masters by its driver."""
        bits = pci.Command.INTX_DISABLE
        if device.bars or device.is_bridge:
            bits |= pci.Command.MEMORY
        if device.is_bridge:
            bits |= pci.Command.BUS_MASTER
        device.set_command(bits, bits)
        acs = device.extended_capability(pci.ExtendedCapabilityId.ACS)
        if acs is not None and self._enable_acs:
            services = device.config_read(acs + pci.ACS_CAPABILITY, 2) & int(_ACS_SERVICES)
            device.config_write(acs + pci.ACS_CONTROL, 2, device.config_read(acs + pci.ACS_CONTROL, 2) | services)

    def _set_payload(self, root: PciDevice) -> None:
        """Max payload that everything from a function of the root bus down supports; the largest read request; and
        extended tags where a function has them (Linux: pci_configure_extended_tags)."""
        family: list[tuple[PciDevice, int, int]] = []
        for device in self.devices:
            offset = device.capability(pci.CapabilityId.PCI_EXPRESS)
            if offset is not None and root in (device, *_path(device)):
                family.append((device, offset, device.config_read(offset + pci.EXP_DEVICE_CAPABILITIES, 4)))
        payload = min((_payload_supported(capabilities) for _, _, capabilities in family), default=0)
        for member, offset, capabilities in family:
            control = member.config_read(offset + pci.EXP_DEVICE_CONTROL, 2)
            control &= ~(pci.DEVCTL_MAX_PAYLOAD_MASK | pci.DEVCTL_MAX_READ_MASK)
            control |= payload << pci.DEVCTL_MAX_PAYLOAD_SHIFT
            control |= pci.payload_code(_MAX_READ_REQUEST) << pci.DEVCTL_MAX_READ_SHIFT
            if capabilities & pci.DEVCAP_EXTENDED_TAG:
                control |= pci.DEVCTL_EXTENDED_TAG
            member.config_write(offset + pci.EXP_DEVICE_CONTROL, 2, control)


def _path(device: PciDevice) -> Iterator[PciDevice]:
    """The bridges above, nearest first."""
    while device.parent is not None:
        device = device.parent
        yield device


def _free(first: int, end: int) -> FreeRanges:
    space = FreeRanges()
    space.give(first, end - first)
    return space


def _payload_supported(capabilities: int) -> int:
    """The code of the largest payload, by device capabilities."""
    return min(capabilities & pci.DEVCAP_MAX_PAYLOAD_MASK, len(pci.PAYLOAD_SIZES) - 1)
