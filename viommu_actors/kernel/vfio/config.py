"""Configuration space as vfio-pci lets a user see and change it (drivers/vfio/pci/vfio_pci_config.c).

Of each byte some bits are virtual: the user reads back what vfio-pci keeps, not the device; and some are the user's
to write. What is not listed here can be read from the device and not be written.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING

from viommu_actors.spec.pci import (
    BAR0,
    BAR_PREFETCH,
    BAR_TYPE_64,
    BIST,
    CACHE_LINE_SIZE,
    COMMAND,
    CONFIG_SIZE,
    DEVCTL2_ARI_FORWARDING,
    DEVCTL_FLR,
    DEVCTL_MAX_PAYLOAD_MASK,
    DEVCTL_MAX_PAYLOAD_SHIFT,
    DEVCTL_MAX_READ_MASK,
    DEVCTL_MAX_READ_SHIFT,
    DEVCTL_PHANTOM_FUNCTIONS,
    DEVICE_ID,
    ENDPOINT_BARS,
    EXP_DEVICE_CONTROL,
    EXP_DEVICE_CONTROL_2,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    LATENCY_TIMER,
    MSI_64BIT,
    MSI_ADDRESS,
    MSI_CONTROL,
    MSI_DATA_32,
    MSI_DATA_64,
    MSI_ENABLE,
    MSI_MULTIPLE_CAPABLE_MASK,
    MSI_MULTIPLE_CAPABLE_SHIFT,
    MSI_MULTIPLE_ENABLE_MASK,
    MSI_MULTIPLE_ENABLE_SHIFT,
    PM_CONTROL,
    PM_STATE_MASK,
    ROM_ADDRESS,
    VENDOR_ID,
    CapabilityId,
    Command,
)

if TYPE_CHECKING:
    from viommu_actors.kernel.pci import PciDevice

_WORD = 2
_DWORD = 4
_BAR_REGISTERS = range(BAR0, BAR0 + 4 * ENDPOINT_BARS)


class VirtualConfig:
    """One open device's configuration space.

    `reset` is called when the user writes the FLR bit. `msi_active` says whether MSI is on through
    VFIO_DEVICE_SET_IRQS: only then does the user see it enabled. MSI-X needs nothing here: it reads as the kernel
    has it, and nothing of it is the user's to write.
    """

    def __init__(
        self,
        device: PciDevice,
        reset: Callable[[], None],
        msi_active: Callable[[], bool],
        intx_disabled: Callable[[bool], None] | None,
    ) -> None:
        """`intx_disabled` is told the user's interrupt disable bit; None where no INTx is offered, and no pin shown."""
        self._msi_active = msi_active
        self._intx_disabled = intx_disabled
        self._device = device
        self._reset = reset
        self._values = bytearray(CONFIG_SIZE)
        self._virtual = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._bar_masks = _bar_masks(device)
        self._express = device.capability(CapabilityId.PCI_EXPRESS)
        self._msi = device.capability(CapabilityId.MSI)
        self._lay_out()

    @property
    def memory_enabled(self) -> bool:
        """Whether the user may reach the BARs."""
        return bool(self._values[COMMAND] & Command.MEMORY)

    def read(self, offset: int, size: int) -> bytes:
        """Any bytes within the space; raises EINVAL beyond it."""
        self._check(offset, size)
        return b"".join(self._read(at, length) for at, length in aligned(offset, size, _DWORD))

    def write(self, offset: int, data: bytes) -> None:
        """Changes what the user may change, and drops the rest. Raises EINVAL beyond the space."""
        self._check(offset, len(data))
        # By words: a status register beside a control register is cleared by writing back what it reads.
        for at, length in aligned(offset, len(data), _WORD):
            self._write(at, data[at - offset : at - offset + length])

    def _read(self, offset: int, size: int) -> bytes:
        virtual = int.from_bytes(self._virtual[offset : offset + size], "little")
        value = int.from_bytes(self._values[offset : offset + size], "little") & virtual
        if virtual != (1 << 8 * size) - 1:
            value |= self._device.config_read(offset, size) & ~virtual
        return value.to_bytes(size, "little")

    def _write(self, offset: int, data: bytes) -> None:
        size = len(data)
        writable = int.from_bytes(self._writable[offset : offset + size], "little")
        if not writable:
            return
        virtual = int.from_bytes(self._virtual[offset : offset + size], "little")
        new = int.from_bytes(data, "little")
        kept = int.from_bytes(self._values[offset : offset + size], "little")
        kept ^= (kept ^ new) & writable
        self._values[offset : offset + size] = kept.to_bytes(size, "little")
        self._adjust(offset, size)
        to_device = writable & ~virtual
        if offset <= COMMAND < offset + size:
            # Memory decoding is virtual so that it reads back as written, and real at the same time.
            to_device |= Command.MEMORY << 8 * (COMMAND - offset)
        if to_device:
            old = self._device.config_read(offset, size)
            self._device.config_write(offset, size, old ^ (old ^ new) & to_device)

    def _adjust(self, offset: int, size: int) -> None:
        """Corrects what has just been written to virtual registers, and does what their writing asks for."""
        if offset in _BAR_REGISTERS:
            mask, flags = self._bar_masks[offset - BAR0 >> 2]
            self._set(offset & ~3, 4, self._get(offset & ~3, 4) & mask | flags)
        if self._intx_disabled is not None and _covers(offset, size, COMMAND):
            self._intx_disabled(bool(self._get(COMMAND, 2) & Command.INTX_DISABLE))
        if self._msi is not None and _covers(offset, size, self._msi + MSI_CONTROL):
            self._msi_control(self._msi + MSI_CONTROL)
        if self._express is not None and _covers(offset, size, self._express + EXP_DEVICE_CONTROL):
            self._device_control(self._express + EXP_DEVICE_CONTROL)

    def _msi_control(self, offset: int) -> None:
        """No more messages than are offered, and enabled only as it is."""
        control = self._get(offset, 2)
        offered = (control & MSI_MULTIPLE_CAPABLE_MASK) >> MSI_MULTIPLE_CAPABLE_SHIFT
        given = min((control & MSI_MULTIPLE_ENABLE_MASK) >> MSI_MULTIPLE_ENABLE_SHIFT, offered)
        control = control & ~MSI_MULTIPLE_ENABLE_MASK | given << MSI_MULTIPLE_ENABLE_SHIFT
        self._set(offset, 2, control if self._msi_active() else control & ~MSI_ENABLE)

    def _device_control(self, offset: int) -> None:
        """Payload size stays virtual, the read request size has the real payload size as its floor; FLR is done."""
        control = self._get(offset, 2)
        real = self._device.config_read(offset, 2)
        payload = (real & DEVCTL_MAX_PAYLOAD_MASK) >> DEVCTL_MAX_PAYLOAD_SHIFT
        read = max((control & DEVCTL_MAX_READ_MASK) >> DEVCTL_MAX_READ_SHIFT, payload) << DEVCTL_MAX_READ_SHIFT
        if read != real & DEVCTL_MAX_READ_MASK:
            self._device.config_write(offset, 2, real & ~DEVCTL_MAX_READ_MASK | read)
        if control & DEVCTL_FLR:
            self._set(offset, 2, control & ~DEVCTL_FLR)
            self._reset()

    def _lay_out(self) -> None:
        device = self._device
        for offset in (VENDOR_ID, DEVICE_ID):
            self._keep(offset, 2, virtual=0xFFFF, writable=0)
        self._keep(COMMAND, 2, virtual=Command.MEMORY | Command.IO | Command.INTX_DISABLE, writable=0xFFFF)
        for offset in (CACHE_LINE_SIZE, LATENCY_TIMER, BIST, INTERRUPT_LINE):
            self._keep(offset, 1, virtual=0xFF, writable=0xFF)
        for index, (mask, flags) in enumerate(self._bar_masks):
            self._keep(BAR0 + 4 * index, 4, virtual=0xFFFF_FFFF, writable=mask)
            self._set(BAR0 + 4 * index, 4, self._get(BAR0 + 4 * index, 4) & mask | flags)
        self._keep(ROM_ADDRESS, 4, virtual=0xFFFF_FFFF, writable=0)
        self._set(ROM_ADDRESS, 4, 0)
        self._keep(INTERRUPT_PIN, 1, virtual=0xFF, writable=0)
        if self._intx_disabled is None:
            self._set(INTERRUPT_PIN, 1, 0)
        # However the kernel has kept it quiet, the user finds it open.
        self._set(COMMAND, 2, self._get(COMMAND, 2) & ~int(Command.INTX_DISABLE))
        power = device.capability(CapabilityId.POWER_MANAGEMENT)
        if power is not None:
            self._keep(power + PM_CONTROL, 2, virtual=0, writable=PM_STATE_MASK)
        if self._msi is not None:
            self._lay_out_msi(self._msi)
        if self._express is not None:
            virtual = DEVCTL_FLR | DEVCTL_MAX_PAYLOAD_MASK | DEVCTL_MAX_READ_MASK
            control = self._express + EXP_DEVICE_CONTROL
            self._keep(control, 2, virtual, writable=0xFFFF & ~DEVCTL_PHANTOM_FUNCTIONS)
            self._keep(self._express + EXP_DEVICE_CONTROL_2, 2, virtual=0, writable=0xFFFF & ~DEVCTL2_ARI_FORWARDING)

    def _lay_out_msi(self, msi: int) -> None:
        """Address, data and enable are the kernel's; the user writes a copy."""
        control = self._device.config_read(msi + MSI_CONTROL, 2)
        self._keep(msi + MSI_CONTROL, 2, virtual=0xFFFF, writable=MSI_ENABLE | MSI_MULTIPLE_ENABLE_MASK)
        offered = control & ~(MSI_ENABLE | MSI_MULTIPLE_ENABLE_MASK)
        self._set(msi + MSI_CONTROL, 2, offered)
        end = MSI_DATA_64 if control & MSI_64BIT else MSI_DATA_32
        for offset in range(msi + MSI_ADDRESS, msi + end + 2, 2):
            self._keep(offset, 2, virtual=0xFFFF, writable=0xFFFF)
            self._set(offset, 2, 0)

    def _keep(self, offset: int, size: int, virtual: int, writable: int) -> None:
        """Declares a register; its virtual bits start as the device has them."""
        self._virtual[offset : offset + size] = virtual.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        if virtual:
            self._set(offset, size, self._device.config_read(offset, size))

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._values[offset : offset + size], "little")

    def _set(self, offset: int, size: int, value: int) -> None:
        self._values[offset : offset + size] = value.to_bytes(size, "little")

    @staticmethod
    def _check(offset: int, size: int) -> None:
        if offset < 0 or size <= 0 or offset + size > CONFIG_SIZE:
            raise OSError(EINVAL, f"config space ends at {CONFIG_SIZE:#x}, asked for {offset:#x}+{size:#x}")


def _bar_masks(device: PciDevice) -> list[tuple[int, int]]:
    """For each BAR register the address bits that the user may change, and the fixed type bits."""
    masks = [(0, 0)] * ENDPOINT_BARS
    for index, bar in device.bars.items():
        mask = -bar.size & 0xFFFF_FFFF_FFFF_FFFF
        flags = (BAR_TYPE_64 if bar.is64 else 0) | (BAR_PREFETCH if bar.prefetch else 0)
        masks[index] = (mask & 0xFFFF_FFFF, flags)
        if bar.is64:
            masks[index + 1] = (mask >> 32, 0)
    return masks


def _covers(offset: int, size: int, register: int) -> bool:
    """Whether a write reaches either byte of a 16-bit register."""
    return offset < register + 2 and register < offset + size


def aligned(offset: int, size: int, largest: int) -> list[tuple[int, int]]:
    """Splits a byte range into naturally aligned pieces of at most `largest` bytes."""
    pieces = []
    end = offset + size
    while offset < end:
        length = largest
        while offset % length or offset + length > end:
            length //= 2
        pieces.append((offset, length))
        offset += length
    return pieces
