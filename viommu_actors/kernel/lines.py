"""Interrupts by a line of the I/O APIC: INTx of devices, which share lines (Linux: arch/x86/kernel/apic/io_apic.c).

Level triggered: a line stays up until the device that asks has been seen to. Its handlers run all, each saying whether
it was its device; then the I/O APIC is told that the interrupt is over, by its EOI register. (Linux does so where
interrupts are remapped; where they are not, the local APIC's EOI is broadcast instead.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import ENODEV
from functools import partial
from typing import NamedTuple

from viommu_actors.kernel.irq import Interrupts
from viommu_actors.kernel.machine import Machine
from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci
from viommu_actors.spec.ioapic import Entry, Reg, Window, intx_line

#: Whether the interrupt was the handler's device's.
Handler = Callable[[], bool]

#: Interrupts of a line in a row that nobody took, after which it is disabled. (Linux: 99,900 of 100,000, which would
#: take minutes where each is a message.)
UNHANDLED_LIMIT = 1000


class IoApicInfo(NamedTuple):
    """The controller as MADT tells of it: its registers, the number of its first line."""

    address: int
    first_line: int


@dataclass
class _Line:
    vector: int
    #: of the interrupt remapping table, where interrupts are remapped
    index: int | None
    handlers: list[tuple[PciDevice, Handler]] = field(default_factory=list)
    unhandled: int = 0


class LineInterrupts:
    """The lines of one kernel. Nothing is set up before somebody asks for one."""

    def __init__(
        self, machine: Machine, irq: Interrupts, controller: IoApicInfo | None, log: Callable[[str], None]
    ) -> None:
        self._machine = machine
        self._irq = irq
        self._controller = controller
        self._log = log
        self._lines: dict[int, _Line] = {}
        #: Requester ID of the controller's messages, as DMAR tells it.
        self.source: int | None = None

    def line_of(self, device: PciDevice) -> int | None:
        """The line that the device's INTx ends at; None where it has no pin, or the machine no I/O APIC.

        A pin is turned by the device number at each bridge on the way up (pci_swizzle_interrupt_pin). Which line a pin
        on the root bus has Linux reads from ACPI's _PRT; this kernel knows the chipset.
        """
        pin = device.config_read(pci.INTERRUPT_PIN, 1)
        if self._controller is None or not 1 <= pin <= pci.INTX_PINS:
            return None
        pin -= 1
        while device.parent is not None:
            pin = (pin + pci.bdf_device(device.bdf)) % pci.INTX_PINS
            device = device.parent
        return intx_line(pci.bdf_device(device.bdf), pin)

    def request(self, device: PciDevice, handler: Handler) -> None:
        """`handler` is called for each interrupt of the device's line, its own or another's.

        A line that was disabled, as nobody took its interrupts, has another try with it (Linux: __setup_irq).

        Raises OSError: ENODEV without a line, ENOSPC where vectors or remapping entries are used up.
        """
        number = self.line_of(device)
        if number is None:
            raise OSError(ENODEV, f"{device.name} has no INTx")
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = self._set_up(number)
        line.handlers.append((device, handler))
        disabled = line.unhandled >= UNHANDLED_LIMIT
        line.unhandled = 0
        if disabled:
            self._program(number, self._entry(number, line))

    def free(self, device: PciDevice) -> None:
        """Forgets the device's handlers; a line without any is masked."""
        for number, line in list(self._lines.items()):
            line.handlers = [each for each in line.handlers if each[0] is not device]
            if not line.handlers:
                self._tear_down(number, line)

    def _set_up(self, number: int) -> _Line:
        remapping = self._irq.remapping
        if remapping is not None and self.source is None:
            raise OSError(ENODEV, "DMAR-IR: no I/O APIC in the scope of a unit")
        vector = self._irq.request_vector(partial(self._raised, number))
        try:
            index = None if remapping is None or self.source is None else remapping.allocate(self.source, [vector])
        except OSError:
            self._irq.free(vector)
            raise
        line = _Line(vector, index)
        self._program(number, self._entry(number, line))
        return line

    def _tear_down(self, number: int, line: _Line) -> None:
        self._program(number, Entry())
        del self._lines[number]
        if line.index is not None and self._irq.remapping is not None:
            self._irq.remapping.free(line.index, 1)
        self._irq.free(line.vector)

    def _entry(self, number: int, line: _Line) -> Entry:
        if line.index is not None:
            # The vector is the remapping entry's to tell; here the number of the pin stands in its place, for EOI.
            return Entry.remappable(line.index, self._pin(number))
        return Entry(vector=line.vector, active_low=True, level=True, masked=False)

    def _raised(self, number: int) -> None:
        line = self._lines[number]
        entry = self._entry(number, line)
        # All of them: several devices may be asking.
        taken = sum(handler() for _, handler in tuple(line.handlers))
        if taken:
            line.unhandled = 0
        else:
            line.unhandled += 1
            if line.unhandled == UNHANDLED_LIMIT:
                self._log(f"irq {number}: nobody cared; Disabling IRQ #{number}")
                self._program(number, entry._replace(masked=True))
        self._write(Window.EOI, entry.vector)

    def _program(self, number: int, entry: Entry) -> None:
        """The low dword, which opens it, last; and first where it closes it."""
        value, register = entry.encode(), Reg.TABLE + 2 * self._pin(number)
        halves = [(register + 1, value >> 32), (register, value & 0xFFFF_FFFF)]
        for select, half in reversed(halves) if entry.masked else halves:
            self._write(Window.SELECT, select)
            self._write(Window.DATA, half)

    def _pin(self, number: int) -> int:
        assert self._controller is not None, "there is a line"
        return number - self._controller.first_line

    def _write(self, register: Window, value: int) -> None:
        assert self._controller is not None, "there is a line"
        self._machine.mmio_write(self._controller.address + register, 4, value)
