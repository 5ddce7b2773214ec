"""The invalidation queue: order, waits, errors, sizes, and what QEMU does otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from viommu_actors.spec.vtd import (
    ICS_IWC,
    Command,
    ContextCacheInvalidate,
    DeviceTlbInvalidate,
    EventControl,
    Fsts,
    InterruptEntryInvalidate,
    InvalidationWait,
    IotlbInvalidate,
    Iqa,
    Reg,
    Status,
)

GOOD = IotlbInvalidate(1).encode()


def running(rig: Any, **options: Any) -> Any:
    machine = rig(**options)
    machine.start(queue=True)
    machine.listener.calls.clear()
    return machine


def head(machine: Any) -> int:
    return int(machine.unit.read(Reg.IQH, 8)) >> 4


def stopped(machine: Any) -> bool:
    return bool(machine.unit.read(Reg.FSTS, 4) & Fsts.IQE)


def test_wait_writes_its_status(rig: Any) -> None:
    machine = running(rig)
    machine.submit(InvalidationWait(status_write=True, data=0xDEADBEEF, address=0x20004).encode())
    assert machine.memory.read(0x20000, 12) == bytes(4) + (0xDEADBEEF).to_bytes(4, "little") + bytes(4)
    assert head(machine) == 1
    assert machine.interrupts == []


def test_wait_interrupts_and_iwc(rig: Any) -> None:
    """OpenVMM's `ics_rw1c`: no new event while IWC is set; it is cleared by writing one."""
    machine = running(rig)
    machine.unit.write(Reg.IEADDR, 4, 0xFEE0_2000)
    machine.unit.write(Reg.IEDATA, 4, 0x41)
    machine.unit.write(Reg.IECTL, 4, 0)
    wait = InvalidationWait(interrupt=True).encode()
    machine.submit(wait, wait)
    assert machine.interrupts == [(0xFEE0_2000, 0x41)]
    assert machine.unit.read(Reg.ICS, 4) == ICS_IWC
    machine.unit.write(Reg.ICS, 4, ICS_IWC)
    assert machine.unit.read(Reg.ICS, 4) == 0
    machine.submit(wait)
    assert len(machine.interrupts) == 2


def test_masked_completion_waits_and_is_forgotten(rig: Any) -> None:
    machine = running(rig)
    wait = InvalidationWait(interrupt=True).encode()
    machine.submit(wait)
    assert machine.unit.read(Reg.IECTL, 4) == EventControl.IM | EventControl.IP
    machine.unit.write(Reg.ICS, 4, ICS_IWC)
    assert machine.unit.read(Reg.IECTL, 4) == EventControl.IM
    machine.submit(wait)
    machine.unit.write(Reg.IECTL, 4, 0)
    assert len(machine.interrupts) == 1


def test_wait_may_write_and_interrupt(rig: Any) -> None:
    machine = running(rig)
    machine.unit.write(Reg.IECTL, 4, 0)
    machine.submit(InvalidationWait(interrupt=True, status_write=True, data=5, address=0x20000).encode())
    assert machine.memory.read(0x20000, 4) == b"\5\0\0\0"
    assert len(machine.interrupts) == 1


def test_queue_wraps(rig: Any) -> None:
    machine = running(rig)
    for _ in range(3):
        for _ in range(100):
            machine.submit_and_wait(GOOD)
    assert head(machine) == 600 % 256
    assert machine.unit.counters["iotlb_global"] == machine.unit.counters["waits"] == 300


@pytest.mark.parametrize("size", range(8))
def test_sizes(rig: Any, size: int) -> None:
    machine = rig()
    entries = 256 << size
    machine.unit.write(Reg.IQA, 8, 0x40000 | size)
    machine.command(Command.QIE)
    wait = InvalidationWait(status_write=True, data=7, address=0x20000).encode()
    for index in range(entries):
        machine.words(0x40000 + 16 * index, wait)
    machine.unit.write(Reg.IQT, 8, (entries - 1) << 4)
    assert head(machine) == entries - 1
    assert not stopped(machine)
    machine.unit.write(Reg.IQT, 8, 0)
    assert head(machine) == 0
    if size < 7:
        machine.unit.write(Reg.IQT, 8, entries << 4)
        assert stopped(machine)


