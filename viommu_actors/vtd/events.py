"""An event of the unit that may interrupt: mask, pending bit and message (sections 7.3 and 6.5.2.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from viommu_actors.spec.vtd import EventControl
from viommu_actors.vtd.registers import RegisterFile

#: send_interrupt(address, data): a message signalled interrupt of the unit itself.
SendInterrupt = Callable[[int, int], None]

#: Data, address and upper address registers follow a control register.
_DATA: Final = 4
_ADDRESS: Final = 8


class Event:
    """Fault event or invalidation completion event, whose control register is at `control`."""

    def __init__(self, registers: RegisterFile, control: int, send: SendInterrupt) -> None:
        self._registers = registers
        self._control = control
        self._send = send

    def signal(self) -> None:
        """The condition has come up: sends the interrupt, or holds it pending while masked."""
        self._registers.change32(self._control, set_=EventControl.IP)
        self.deliver()

    def deliver(self) -> None:
        """Sends what is pending and not masked: after a write of the control register."""
        control = self._registers.get32(self._control)
        if control & EventControl.IP and not control & EventControl.IM:
            self.withdraw()
            self._send(
                self._registers.get64(self._control + _ADDRESS),
                self._registers.get32(self._control + _DATA),
            )

    def withdraw(self) -> None:
        """Software has dealt with the condition: nothing is pending any more."""
        self._registers.change32(self._control, clear=EventControl.IP)
