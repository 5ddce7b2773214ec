"""INTx of assigned devices at the guest's I/O APIC: raised, ended, shared, and giving way to MSI."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

from viommu_actors.hypervisor.intx import Intx, Lines
from viommu_actors.spec.ioapic import Entry, Reg, Window
from viommu_actors.spec.vfio import IrqAction, IrqIndex

LINE, DEVICE, OTHER = 23, 5, 6
OPEN = Entry(vector=0x41, level=True, masked=False)


class Parent:
    """The kernel beneath: which device signals what, and what was unmasked."""

    def __init__(self) -> None:
        self._fds = count(100)
        self.irqs: dict[int, tuple[int, ...]] = {}
        self.unmasked: list[int] = []
        self.open: set[int] = set()
        self.refuses = False

    def eventfd(self) -> int:
        self.open.add(fd := next(self._fds))
        return fd

    def close(self, handle: int) -> None:
        self.open.remove(handle)

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        assert (index, start) == (IrqIndex.INTX, 0)
        if self.refuses and eventfds:
            raise OSError(22, "another kind is on")
        self.irqs[device] = eventfds

    def act_on_irqs(self, device: int, index: int, action: int, start: int, interrupts: int) -> None:
        assert (index, action, start, interrupts) == (IrqIndex.INTX, IrqAction.UNMASK, 0, 1)
        self.unmasked.append(device)


class Board:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.refused: list[str] = []
        self.counters: Counter[str] = Counter()
        self.parent = Parent()
        self.lines = Lines(lambda *message: self.sent.append(message))
        self.devices = {device: self._device(device) for device in (DEVICE, OTHER)}

    def _device(self, descriptor: int) -> Intx:
        parent: Any = self.parent
        return Intx(parent, descriptor, LINE, self.lines, self.counters, lambda what, _: self.refused.append(what))

    def program(self, entry: Entry) -> None:
        for half in (1, 0):
            self.lines.controller.write(Window.SELECT, 4, Reg.TABLE + 2 * LINE + half)
            self.lines.controller.write(Window.DATA, 4, entry.encode() >> 32 * half & 0xFFFF_FFFF)

    def signal(self, device: int) -> None:
        [eventfd] = self.parent.irqs[device]
        assert [each.signalled(eventfd) for each in self.devices.values()].count(True) == 1

    def end(self) -> None:
        self.lines.controller.write(Window.EOI, 4, OPEN.vector)


def test_it_is_on_while_the_guest_has_the_line_open() -> None:
    board = Board()
    assert board.parent.irqs == {}
    board.program(OPEN)
    assert len(board.parent.irqs[DEVICE]) == 1
    board.program(Entry())
    assert board.parent.irqs == {DEVICE: (), OTHER: ()} and not board.parent.open


def test_one_interrupt_is_raised_ended_and_unmasked() -> None:
    board = Board()
    board.program(OPEN)
    board.signal(DEVICE)
    assert len(board.sent) == 1 and board.parent.unmasked == []
    board.end()
    assert len(board.sent) == 1 and board.parent.unmasked == [DEVICE]
    board.end()
    assert board.parent.unmasked == [DEVICE]
    assert board.counters["interrupts_forwarded"] == 1


def test_two_devices_on_one_line() -> None:
    board = Board()
    board.program(OPEN)
    board.signal(DEVICE)
    board.signal(OTHER)
    assert len(board.sent) == 1
    board.end()
    assert len(board.sent) == 1 and board.parent.unmasked == [DEVICE, OTHER]


def test_it_gives_way_to_messages_and_comes_back() -> None:
    board = Board()
    board.program(OPEN)
    board.signal(DEVICE)
    board.devices[DEVICE].give_way(True)
    assert board.parent.irqs[DEVICE] == ()
    board.end()
    assert board.parent.unmasked == [], "nothing of it is masked any more"
    board.devices[DEVICE].give_way(False)
    assert len(board.parent.irqs[DEVICE]) == 1


def test_one_that_is_gone_takes_its_line_down() -> None:
    board = Board()
    board.program(OPEN)
    board.signal(DEVICE)
    board.devices[DEVICE].unplug()
    board.end()
    assert len(board.sent) == 1 and board.parent.irqs[DEVICE] == ()
    assert len(board.parent.open) == 1


def test_what_the_kernel_beneath_refuses_is_told_and_does_no_harm() -> None:
    board = Board()
    board.parent.refuses = True
    board.program(OPEN)
    assert board.refused == ["INTx", "INTx"] and not board.parent.open
