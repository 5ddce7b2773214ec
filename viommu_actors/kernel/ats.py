"""Address translation services of PCI functions (Linux: drivers/pci/ats.c), and the ports above that let them pass.

A port drops everything but untranslated requests (ACS translation blocking) unless a function behind it has its ATS
on: one whose kernel has not asked for it cannot use it.
"""

from __future__ import annotations

from collections.abc import Iterator

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci


def offers_ats(device: PciDevice) -> bool:
    """Whether the function has the capability."""
    return device.extended_capability(pci.ExtendedCapabilityId.ATS) is not None


class AddressTranslation:
    """The functions of one remapping unit whose ATS is on."""

    def __init__(self) -> None:
        self._enabled: dict[int, tuple[PciDevice, int]] = {}

    def of(self, bdf: int) -> tuple[PciDevice, int]:
        """The function, and how many invalidations it takes at a time (0: 32). Raises KeyError where it is off."""
        return self._enabled[bdf]

    def enable(self, device: PciDevice) -> None:
        """Switches ATS on, with 4 KiB as the smallest translation unit (Linux: pci_enable_ats)."""
        capability = device.config_read(_offset(device) + pci.ATS_CAPABILITY, 2)
        self._enabled[device.bdf] = device, capability & pci.ATS_QUEUE_DEPTH_MASK
        for port in _ports_above(device):
            _block(port, False)
        device.config_write(_offset(device) + pci.ATS_CONTROL, 2, pci.ATS_ENABLE)

    def disable(self, device: PciDevice) -> None:
        """Switches it off, where it is on. The ports above block translations again, if no other function needs them
        to pass."""
        if self._enabled.pop(device.bdf, None) is None:
            return
        needed = {port.bdf for other, _ in self._enabled.values() for port in _ports_above(other)}
        for port in _ports_above(device):
            if port.bdf not in needed:
                _block(port, True)
        device.config_write(_offset(device) + pci.ATS_CONTROL, 2, 0)


def _offset(device: PciDevice) -> int:
    offset = device.extended_capability(pci.ExtendedCapabilityId.ATS)
    assert offset is not None, f"{device.name} has no ATS"
    return offset


def _block(port: PciDevice, on: bool) -> None:
    """Translation blocking of a port, where it has that."""
    acs = port.extended_capability(pci.ExtendedCapabilityId.ACS)
    bit = int(pci.Acs.TRANSLATION_BLOCKING)
    if acs is not None and port.config_read(acs + pci.ACS_CAPABILITY, 2) & bit:
        control = port.config_read(acs + pci.ACS_CONTROL, 2)
        port.config_write(acs + pci.ACS_CONTROL, 2, control | bit if on else control & ~bit)


def _ports_above(device: PciDevice) -> Iterator[PciDevice]:
    while device.parent is not None:
        device = device.parent
        yield device
