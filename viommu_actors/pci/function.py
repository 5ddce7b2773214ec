"""A type 0 function: configuration space, the registers in its BARs, its interrupts and its resets.

What a function is, wherever it stands: behind a link as a device of its own, or emulated by a hypervisor.
PCI 3.0 chapter 6 and PCI Express 5.0 sections 6.6.2 and 7.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.pci.msix import MsixTable
from viommu_actors.spec import pci

#: send_message(address, data): a message signalled interrupt on its way.
SendMessage = Callable[[int, int], object]


class Function:
    """With a MSI-X capability in `config`, the BAR that it names is table and pending bits, served here.

    Subclasses give registers (`bar_read`, `bar_write`), forget their state in `device_reset`, and call `_latch` when
    they are made.
    """

    def __init__(self, config: ConfigSpace, send_message: SendMessage) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self._send = send_message
        self._express = config.capability(pci.CapabilityId.PCI_EXPRESS)
        self._power = config.capability(pci.CapabilityId.POWER_MANAGEMENT)
        self._msi = config.capability(pci.CapabilityId.MSI)
        msix = config.capability(pci.CapabilityId.MSIX)
        self._msix = None if msix is None else MsixTable(config, msix, self._send_message)
        #: whether it has something that it interrupts for by INTx, and whether its wire is up
        self._intx_pending = self._intx_asserted = False

    # --- for subclasses

    def bar_read(self, bar: int, offset: int, size: int) -> int | None:
        """Value of a naturally aligned register access of 1, 2, 4 or 8 bytes; None is an unsupported request."""
        return None

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Naturally aligned register write of 1, 2, 4 or 8 bytes."""

    def device_reset(self) -> None:
        """The device's own state back to what it is after power-on."""

    def drive_wire(self, pin: int, asserted: bool) -> None:
        """The wire of its INTx goes up or down; 0 is INTA. A function that has a pin overrides it."""

    # --- interrupts

    def interrupt(self, vector: int = 0) -> bool:
        """Raises a message signalled interrupt: by MSI-X where it is enabled, where a masked one stays pending; else
        by MSI, which has fewer messages. False where neither is enabled: INTx is for `set_intx`."""
        if self._msix is not None and self._msix.enabled:
            self._msix.signal(vector)
            return True
        if self._message is None:
            if not self._intx_asserted:
                self.counters["no interrupt"] += 1
            return False
        address, data, messages = self._message
        return self._send_message(address, data & -messages | (data | vector) & messages - 1)

    def set_intx(self, pending: bool) -> None:
        """Whether the function has something that it interrupts for by INTx, which it does with no MSI and MSI-X on.

        Interrupt status tells it, interrupt disable keeps it from the wire (PCI 3.0 section 6.2.3).
        """
        if pending != self._intx_pending:
            self._intx_pending = pending
            self._drive_intx()

    def _drive_intx(self) -> None:
        pin = self.config.read(pci.INTERRUPT_PIN, 1)
        if not pin:
            return
        signalled = self._message is not None or (self._msix is not None and self._msix.enabled)
        pending = self._intx_pending and not signalled
        status = self.config.read(pci.STATUS, 2) & ~pci.Status.INTX
        self.config.set(pci.STATUS, 2, status | (pci.Status.INTX if pending else 0))
        asserted = pending and not self.config.read(pci.COMMAND, 2) & pci.Command.INTX_DISABLE
        if asserted != self._intx_asserted:
            self._intx_asserted = asserted
            self.drive_wire(pin - 1, asserted)

    def _send_message(self, address: int, data: int) -> bool:
        if not self._bus_master:
            self.counters["no interrupt"] += 1
            return False
        self._send(address, data)
        return True

    # --- registers

    def place(self, address: int, size: int) -> tuple[int, int] | None:
        """(BAR, offset) of an access; None where memory decoding is off, no BAR holds it or it is not aligned."""
        if size not in (1, 2, 4, 8) or address % size:
            return None
        for first, last, index in self._bar_ranges:
            if first <= address <= last:
                return index, address - first
        return None

    def register_read(self, bar: int, offset: int, size: int) -> int | None:
        """A register at a `place`; None is an unsupported request."""
        if self._msix is not None and bar == self._msix.bar:
            return self._msix.read(offset, size)
        return self._device_read(bar, offset, size)

    def register_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """A register at a `place`."""
        if self._msix is not None and bar == self._msix.bar:
            self._msix.write(offset, size, value)
        else:
            self._device_write(bar, offset, size, value)

    def _device_read(self, bar: int, offset: int, size: int) -> int | None:
        return self.bar_read(bar, offset, size)

    def _device_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.bar_write(bar, offset, size, value)

    # --- configuration

    def configure(self, offset: int, size: int, value: int) -> None:
        """A write of configuration space that `pci.is_config_access` allows."""
        self.config.write(offset, size, value)
        if self._starts_flr(offset, size, value):
            self._function_level_reset()
        self._latch()

    def _starts_flr(self, offset: int, size: int, value: int) -> bool:
        """Initiate FLR is bit 15 of device control: it reads as zero, so the write itself is looked at."""
        if self._express is None:
            return False
        high = self._express + pci.EXP_DEVICE_CONTROL + 1
        return offset <= high < offset + size and bool(value >> (high - offset) * 8 & pci.DEVCTL_FLR >> 8)

    def _function_level_reset(self) -> None:
        """Everything but the bus number and the max payload size (section 6.6.2)."""
        assert self._express is not None
        control = self._express + pci.EXP_DEVICE_CONTROL
        payload = self.config.read(control, 2) & pci.DEVCTL_MAX_PAYLOAD_MASK
        self._reset()
        self.config.set(control, 2, self.config.read(control, 2) & ~pci.DEVCTL_MAX_PAYLOAD_MASK | payload)
        self.counters["function level reset"] += 1

    def _reset(self) -> None:
        self.config.reset()
        if self._msix is not None:
            self._msix.reset()
        self._intx_pending = False
        self._latch()
        self.device_reset()

    def _latch(self) -> None:
        """Keeps what each transaction needs of the registers at hand."""
        read = self.config.read
        command = read(pci.COMMAND, 2)
        awake = self._power is None or not read(self._power + pci.PM_CONTROL, 2) & pci.PM_STATE_MASK
        self._bus_master = bool(command & pci.Command.BUS_MASTER) and awake
        decodes = bool(command & pci.Command.MEMORY) and awake
        self._bar_ranges = [
            (address, address + layout.size - 1, layout.index)
            for layout in self.config.bars.values()
            if decodes and (address := self.config.bar_address(layout.index))
        ]
        self._message = self._read_message()
        if self._msix is not None:
            self._msix.latch()
        self._drive_intx()

    def _read_message(self) -> tuple[int, int, int] | None:
        """Address, data and number of messages of an enabled MSI."""
        control = 0 if self._msi is None else self.config.read(self._msi + pci.MSI_CONTROL, 2)
        if self._msi is None or not control & pci.MSI_ENABLE:
            return None
        offered = (control & pci.MSI_MULTIPLE_CAPABLE_MASK) >> pci.MSI_MULTIPLE_CAPABLE_SHIFT
        given = (control & pci.MSI_MULTIPLE_ENABLE_MASK) >> pci.MSI_MULTIPLE_ENABLE_SHIFT
        address = self.config.read(self._msi + pci.MSI_ADDRESS, 8)
        data = self.config.read(self._msi + pci.MSI_DATA_64, 2)
        return address, data, 1 << min(offered, given)
