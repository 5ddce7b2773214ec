"""Vectors of an assigned device: fast path, slow path, masks, pending bits, and routes through a real vIOMMU."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest

from viommu_actors.hypervisor.intx import Lines
from viommu_actors.hypervisor.msix import Msix
from viommu_actors.hypervisor.routes import Routes
from viommu_actors.hypervisor.vectors import Delivery, Remap, Vectors
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import pci
from viommu_actors.spec.vtd import Command, Irta, Reg
from viommu_actors.spec.vtd_interrupts import InterruptEntry, InterruptRequest, SourceValidation
from viommu_actors.vtd import RemappingUnit, UnitConfig
from viommu_actors.vtd.interrupts import Blocked

VM, DEVICE, REQUESTER = 1, 2, 0x18
MESSAGE = (0xFEE0_0000, 0x31)


class Parent:
    """The kernel beneath: which eventfd is bound to which line, and what each line is routed to."""

    def __init__(self) -> None:
        self._fds = count(100)
        self.irqs: tuple[int, ...] = ()
        self.irqfds: dict[int, int] = {}
        self.routes: dict[int, tuple[int, int]] = {}
        self.signalled: list[tuple[int, int]] = []

    def eventfd(self) -> int:
        return next(self._fds)

    def close(self, handle: int) -> None:
        assert handle not in self.irqfds

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        self.irqs = eventfds

    def irqfd(self, vm: int, eventfd: int, gsi: int, assign: bool) -> None:
        if assign:
            assert eventfd not in self.irqfds and gsi in self.routes
            self.irqfds[eventfd] = gsi
        else:
            assert self.irqfds.pop(eventfd) == gsi

    def set_routes(self, vm: int, routes: list[tuple[int, int, int]]) -> None:
        self.routes = {gsi: (address, data) for gsi, address, data in routes}

    def signal_msi(self, vm: int, address: int, data: int) -> None:
        self.signalled.append((address, data))

    def signal_line(self, address: int, data: int) -> None:
        raise AssertionError("no line here")

    def refused(self, what: str, error: OSError) -> None:
        raise error

    def fast(self, number: int) -> tuple[int, int] | None:
        """What a signal of a vector's eventfd becomes without the hypervisor."""
        gsi = self.irqfds.get(self.irqs[number])
        return None if gsi is None else self.routes[gsi]


def _vectors(parent: Parent, remap: Remap | None = None, irqfd: bool = True) -> tuple[Vectors, Counter[str]]:
    counters: Counter[str] = Counter()
    straight: Remap = lambda _requester, address, data, _record: (address, data)  # noqa: E731
    kvm: Any = parent
    delivery = Delivery(
        kvm, VM, Routes(kvm, VM), remap or straight, counters, parent.refused, Lines(parent.signal_line), irqfd
    )
    return Vectors(delivery, DEVICE, REQUESTER, 2, None), counters


def test_a_programmed_vector_never_meets_the_hypervisor() -> None:
    parent = Parent()
    vectors, counters = _vectors(parent)
    vectors.enable(2)
    assert parent.fast(0) is parent.fast(1) is None
    vectors.program(0, *MESSAGE, masked=False)
    vectors.program(1, MESSAGE[0], 0x32, masked=False)
    assert (parent.fast(0), parent.fast(1)) == (MESSAGE, (MESSAGE[0], 0x32))
    assert not counters
    vectors.disable()
    assert not parent.irqfds and not parent.routes and parent.irqs == ()


def test_without_irqfd_every_interrupt_is_forwarded_and_counted() -> None:
    parent = Parent()
    vectors, counters = _vectors(parent, irqfd=False)
    vectors.enable(1)
    vectors.program(0, *MESSAGE, masked=False)
    assert parent.fast(0) is None
    for _ in range(3):
        assert vectors.signalled(parent.irqs[0])
    assert parent.signalled == [MESSAGE] * 3
    assert counters["interrupts_forwarded"] == 3
    assert not vectors.signalled(99)


def test_what_comes_while_a_vector_is_masked_is_pending_and_comes_once_unmasked() -> None:
    parent = Parent()
    vectors, _ = _vectors(parent)
    vectors.enable(1)
    vectors.program(0, *MESSAGE, masked=False)
    vectors.program(0, *MESSAGE, masked=True)
    assert parent.fast(0) is None and not vectors.pending(0)
    vectors.signalled(parent.irqs[0])
    vectors.signalled(parent.irqs[0])
    assert vectors.pending(0) and not parent.signalled
    vectors.program(0, *MESSAGE, masked=False)
    assert parent.signalled == [MESSAGE] and not vectors.pending(0)
    assert parent.fast(0) == MESSAGE


