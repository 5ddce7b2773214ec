"""The I/O APIC of a machine: interrupt lines in, interrupt messages out (82093AA; QEMU: hw/intc/ioapic.c).

A level triggered entry sends one message, and none more until that is ended by its vector; if the line is still up
then, another one follows.
"""

from __future__ import annotations

from collections.abc import Callable

from viommu_actors.spec.ioapic import (
    ID_SHIFT,
    IDENTIFIER,
    MASKED,
    MAXIMUM_ENTRY_SHIFT,
    PINS,
    READ_ONLY,
    REMOTE_IRR,
    VERSION,
    Entry,
    Reg,
    Window,
)
from viommu_actors.spec.tlp import INTERRUPT_FIRST

_DWORD = 4
_ALL_ONES = 0xFFFF_FFFF


class IoApic:
    """`send(address, data)` takes a message to the remapping unit. `ended(pin)` is called when software has ended a
    pin's interrupt, before its line is looked at again; `changed()` when an entry was written."""

    def __init__(
        self,
        send: Callable[[int, int], object],
        ended: Callable[[int], None] = lambda pin: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._ended = ended
        self._changed = changed
        self._select = 0
        self._table = [MASKED] * PINS
        self._lines = 0

    def masked(self, pin: int) -> bool:
        return bool(self._table[pin] & MASKED)

    def set_line(self, pin: int, level: bool) -> None:
        """A line goes up or down, whatever the polarity of its entry: up is asserted."""
        before = self._lines >> pin & 1
        self._lines = self._lines & ~(1 << pin) | level << pin
        if level and (not before or Entry.decode(self._table[pin]).level):
            self._service(pin)

    def read(self, offset: int, size: int) -> int:
        """Dwords only; all-ones for any other access."""
        if size != _DWORD:
            return (1 << 8 * size) - 1
        match offset:
            case Window.SELECT:
                return self._select
            case Window.DATA:
                return self._register()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Dwords only; any other access is lost."""
        if size != _DWORD:
            return
        match offset:
            case Window.SELECT:
                self._select = value & 0xFF
            case Window.DATA:
                self._set_register(value)
            case Window.EOI:
                self._end(value & 0xFF)

    def _register(self) -> int:
        match self._select:
            case Reg.ID | Reg.ARBITRATION:
                return IDENTIFIER << ID_SHIFT
            case Reg.VERSION:
                return VERSION | PINS - 1 << MAXIMUM_ENTRY_SHIFT
        pin, high = divmod(self._select - Reg.TABLE, 2)
        return self._table[pin] >> 32 * high & _ALL_ONES if 0 <= pin < PINS else 0

    def _set_register(self, value: int) -> None:
        pin, high = divmod(self._select - Reg.TABLE, 2)
        if not 0 <= pin < PINS:
            return
        old = self._table[pin]
        if high:
            self._table[pin] = old & _ALL_ONES | value << 32
        else:
            self._table[pin] = old & (READ_ONLY | _ALL_ONES << 32) | value & ~READ_ONLY
        if not Entry.decode(self._table[pin]).level:
            self._table[pin] &= ~REMOTE_IRR
        self._changed()
        if self._lines >> pin & 1 and Entry.decode(self._table[pin]).level:
            self._service(pin)

    def _end(self, vector: int) -> None:
        for pin in range(PINS):
            if self._table[pin] & REMOTE_IRR and Entry.decode(self._table[pin]).vector == vector:
                self._table[pin] &= ~REMOTE_IRR
                self._ended(pin)
                if self._lines >> pin & 1:
                    self._service(pin)

    def _service(self, pin: int) -> None:
        """Sends the entry's message, if it may."""
        entry = Entry.decode(self._table[pin])
        if entry.masked or self._table[pin] & REMOTE_IRR:
            return
        if entry.level:
            self._table[pin] |= REMOTE_IRR
        self._send(*entry.message(INTERRUPT_FIRST))
