"""MSI and MSI-X of a function as a kernel programs them (Linux: drivers/pci/msi/msi.c)."""

from __future__ import annotations

from errno import EINVAL, ENOTSUP

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci


class Msi:
    """The MSI capability. Raises OSError(ENOTSUP) for a function without one."""

    def __init__(self, device: PciDevice) -> None:
        offset = device.capability(pci.CapabilityId.MSI)
        if offset is None:
            raise OSError(ENOTSUP, f"{device.name} has no MSI capability")
        self._device = device
        self._offset = offset

    @property
    def messages(self) -> int:
        """How many the function offers."""
        code = (self._control() & pci.MSI_MULTIPLE_CAPABLE_MASK) >> pci.MSI_MULTIPLE_CAPABLE_SHIFT
        return pci.MSI_MESSAGES[code] if code < len(pci.MSI_MESSAGES) else 1

    def enable(self, address: int, data: int, messages: int) -> None:
        """Lets the function send `messages` (a power of two): the low bits of `data` are theirs."""
        write, offset = self._device.config_write, self._offset
        control = self._control()
        write(offset + pci.MSI_ADDRESS, 4, address & 0xFFFF_FFFF)
        if control & pci.MSI_64BIT:
            write(offset + pci.MSI_ADDRESS_UPPER, 4, address >> 32)
        write(offset + (pci.MSI_DATA_64 if control & pci.MSI_64BIT else pci.MSI_DATA_32), 2, data)
        control &= ~pci.MSI_MULTIPLE_ENABLE_MASK
        control |= pci.MSI_MESSAGES.index(messages) << pci.MSI_MULTIPLE_ENABLE_SHIFT
        write(offset + pci.MSI_CONTROL, 2, control | pci.MSI_ENABLE)

    def disable(self) -> None:
        self._device.config_write(self._offset + pci.MSI_CONTROL, 2, self._control() & ~pci.MSI_ENABLE)

    def _control(self) -> int:
        return self._device.config_read(self._offset + pci.MSI_CONTROL, 2)


class Msix:
    """The MSI-X capability and its table, which the kernel alone writes.

    Raises OSError: ENOTSUP for a function without it, EINVAL where table or pending bits lie in no BAR.
    """

    def __init__(self, device: PciDevice) -> None:
        offset = device.capability(pci.CapabilityId.MSIX)
        if offset is None:
            raise OSError(ENOTSUP, f"{device.name} has no MSI-X capability")
        self._device = device
        self._offset = offset
        self.vectors = (self._control() & pci.MSIX_TABLE_SIZE_MASK) + 1
        #: BAR, and offsets in it, of the table and of the pending bits.
        self.table = _place(device, offset + pci.MSIX_TABLE, self.vectors * pci.MSIX_ENTRY_SIZE)
        self.pending = _place(device, offset + pci.MSIX_PBA, -(-self.vectors // 64) * pci.MSIX_PBA_UNIT)
        #: What each entry in use sends: (address, data).
        self._messages: dict[int, tuple[int, int]] = {}
        self._masked: set[int] = set()

    def enable(self) -> None:
        """Every vector is masked until it is set."""
        self._set_control(pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
        for index in range(self.vectors):
            self._write(index, pci.MSIX_ENTRY_CONTROL, pci.MSIX_ENTRY_MASKED)
        self._set_control(pci.MSIX_ENABLE)

    def disable(self) -> None:
        self._messages.clear()
        self._masked.clear()
        self._set_control(0)

    def set(self, index: int, address: int, data: int) -> None:
        """The entry sends this from here on."""
        self._messages[index] = address, data
        self._masked.discard(index)
        self._program(index)

    def clear(self, index: int) -> None:
        """The entry sends nothing from here on."""
        self._messages.pop(index, None)
        self.mask(index)

    def mask(self, index: int) -> None:
        """Holds the entry's interrupts back in the function, pending; in force when this returns."""
        self._masked.add(index)
        self._write(index, pci.MSIX_ENTRY_CONTROL, pci.MSIX_ENTRY_MASKED)
        # A read pushes the posted write before it.
        bar, place = self.table
        self._device.read(bar, place.start + index * pci.MSIX_ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL, 4)

    def unmask(self, index: int) -> None:
        """Lets them through; one that is pending comes now."""
        self._masked.discard(index)
        self._write(index, pci.MSIX_ENTRY_CONTROL, 0)

    def restore(self) -> None:
        """After a reset of the function: all as it was."""
        self._set_control(pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
        for index in self._messages:
            self._program(index)
        self._set_control(pci.MSIX_ENABLE)

    def _program(self, index: int) -> None:
        address, data = self._messages[index]
        self._write(index, pci.MSIX_ENTRY_ADDRESS, address & 0xFFFF_FFFF)
        self._write(index, pci.MSIX_ENTRY_ADDRESS_UPPER, address >> 32)
        self._write(index, pci.MSIX_ENTRY_DATA, data)
        self._write(index, pci.MSIX_ENTRY_CONTROL, pci.MSIX_ENTRY_MASKED if index in self._masked else 0)

    def _write(self, index: int, register: int, value: int) -> None:
        bar, place = self.table
        self._device.write(bar, place.start + index * pci.MSIX_ENTRY_SIZE + register, 4, value)

    def _control(self) -> int:
        return self._device.config_read(self._offset + pci.MSIX_CONTROL, 2)

    def _set_control(self, bits: int) -> None:
        control = self._control() & ~(pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
        self._device.config_write(self._offset + pci.MSIX_CONTROL, 2, control | bits)


def _place(device: PciDevice, register: int, size: int) -> tuple[int, range]:
    """The BAR and the bytes in it that a table or PBA register names. Raises OSError(EINVAL) where there is none."""
    value = device.config_read(register, 4)
    bar, start = value & pci.MSIX_BAR_MASK, value & ~pci.MSIX_BAR_MASK
    window = device.bars.get(bar)
    if window is None or start + size > window.size:
        raise OSError(EINVAL, f"{device.name}: MSI-X structures lie in no BAR")
    return bar, range(start, start + size)
