"""Interrupts that wait for the CPU: they coalesce, a storm is held to its rate, and its last one is never lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.apic import BURST, RATE, PendingInterrupts

STORM, HONEST = 0x41, 0x42


class Cpu:
    """Takes what it may at a time that stands still by itself."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self.now = 1000.0
        self.counters: Counter[str] = Counter()
        self.pending = PendingInterrupts(lambda: self.now, self.counters, rate, burst)
        self.taken: Counter[int] = Counter()

    def take(self) -> None:
        while (vector := self.pending.take()) is not None:
            self.taken[vector] += 1


@pytest.fixture
def cpu() -> Cpu:
    return Cpu()


def test_a_storm_gets_its_burst_and_then_its_rate(cpu: Cpu) -> None:
    for _ in range(3 * BURST):
        cpu.pending.raise_by_device(STORM)
        cpu.take()
    assert cpu.taken[STORM] == BURST
    assert cpu.counters == {"interrupts_throttled": 1, "interrupts_coalesced": 2 * BURST - 1}
    for _ in range(100):
        cpu.now += 0.001
        for _ in range(50):
            cpu.pending.raise_by_device(STORM)
            cpu.take()
    assert cpu.taken[STORM] == pytest.approx(BURST + 0.1 * RATE, abs=100)


def test_the_last_of_a_storm_comes_when_its_turn_does(cpu: Cpu) -> None:
    for _ in range(BURST + 1):
        cpu.pending.raise_by_device(STORM)
        cpu.take()
    due = cpu.pending.due
    assert due is not None and 0 < due <= 1 / RATE
    cpu.now += due + 1e-6
    assert cpu.pending.due == 0
    cpu.take()
    assert cpu.taken[STORM] == BURST + 1
    assert cpu.pending.due is None


def test_another_vector_does_not_wait_for_it_and_neither_does_the_machines_own(cpu: Cpu) -> None:
    for _ in range(2 * BURST):
        cpu.pending.raise_by_device(STORM)
        cpu.take()
    assert cpu.pending.raise_by_device(HONEST)
    cpu.take()
    assert cpu.taken[HONEST] == 1
    for _ in range(2 * BURST):
        assert cpu.pending.raise_by_machine(HONEST)
        cpu.take()
    assert cpu.taken[HONEST] == 1 + 2 * BURST


_EVENTS = st.lists(st.one_of(st.sampled_from([STORM, HONEST, 0x43]), st.floats(0, 0.01)), min_size=1, max_size=100)


@given(events=_EVENTS, own=st.sets(st.sampled_from([HONEST, 0x43])))
def test_each_interrupt_is_taken_or_coalesced_with_one_that_is_taken_after_it(
    events: list[int | float], own: set[int]
) -> None:
    cpu, raised = Cpu(rate=1000, burst=3), 0
    order: list[int] = []
    for event in events:
        if isinstance(event, float):
            cpu.now += event
            cpu.take()
            continue
        raised += 1
        order.append(event)
        (cpu.pending.raise_by_machine if event in own else cpu.pending.raise_by_device)(event)
    while (due := cpu.pending.due) is not None:
        cpu.now += due + 1e-6
        cpu.take()
    cpu.take()
    assert sum(cpu.taken.values()) + cpu.counters["interrupts_coalesced"] == raised
    assert set(cpu.taken) == set(order)
