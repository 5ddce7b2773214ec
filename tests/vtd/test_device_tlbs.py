"""Invalidation of device-TLBs: what waits for devices, what they may answer, and what becomes of those that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vtd.conftest import DEVICE, OTHER, Rig
from viommu_actors.spec.vtd import DeviceTlbInvalidate, EventControl, Fsts, InvalidationWait, IotlbInvalidate, Iqer, Reg

IOTLB = IotlbInvalidate(1).encode()
BOTH_ERRORS = Fsts.ICE | Fsts.ITE


@pytest.fixture
def machine() -> Rig:
    return running()


def running(**options: Any) -> Rig:
    rig = Rig(devices=True, device_iotlb=True, **options)
    rig.start(queue=True)
    return rig


def flush(source: int = DEVICE, first: int = 0x5000, shift: int = 12, limit: int = 0) -> tuple[int, int]:
    return DeviceTlbInvalidate.of_range(source, first, shift, limit).encode()


def wait(rig: Rig, number: int) -> tuple[int, int]:
    return InvalidationWait(status_write=True, data=number, address=rig.status).encode()


def status(rig: Rig) -> int:
    return int.from_bytes(rig.memory.read(rig.status, 4), "little")


def answer(rig: Rig, index: int, copies: int = 1) -> bool:
    source, itag, _, _ = rig.asked[index]
    return rig.unit.invalidation_completed(source, 1 << itag, copies)


def errors(rig: Rig) -> int:
    return rig.unit.read(Reg.FSTS, 4) & BOTH_ERRORS


def test_a_wait_is_complete_once_the_device_has_answered(machine: Rig) -> None:
    machine.submit(flush(first=0x40_0000, shift=22), wait(machine, 1), IOTLB)
    assert machine.asked == [(DEVICE, 0, 0x40_0000, 22)]
    assert machine.unit.awaits_devices and status(machine) == 0
    assert machine.listener.calls[-1] != ("iotlb", 1, 0, 0, 0)
    machine.submit(wait(machine, 2))
    assert status(machine) == 0
    assert answer(machine, 0)
    assert status(machine) == 2 and not machine.unit.awaits_devices
    assert ("iotlb", 1, 0, 0, 0) in machine.listener.calls


def test_what_needs_no_device_does_not_wait(machine: Rig) -> None:
    machine.submit_and_wait(IOTLB)
    machine.submit(flush(), IOTLB)
    assert machine.listener.calls[-1] == ("iotlb", 1, 0, 0, 0)
    assert machine.unit.read(Reg.IQH, 8) == machine.tail << 4


@given(st.permutations(range(6)))
def test_whatever_the_order_of_the_answers_the_wait_is_last(order: list[int]) -> None:
    machine = running()
    machine.submit(*(flush(DEVICE + number, number << 12) for number in range(6)), wait(machine, 7))
    for done, index in enumerate(order, start=1):
        assert status(machine) == 0
        assert answer(machine, index)
        assert len(machine.unit.device_invalidations) == 6 - done
    assert status(machine) == 7 and not errors(machine)


def test_several_completions_may_belong_to_one_invalidation(machine: Rig) -> None:
    machine.submit(flush(), wait(machine, 1))
    for _ in range(7):
        assert answer(machine, 0, copies=0)
        assert status(machine) == 0
    assert answer(machine, 0, copies=0)
    assert status(machine) == 1


def test_one_completion_may_answer_several(machine: Rig) -> None:
    machine.submit(flush(), flush(), wait(machine, 1))
    assert machine.unit.invalidation_completed(DEVICE, 0b11, 1)
    assert status(machine) == 1


@pytest.mark.parametrize(
    ("source", "itags", "copies"),
    [(OTHER, 1, 1), (DEVICE, 2, 1), (DEVICE, 0, 1)],
    ids=["another device", "a tag that is free", "no tag"],
)
def test_a_completion_that_is_not_owed_is_an_error_and_completes_nothing(
    machine: Rig, source: int, itags: int, copies: int
) -> None:
    machine.submit(flush(), wait(machine, 1))
    assert not machine.unit.invalidation_completed(source, itags, copies)
    assert errors(machine) == Fsts.ICE and status(machine) == 0
    assert machine.unit.read(Reg.IQER, 8) >> Iqer.ICE_SOURCE_SHIFT == source
    machine.unit.write(Reg.FSTS, 4, Fsts.ICE)
    assert answer(machine, 0)
    assert status(machine) == 1 and not errors(machine)


def test_completions_of_one_invalidation_agree_on_their_number(machine: Rig) -> None:
    machine.submit(flush(), wait(machine, 1))
    assert answer(machine, 0, copies=2)
    assert not answer(machine, 0, copies=1)
    assert errors(machine) == Fsts.ICE and status(machine) == 0


def test_a_timeout_aborts_the_wait_and_stops_the_queue(machine: Rig) -> None:
    machine.submit(flush(), wait(machine, 1))
    (number,) = machine.unit.device_invalidations
    machine.unit.expire_device_invalidation(number)
    assert errors(machine) == Fsts.ITE
    assert machine.unit.read(Reg.IQER, 8) >> Iqer.ITE_SOURCE_SHIFT & 0xFFFF == DEVICE
    machine.submit(wait(machine, 2))
    assert status(machine) == 0
    machine.unit.write(Reg.FSTS, 4, Fsts.ITE)
    # What was behind the wait goes on; the wait itself never completes.
    assert status(machine) == 2 and not errors(machine)
    assert machine.unit.counters["waits_aborted"] == 1


def test_an_answer_after_the_timeout_is_an_error_and_meets_no_newer_invalidation(machine: Rig) -> None:
    machine.submit(flush(), wait(machine, 1))
    machine.unit.expire_device_invalidation(machine.unit.device_invalidations[0])
    machine.unit.write(Reg.FSTS, 4, Fsts.ITE)
    machine.submit(flush(), wait(machine, 2))
    assert not answer(machine, 0)
    assert errors(machine) == Fsts.ICE and status(machine) == 0
    assert answer(machine, 1)
    assert status(machine) == 2


def test_what_was_answered_does_not_time_out(machine: Rig) -> None:
    machine.submit(flush())
    (number,) = machine.unit.device_invalidations
    assert answer(machine, 0)
    machine.unit.expire_device_invalidation(number)
    assert not errors(machine)


def test_either_error_is_a_fault_event(machine: Rig) -> None:
    machine.unit.write(Reg.FEDATA, 4, 0x41)
    machine.unit.write(Reg.FEADDR, 4, 0xFEE0_0000)
    machine.unit.write(Reg.FECTL, 4, 0)
    assert not machine.unit.invalidation_completed(DEVICE, 1, 1)
    assert machine.interrupts == [(0xFEE0_0000, 0x41)]
    machine.unit.write(Reg.FSTS, 4, Fsts.ICE)
    machine.submit(flush())
    machine.unit.expire_device_invalidation(machine.unit.device_invalidations[0])
    assert machine.interrupts == [(0xFEE0_0000, 0x41)] * 2
    assert not machine.unit.read(Reg.FECTL, 4) & EventControl.IP


def test_the_queue_stands_still_while_no_tag_is_free(machine: Rig) -> None:
    machine.submit(*[flush(number) for number in range(33)], wait(machine, 1))
    assert len(machine.asked) == 32
    assert answer(machine, 5)
    assert len(machine.asked) == 33
    assert len({itag for _, itag, _, _ in machine.asked[:5] + machine.asked[6:]}) == 32
    for index in [*range(5), *range(6, 33)]:
        assert answer(machine, index)
    assert status(machine) == 1


def test_a_device_takes_as_many_at_a_time_as_its_descriptor_says(machine: Rig) -> None:
    machine.submit(flush(limit=2), flush(limit=2), flush(limit=2), flush(OTHER))
    assert len(machine.asked) == 2
    assert answer(machine, 1)
    assert [source for source, *_ in machine.asked] == [DEVICE] * 3 + [OTHER]


def test_reset_and_a_queue_switched_off_forget_what_waits(machine: Rig) -> None:
    machine.submit(flush(), wait(machine, 1))
    machine.unit.reset()
    assert not machine.unit.awaits_devices
    machine = running()
    machine.submit(flush(), wait(machine, 1))
    machine.command(1 << 26, False)
    assert answer(machine, 0)
    assert status(machine) == 0


def test_a_wait_that_cannot_write_its_status_stops_the_queue_once_it_is_complete(machine: Rig) -> None:
    machine.submit(flush(), InvalidationWait(status_write=True, data=1, address=0x8000_0000).encode())
    assert not machine.unit.read(Reg.FSTS, 4) & Fsts.IQE
    assert answer(machine, 0)
    assert machine.unit.read(Reg.FSTS, 4) & Fsts.IQE
