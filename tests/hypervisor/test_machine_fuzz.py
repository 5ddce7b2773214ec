"""Whatever a guest's CPU traps with, its machine answers: over a real kernel, whose errors are Linux's."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hypervisor.whole_guest import SLOTS, WholeGuest
from viommu_actors.hypervisor.bars import BarWindow
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd import Command, Reg
from viommu_actors.vtd.config import UnitConfig

TABLES = 0x10_0000
TABLE_PAGES = 16
#: Guest-physical addresses that mean something: RAM and its end, registers, BARs, holes, the ends of the address space.
PLACES = (
    0,
    0x1000,
    TABLES,
    0x20_0000,
    platform.ECAM_BASE,
    0xC000_0000,
    0xC010_0000,
    platform.REMAPPING_UNIT_BASE,
    platform.LOCAL_APIC_BASE,
    0xFFFF_F000,
    1 << 32,
    (1 << 64) - 0x4000,
)
BITS = (pci.Command.MEMORY | pci.Command.BUS_MASTER, 1 << 16, 1 << 31, 0xFFFF_FFFF, (1 << 64) - 1)


class Access(NamedTuple):
    """One trap; `value` None is a read."""

    address: int
    size: int
    value: int | None


def _constants(layout: type) -> list[int]:
    return [value for name, value in vars(layout).items() if name.isupper()]


def _offsets() -> st.SearchStrategy[int]:
    """Of configuration space: what is decided there, and anything."""
    known = [pci.COMMAND, *range(pci.BAR0, pci.BAR0 + 24, 4), pci.INTERRUPT_LINE, 0xFFC, 0xFFE]
    return st.sampled_from(known) | st.integers(0x40, 0x90) | st.integers(0, 0xFFF)


def _addresses() -> st.SearchStrategy[int]:
    functions = st.sampled_from([0, *SLOTS, *SLOTS, 9])
    config = st.builds(lambda slot, at: platform.ECAM_BASE + pci.ecam_offset(slot << 3, at), functions, _offsets())
    registers = st.sampled_from(_constants(Reg)) | st.integers(0, platform.REMAPPING_UNIT_SIZE - 1)
    bars = st.builds(int.__add__, st.sampled_from(PLACES), st.integers(0, 0x40) | st.just(0x800))
    return config | config | registers.map(lambda at: platform.REMAPPING_UNIT_BASE + at) | bars


@st.composite
def _accesses(draw: st.DrawFn) -> Access:
    size = draw(st.sampled_from([1, 2, 4, 4, 8]))
    values = st.sampled_from(PLACES) | st.sampled_from(BITS) | st.sampled_from(_constants(Command))
    value = draw(st.none() | values | values | values | st.integers(0, (1 << 64) - 1))
    return Access(draw(_addresses()), size, None if value is None else value & (1 << 8 * size) - 1)


def _fill_tables(guest: WholeGuest, seed: int) -> None:
    """Pages of entries that lead to each other, to RAM, out of it, or nowhere."""
    rng = random.Random(seed)
    pages = [TABLES + 4096 * number for number in range(TABLE_PAGES)]
    choices = (
        lambda: 0,
        lambda: rng.choice(pages) | rng.choice([1, 3, 0x83, 0x502, 0x702]),
        lambda: rng.getrandbits(21) & ~0xFFF | rng.choice([1, 2, 3]),
        lambda: rng.getrandbits(64),
    )
    for at in range(TABLES, TABLES + 4096 * TABLE_PAGES, 8):
        guest.machine.memory.write_u64(at, rng.choices(choices, (6, 4, 2, 1))[0]())


def _carry_out(guest: WholeGuest, access: Access) -> None:
    address, size, value = access
    if value is None:
        read = guest.machine.read(address, size)
        assert not isinstance(read, int) or 0 <= read < 1 << 8 * size
    else:
        guest.machine.write(address, size, value)


@pytest.mark.parametrize("viommu", [None, UnitConfig(caching_mode=True), UnitConfig(caching_mode=True, intremap=True)])
@settings(
    max_examples=10,
    deadline=None,
    # What fails is shrunk by hand: a machine for each attempt takes longer than a test may.
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.integers(0, 1 << 32), st.lists(_accesses(), min_size=60, max_size=120))
def test_no_trap_of_a_guest_ends_its_machine(viommu: UnitConfig | None, seed: int, accesses: list[Access]) -> None:
    guest = WholeGuest(viommu)
    _fill_tables(guest, seed)
    for number, access in enumerate(accesses):
        _carry_out(guest, access)
        if number % 8 == 0:
            guest.raise_all()
    # A kernel that comes to its senses finds its devices there.
    for slot in SLOTS:
        assert guest.machine.read(guest.config(slot, pci.VENDOR_ID), 2) == 0x1234


def _decoding_at(guest: WholeGuest, slot: int, address: int) -> None:
    guest.machine.write(guest.config(slot, pci.BAR0), 4, address)
    guest.machine.write(guest.config(slot, pci.COMMAND), 2, pci.Command.MEMORY)


def test_a_bar_over_ram_answers_nowhere_and_the_guest_can_put_it_right() -> None:
    guest = WholeGuest()
    _decoding_at(guest, 3, 0x10_0000)
    assert not guest.beneath.ports.lent
    assert guest.machine.read(0x10_0000 + (2 << 20), 4) == 0xFFFF_FFFF
    assert [line for line in guest.lines if "BAR 0 at 0x100000" in line]
    _decoding_at(guest, 3, 0xC000_0000)
    assert isinstance(guest.machine.read(0xC000_0000, 4), BarWindow)


def test_of_two_bars_at_one_place_the_second_answers_once_the_first_has_gone() -> None:
    guest = WholeGuest()
    _decoding_at(guest, 3, 0xC000_0000)
    _decoding_at(guest, 4, 0xC000_0000)
    first = guest.machine.read(0xC000_0000, 4)
    assert isinstance(first, BarWindow) and len(guest.beneath.ports.lent) == 1
    guest.machine.write(guest.config(3, pci.BAR0), 4, 0xC100_0000)
    second = guest.machine.read(0xC000_0000, 4)
    assert isinstance(second, BarWindow) and second is not first
    assert len(guest.beneath.ports.lent) == 2


def _capability(guest: WholeGuest, identifier: int) -> int:
    at = guest.machine.read(guest.config(3, pci.CAPABILITY_POINTER), 1)
    while isinstance(at, int) and at:
        if guest.machine.read(guest.config(3, at), 1) == identifier:
            return at
        at = guest.machine.read(guest.config(3, at + pci.CAPABILITY_NEXT), 1)
    raise AssertionError(f"no capability {identifier:#x}")


def test_msix_on_top_of_msi_stays_off() -> None:
    guest = WholeGuest()
    msi, msix = (_capability(guest, each) for each in (pci.CapabilityId.MSI, pci.CapabilityId.MSIX))
    guest.machine.write(guest.config(3, msi + pci.MSI_CONTROL), 2, pci.MSI_ENABLE)
    guest.machine.write(guest.config(3, msix + pci.MSIX_CONTROL), 2, pci.MSIX_ENABLE)
    assert guest.machine.counters["refused"] == 1
    guest.machine.write(guest.config(3, msi + pci.MSI_CONTROL), 2, 0)
    guest.machine.write(guest.config(3, msix + pci.MSIX_CONTROL), 2, pci.MSIX_ENABLE)
    assert guest.machine.counters["refused"] == 1


@pytest.mark.parametrize(("offset", "size"), [(0xFFE, 4), (0xFFF, 2), (0x06, 4), (0x10, 8), (0x11, 2)])
def test_what_is_no_configuration_request_is_refused(offset: int, size: int) -> None:
    guest = WholeGuest()
    before = guest.machine.read(guest.config(3, 0x10), 4)
    guest.machine.write(guest.config(3, offset), size, 0x1234)
    assert guest.machine.read(guest.config(3, offset), size) == (1 << 8 * size) - 1
    assert guest.machine.read(guest.config(3, 0x10), 4) == before