BAD = {
    "type 0": (0, 0),
    "type 8": (8, 0),
    "type 15": (15, 0),
    "PASID IOTLB": (6, 0),
    "PASID cache": (7, 0),
    "context granularity": (1, 0),
    "context reserved low": (0x11 | 1 << 6, 0),
    "context reserved SID": (0x11 | 1 << 50, 0),
    "context reserved high": (0x11, 1),
    "IOTLB granularity": (2, 0),
    "IOTLB reserved low": (0x12 | 1 << 8, 0),
    "IOTLB reserved upper": (0x12 | 1 << 32, 0),
    "IOTLB reserved high": (0x12, 1 << 7),
    "IOTLB mask": IotlbInvalidate(3, 1, 0, 19).encode(),
    "device TLB not offered": DeviceTlbInvalidate(0x18, 0).encode(),
    "interrupt entry reserved": (4 | 1 << 5, 0),
    "wait reserved": (0x25 | 1 << 7, 0x20000),
    "wait address": (0x25, 0x20001),
    "wait address outside memory": InvalidationWait(status_write=True, address=0x8000_0000).encode(),
    "wait for nothing": InvalidationWait().encode(),
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD)
def test_bad_descriptor_stops_the_queue(rig: Any, words: tuple[int, int]) -> None:
    """IQE and an event; the head stays; nothing is fetched until IQE is cleared, and then it goes on."""
    machine = running(rig)
    machine.unit.write(Reg.FEADDR, 4, 0xFEE0_1000)
    machine.unit.write(Reg.FECTL, 4, 0)
    machine.submit(GOOD, words, GOOD)
    assert stopped(machine)
    assert head(machine) == 1
    assert len(machine.listener.calls) == 1
    assert machine.interrupts == [(0xFEE0_1000, 0)]
    machine.submit(GOOD)
    assert head(machine) == 1
    machine.words(machine.queue + 16, GOOD)
    machine.unit.write(Reg.FSTS, 4, Fsts.IQE)
    assert not stopped(machine)
    assert head(machine) == 4
    assert machine.unit.counters["queue_errors"] == 1


def test_descriptor_still_bad_stops_it_again(rig: Any) -> None:
    machine = running(rig)
    machine.submit((0, 0))
    machine.unit.write(Reg.FSTS, 4, Fsts.IQE)
    assert stopped(machine)
    assert machine.unit.counters["queue_errors"] == 2


def test_qemu_fetches_nothing_until_the_tail_is_written(rig: Any) -> None:
    machine = running(rig, quirks="qemu")
    machine.submit((0, 0))
    machine.words(machine.queue, GOOD)
    machine.unit.write(Reg.FSTS, 4, Fsts.IQE)
    assert head(machine) == 0
    machine.unit.write(Reg.IQT, 8, 1 << 4)
    assert head(machine) == 1


@pytest.mark.parametrize("name", ["PASID IOTLB", "PASID cache", "device TLB not offered", "interrupt entry reserved"])
def test_qemu_takes_descriptors_it_should_not(rig: Any, name: str) -> None:
    machine = running(rig, quirks="qemu")
    machine.submit_and_wait(BAD[name])
    assert not stopped(machine)


def test_queue_outside_memory(rig: Any) -> None:
    machine = rig()
    machine.unit.write(Reg.IQA, 8, 0x8000_0000)
    machine.command(Command.QIE)
    machine.unit.write(Reg.IQT, 8, 0x10)
    assert stopped(machine)


def test_device_tlb_and_interrupt_entry_descriptors(rig: Any) -> None:
    machine = running(rig, device_iotlb=True, intremap=True)
    machine.submit_and_wait(
        DeviceTlbInvalidate(0x18, 0x5000, size=True).encode(),
        InterruptEntryInvalidate(False).encode(),
        InterruptEntryInvalidate(True, 5, 2).encode(),
    )
    assert machine.unit.counters["device_tlb_invalidations"] == 1
    assert machine.unit.counters["interrupt_entry_invalidations"] == 2
    assert machine.listener.calls == []


