"""IOMMU groups: the smallest sets of functions that the hardware can keep apart (Linux: pci_device_group)."""

from __future__ import annotations

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci

_ISOLATION = (
    pci.Acs.SOURCE_VALIDATION | pci.Acs.REQUEST_REDIRECT | pci.Acs.COMPLETION_REDIRECT | pci.Acs.UPSTREAM_FORWARDING
)
#: Port types that isolate only by ACS; a bridge to conventional PCI has none, so that it never does.
_PORTS = (pci.PortType.ROOT_PORT, pci.PortType.DOWNSTREAM_PORT, pci.PortType.PCI_BRIDGE)


class IommuGroups:
    """Groups by number; a number is not used again."""

    def __init__(self) -> None:
        self.groups: dict[int, list[PciDevice]] = {}
        self._numbers: dict[int, int] = {}
        self._next = 0

    def add(self, device: PciDevice) -> int:
        """Puts a function, whose bridges were added before, into its group; returns the group's number."""
        mate = self._mate(device)
        if mate is None:
            number = self.reserve()
            self.groups[number] = []
        else:
            number = self._numbers[mate.bdf]
        self.groups[number].append(device)
        self._numbers[device.bdf] = number
        return number

    def reserve(self) -> int:
        """A number that no group has or will have."""
        self._next += 1
        return self._next - 1

    def remove(self, device: PciDevice) -> None:
        """Takes out an unplugged function."""
        number = self._numbers.pop(device.bdf)
        self.groups[number].remove(device)
        if not self.groups[number]:
            del self.groups[number]

    def group_of(self, bdf: int) -> int | None:
        return self._numbers.get(bdf)

    def _mate(self, device: PciDevice) -> PciDevice | None:
        """A grouped function that `device` cannot be kept apart from.

        Linux lets the ports of one switch be in groups of their own even where their devices reach each other, which
        its patches named "Fix incorrect iommu_groups with PCIe switches" are to end; here they never are.
        """
        bridge = device.parent
        while bridge is not None:
            if not _isolates(bridge):
                return bridge
            bridge = bridge.parent
        slot = device.bdf >> 3
        port = device.is_bridge and device.port_type == pci.PortType.DOWNSTREAM_PORT
        for members in self.groups.values():
            for member in members:
                near = member.bdf >> 3 == slot or (port and member.parent is device.parent)
                if near and not (_isolates(member) and _isolates(device)):
                    return member
        return None


def _isolates(device: PciDevice) -> bool:
    """Whether the function's ACS keeps its transactions away from its peers (Linux: pci_acs_enabled)."""
    acs = device.extended_capability(pci.ExtendedCapabilityId.ACS)
    if acs is None:
        return device.port_type not in (*_PORTS, None) and not device.multifunction
    wanted = device.config_read(acs + pci.ACS_CAPABILITY, 2) & _ISOLATION
    return device.config_read(acs + pci.ACS_CONTROL, 2) & wanted == wanted
