"""A function's INTx in the hands of a driver that shares its line: is it asking, and may it (drivers/pci/pci.c)."""

from __future__ import annotations

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec.pci import COMMAND, Command, Status


def mask_supported(device: PciDevice) -> bool:
    """Whether the function has an interrupt disable bit, as PCI 2.3 does (pci_intx_mask_supported)."""
    command = device.config_read(COMMAND, 2)
    device.config_write(COMMAND, 2, command ^ int(Command.INTX_DISABLE))
    changed = device.config_read(COMMAND, 2) ^ command
    device.config_write(COMMAND, 2, command)
    return changed == Command.INTX_DISABLE


def check_and_mask(device: PciDevice) -> bool:
    """Keeps the function from the wire, if it is asking; whether it is (pci_check_and_mask_intx)."""
    return _check_and_set(device, masked=True)


def check_and_unmask(device: PciDevice) -> bool:
    """Lets the function to the wire again, unless it is asking; whether it does not (pci_check_and_unmask_intx)."""
    return _check_and_set(device, masked=False)


def enable(device: PciDevice, enabled: bool) -> None:
    """Lets the function to the wire, or keeps it from it (pci_intx)."""
    device.set_command(0 if enabled else Command.INTX_DISABLE, Command.INTX_DISABLE)


def _check_and_set(device: PciDevice, masked: bool) -> bool:
    # Command and status in one read, so that they belong together.
    both = device.config_read(COMMAND, 4)
    asking = bool(both >> 16 & Status.INTX)
    if asking != masked:
        return False
    command = both & 0xFFFF
    wanted = command | int(Command.INTX_DISABLE) if masked else command & ~int(Command.INTX_DISABLE)
    if wanted != command:
        device.config_write(COMMAND, 2, wanted)
    return True
