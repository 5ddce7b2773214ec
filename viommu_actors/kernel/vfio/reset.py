"""Function level reset of a PCI Express function with its configuration kept (drivers/pci/pci.c `pcie_flr`)."""

from __future__ import annotations

from errno import ENOTTY
from typing import TYPE_CHECKING

from viommu_actors.spec.pci import (
    ATS_CONTROL,
    BAR0,
    CACHE_LINE_SIZE,
    COMMAND,
    DEVCAP_FLR,
    DEVCTL_FLR,
    DEVSTA_TRANSACTIONS_PENDING,
    ENDPOINT_BARS,
    EXP_DEVICE_CAPABILITIES,
    EXP_DEVICE_CONTROL,
    EXP_DEVICE_CONTROL_2,
    EXP_DEVICE_STATUS,
    INTERRUPT_LINE,
    MSI_64BIT,
    MSI_ADDRESS,
    MSI_ADDRESS_UPPER,
    MSI_CONTROL,
    MSI_DATA_32,
    MSI_DATA_64,
    ROM_ADDRESS,
    VENDOR_ID,
    CapabilityId,
    Command,
    ExtendedCapabilityId,
)

if TYPE_CHECKING:
    from viommu_actors.kernel.pci import PciDevice

#: Reads after which a function that is still busy, or silent, is given up; each may take a completion timeout.
_PATIENCE = 4


def has_flr(device: PciDevice) -> bool:
    express = device.capability(CapabilityId.PCI_EXPRESS)
    return express is not None and bool(device.config_read(express + EXP_DEVICE_CAPABILITIES, 4) & DEVCAP_FLR)


def reset_function(device: PciDevice) -> None:
    """Stops the function's DMA and interrupts, resets it, and gives it back the configuration it had.

    Raises ENOTTY where it has no FLR, or does not come back.
    """
    express = device.capability(CapabilityId.PCI_EXPRESS)
    if express is None or not has_flr(device):
        raise OSError(ENOTTY, f"{device.name} has no function level reset")
    if device.config_read(VENDOR_ID, 2) != device.vendor:
        raise OSError(ENOTTY, f"{device.name} is gone")
    saved = [(offset, size, device.config_read(offset, size)) for offset, size in _state(device, express)]
    command = device.config_read(COMMAND, 2)
    device.config_write(COMMAND, 2, int(Command.INTX_DISABLE))
    for _ in range(_PATIENCE):
        if not device.config_read(express + EXP_DEVICE_STATUS, 2) & DEVSTA_TRANSACTIONS_PENDING:
            break
    control = device.config_read(express + EXP_DEVICE_CONTROL, 2)
    device.config_write(express + EXP_DEVICE_CONTROL, 2, control | DEVCTL_FLR)
    if not any(device.config_read(VENDOR_ID, 2) == device.vendor for _ in range(_PATIENCE)):
        raise OSError(ENOTTY, f"{device.name} not ready after FLR; giving up")
    for offset, size, value in saved:
        device.config_write(offset, size, value)
    device.config_write(COMMAND, 2, command)


def _state(device: PciDevice, express: int) -> list[tuple[int, int]]:
    """Registers (offset, size) that a reset loses and the kernel has set, in the order to restore them."""
    registers = [(express + EXP_DEVICE_CONTROL, 2), (express + EXP_DEVICE_CONTROL_2, 2)]
    registers += [(BAR0 + 4 * index, 4) for index in range(ENDPOINT_BARS)]
    registers += [(ROM_ADDRESS, 4), (CACHE_LINE_SIZE, 1), (INTERRUPT_LINE, 1)]
    ats = device.extended_capability(ExtendedCapabilityId.ATS)
    if ats is not None:
        registers += [(ats + ATS_CONTROL, 2)]
    msi = device.capability(CapabilityId.MSI)
    if msi is not None:
        registers += [(msi + MSI_ADDRESS, 4)]
        if device.config_read(msi + MSI_CONTROL, 2) & MSI_64BIT:
            registers += [(msi + MSI_ADDRESS_UPPER, 4), (msi + MSI_DATA_64, 2)]
        else:
            registers += [(msi + MSI_DATA_32, 2)]
        registers += [(msi + MSI_CONTROL, 2)]
    return registers
