"""The I/O APIC: registers, level and edge, and that no order of events loses or invents an interrupt."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import booleans, lists, sampled_from

from viommu_actors.ioapic import IoApic
from viommu_actors.spec.ioapic import PINS, Entry, Reg, Window

PIN = 21
OPEN = Entry(vector=0x41, level=True, active_low=True, masked=False)


class Board:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self.chip = IoApic(lambda *message: self.sent.append(message), self.ended.append)

    def program(self, entry: Entry, pin: int = PIN) -> None:
        for half in (1, 0):
            self.chip.write(Window.SELECT, 4, Reg.TABLE + 2 * pin + half)
            self.chip.write(Window.DATA, 4, entry.encode() >> 32 * half & 0xFFFF_FFFF)

    def register(self, number: int) -> int:
        self.chip.write(Window.SELECT, 4, number)
        return self.chip.read(Window.DATA, 4)


def test_registers() -> None:
    board = Board()
    assert board.register(Reg.VERSION) == (PINS - 1) << 16 | 0x20
    assert board.register(Reg.ID) == 0
    assert all(board.register(Reg.TABLE + 2 * pin) == 1 << 16 for pin in range(PINS))
    entry = Entry.remappable(0x9234, 21)
    board.program(entry)
    assert board.register(Reg.TABLE + 2 * PIN) == entry.encode() & 0xFFFF_FFFF
    assert board.register(Reg.TABLE + 2 * PIN + 1) == entry.encode() >> 32
    assert board.register(0xFF) == 0 and board.chip.read(0x44, 4) == 0
    assert board.chip.read(Window.DATA, 2) == 0xFFFF


def test_messages_in_both_formats() -> None:
    board = Board()
    board.program(Entry(vector=0x41, level=True, masked=False, destination=0x0300))
    board.chip.set_line(PIN, True)
    board.program(Entry.remappable(0x9234, 20), 20)
    board.chip.set_line(20, True)
    # Index bits 14:0 in address bits 19:5, bit 15 in address bit 2; bit 4 is the format (VT-d section 5.1.5.1).
    assert board.sent == [(0xFEE0_3000, 0x8041), (0xFEE0_0000 | 0x1234 << 5 | 1 << 4 | 1 << 2, 0x8014)]


def test_a_level_is_sent_again_after_its_end_as_long_as_it_stands() -> None:
    board = Board()
    board.program(OPEN)
    board.chip.set_line(PIN, True)
    board.chip.set_line(PIN, True)
    assert len(board.sent) == 1
    board.chip.write(Window.EOI, 4, 0x42)
    assert (len(board.sent), board.ended) == (1, [])
    board.chip.write(Window.EOI, 4, 0x41)
    assert (len(board.sent), board.ended) == (2, [PIN])
    board.chip.set_line(PIN, False)
    board.chip.write(Window.EOI, 4, 0x41)
    assert len(board.sent) == 2


def test_an_edge_is_sent_once() -> None:
    board = Board()
    board.program(OPEN._replace(level=False))
    for level in (True, True, False, True):
        board.chip.set_line(PIN, level)
    assert len(board.sent) == 2


def test_a_line_that_stands_is_sent_as_its_entry_opens() -> None:
    board = Board()
    board.chip.set_line(PIN, True)
    assert not board.sent
    board.program(OPEN)
    assert len(board.sent) == 1


@given(lists(sampled_from(["up", "down", "end", "mask", "open"]), max_size=40), booleans())
def test_what_stands_at_last_has_been_sent_and_what_was_sent_stood(events: list[str], opened: bool) -> None:
    board = Board()
    if opened:
        board.program(OPEN)
    line = under_way = False
    for event in events:
        before = len(board.sent)
        match event:
            case "up" | "down":
                line = event == "up"
                board.chip.set_line(PIN, line)
            case "mask" | "open":
                opened = event == "open"
                board.program(OPEN._replace(masked=not opened))
            case "end":
                board.chip.write(Window.EOI, 4, OPEN.vector)
                under_way = False
        expected = line and opened and not under_way
        assert len(board.sent) - before == expected
        under_way |= expected
        assert bool(board.register(Reg.TABLE + 2 * PIN) & 1 << 14) is under_way