class Guest:
    """A vIOMMU with a table of 4 interrupt entries at 0x1000, over which a device's messages are remapped."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(bytearray(0x4000)))])
        self.parent = Parent()
        self.events: list[tuple[int, int]] = []
        config = UnitConfig(intremap=True, caching_mode=True)
        self.unit = RemappingUnit(
            config, self.memory, lambda *event: self.events.append(event), None, lambda *_: self._changed()
        )
        self.vectors, self.counters = _vectors(self.parent, self._remap)
        self.unit.write(Reg.IRTA, 8, 0x1000 | Irta.SIZE & 1)
        self.unit.write(Reg.GCMD, 4, Command.SIRTP)
        self.unit.write(Reg.GCMD, 4, Command.IRE)

    def entry(self, index: int, vector: int, source: int = REQUESTER, present: bool = True) -> None:
        low, high = InterruptEntry(present, vector=vector, source=source, validation=SourceValidation.SOURCE).encode()
        self.memory.write_u64(0x1000 + index * 16, low)
        self.memory.write_u64(0x1000 + index * 16 + 8, high)

    def flush(self) -> None:
        """A global interrupt-entry invalidation, as the queue carries it out."""
        self.unit.invalidate_interrupt_entries(False, 0, 0)

    def _changed(self) -> None:
        if hasattr(self, "vectors"):
            self.vectors.reroute()

    def _remap(self, requester: int, address: int, data: int, record: bool) -> tuple[int, int] | None:
        outcome = self.unit.remap_interrupt(requester, address, data, record)
        return None if isinstance(outcome, Blocked) else outcome.interrupt.message()


def _handle(index: int) -> tuple[int, int]:
    return InterruptRequest(index).encode()


def test_the_route_holds_what_the_viommu_makes_of_the_message_and_follows_invalidations() -> None:
    guest = Guest()
    guest.entry(2, vector=0x41)
    guest.vectors.enable(1)
    guest.vectors.program(0, *_handle(2), masked=False)
    assert guest.parent.fast(0) == (0xFEE0_0000, 0x41)
    guest.entry(2, vector=0x42)
    assert guest.parent.fast(0) == (0xFEE0_0000, 0x41), "cached until it is invalidated"
    guest.flush()
    assert guest.parent.fast(0) == (0xFEE0_0000, 0x42)


@pytest.mark.parametrize("wrong", ["absent", "another's", "compatibility format"])
def test_a_message_that_the_viommu_blocks_leaves_the_fast_path_and_its_fault_is_recorded_when_it_comes(
    wrong: str,
) -> None:
    guest = Guest()
    guest.entry(1, vector=0x41, source=REQUESTER if wrong == "absent" else 0x20, present=wrong != "absent")
    guest.vectors.enable(1)
    guest.vectors.program(0, *(MESSAGE if wrong == "compatibility format" else _handle(1)), masked=False)
    assert guest.parent.fast(0) is None
    assert not guest.unit.read(Reg.FSTS, 4), "asking for a route is no fault"
    guest.vectors.signalled(guest.parent.irqs[0])
    assert guest.unit.read(Reg.FSTS, 4) and not guest.parent.signalled
    guest.entry(1, vector=0x43)
    guest.flush()
    if wrong != "compatibility format":
        assert guest.parent.fast(0) == (0xFEE0_0000, 0x43)


TABLE, PBA = 0x000, 0x800


def _msix(parent: Parent) -> Msix:
    raw = bytearray(256)
    raw[0x40:0x44] = (pci.CapabilityId.MSIX | 2 << 16).to_bytes(4, "little")
    raw[0x44:0x48] = (TABLE | 2).to_bytes(4, "little")
    raw[0x48:0x4C] = (PBA | 2).to_bytes(4, "little")
    return Msix(_vectors(parent)[0], 0x40, bytes(raw))


def _enable(msix: Msix, bits: int = pci.MSIX_ENABLE) -> None:
    msix.write(0x40, 0xFFFF_0000, bits << 16)


def test_msix_table_traps_and_programs_each_vector() -> None:
    parent = Parent()
    msix = _msix(parent)
    assert msix.holds(2, TABLE) and msix.holds(2, TABLE + 47) and msix.holds(2, PBA)
    assert not msix.holds(2, TABLE + 48) and not msix.holds(0, TABLE) and not msix.holds(2, PBA + 8)
    _enable(msix)
    assert len(parent.irqs) == 3 and all(parent.fast(number) is None for number in range(3))
    msix.write_table(2, 16, 8, 0xFEE0_0000)
    msix.write_table(2, 24, 4, 0x51)
    assert parent.fast(1) is None, "still masked"
    msix.write_table(2, 28, 4, 0)
    assert parent.fast(1) == (0xFEE0_0000, 0x51)
    assert msix.read(2, 16, 8) == 0xFEE0_0000 and msix.read(2, 24, 4) == 0x51
    assert parent.fast(0) is parent.fast(2) is None


def test_msix_function_mask_and_pending_bits() -> None:
    parent = Parent()
    msix = _msix(parent)
    _enable(msix)
    msix.write_table(2, 0, 8, 0xFEE0_0000)
    msix.write_table(2, 8, 8, 0x51)
    assert parent.fast(0) is not None
    _enable(msix, pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
    assert parent.fast(0) is None
    msix.vectors.signalled(parent.irqs[0])
    assert msix.read(2, PBA, 4) == 1
    msix.write_table(2, PBA, 4, 0)
    assert msix.read(2, PBA, 8) == 1, "pending bits are read-only"
    _enable(msix)
    assert msix.read(2, PBA, 4) == 0 and parent.signalled == [(0xFEE0_0000, 0x51)]
    _enable(msix, 0)
    assert parent.irqs == ()


def test_msix_accesses_of_other_sizes_do_nothing() -> None:
    msix = _msix(Parent())
    msix.write_table(2, 0, 2, 0xFFFF)
    msix.write_table(2, 4, 8, 0)
    assert msix.read(2, 0, 4) == 0 and msix.read(2, 0, 1) == 0xFF