def test_qie_enable_disable(rig: Any) -> None:
    machine = running(rig)
    machine.submit_and_wait(GOOD)
    assert not machine.command(Command.QIE, False) & Status.QIES
    assert machine.unit.read(Reg.IQH, 8) == 0
    assert machine.unit.read(Reg.IQT, 8) == 0x20
    machine.unit.write(Reg.IQT, 8, 0x30)
    assert machine.unit.read(Reg.IQH, 8) == 0
    machine.unit.write(Reg.IQT, 8, 0)
    assert machine.command(Command.QIE) & Status.QIES
    machine.tail = 0
    machine.submit_and_wait(GOOD)


def test_tail_already_written_is_acted_on_when_the_queue_is_enabled(rig: Any) -> None:
    machine = rig()
    machine.unit.write(Reg.IQA, 8, machine.queue)
    machine.submit(GOOD)
    assert machine.listener.calls == []
    machine.command(Command.QIE)
    assert machine.listener.calls == [("iotlb", 1, 0, 0, 0)]


def test_qemu_disables_only_behind_a_wait(rig: Any) -> None:
    machine = running(rig, quirks="qemu")
    assert machine.command(Command.QIE, False) & Status.QIES
    machine.submit(GOOD)
    assert machine.command(Command.QIE, False) & Status.QIES
    machine.submit_and_wait(GOOD)
    assert not machine.command(Command.QIE, False) & Status.QIES


def test_iqa_write_guard(rig: Any) -> None:
    """Base and size are latched with QIE: a later write moves nothing."""
    machine = running(rig)
    machine.unit.write(Reg.IQA, 8, 0x8000_0007)
    machine.submit_and_wait(GOOD)


def test_iqa_reads_as_written_or_in_qemu_as_latched(rig: Any) -> None:
    for quirks, before in (("spec", 0x10003), ("qemu", 0x3)):
        machine = rig(quirks=quirks)
        machine.unit.write(Reg.IQA, 4, 0x10003)
        machine.unit.write(Reg.IQA + 4, 4, 0)
        assert machine.unit.read(Reg.IQA, 8) == before
        machine.command(Command.QIE)
        assert machine.unit.read(Reg.IQA, 8) == 0x10003
        assert machine.unit.read(Reg.IQA, 8) & ~Iqa.WRITABLE == 0


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_registers_are_not_looked_at_while_the_queue_is_on(rig: Any, quirks: str) -> None:
    machine = running(rig, quirks=quirks)
    machine.unit.write(Reg.CCMD, 8, 1 << 63 | 1 << 61)
    machine.unit.write(Reg.IOTLB, 8, 1 << 63 | 1 << 60)
    assert machine.unit.read(Reg.CCMD, 8) >> 63 and machine.unit.read(Reg.IOTLB, 8) >> 63
    assert machine.listener.calls == []


def test_listener_may_ring_the_tail_again(rig: Any) -> None:
    """What is queued on the way is carried out by the same run, once."""
    machine = running(rig)
    late = ContextCacheInvalidate(1).encode()

    def ring(*args: int) -> None:
        machine.submit(late)

    machine.listener.iotlb_invalidated = ring
    machine.submit(GOOD)
    assert machine.listener.calls == [("context", 1, 0, 0, 0)]
    assert head(machine) == 2


def test_nothing_is_fetched_behind_a_listener_that_fails(rig: Any) -> None:
    """Its exception is the owner's affair; the queue can run again."""
    machine = running(rig)

    def fail(*args: int) -> None:
        raise OSError("the map below failed")

    heard, machine.listener.iotlb_invalidated = machine.listener.iotlb_invalidated, fail
    with pytest.raises(OSError, match="below"):
        machine.submit(GOOD)
    assert head(machine) == 0
    machine.listener.iotlb_invalidated = heard
    machine.unit.write(Reg.IQT, 8, 0x10)
    assert head(machine) == 1
