"""The host's CPU: interrupts that are pending coalesce by vector."""

from __future__ import annotations

from typing import Any

from viommu_actors.actors.host import HostMachine
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec.vtd_interrupts import INTERRUPT_BASE, Interrupt


def test_a_vector_that_is_pending_is_pending_once() -> None:
    nothing: Any = None
    machine = HostMachine(PhysicalMemory(), nothing, nothing, nothing, lambda _: None)
    taken: list[int] = []
    machine.set_interrupt_handler(taken.append)
    for _ in range(1000):
        for vector in (0x41, 0x40):
            machine.deliver(Interrupt.of_message(INTERRUPT_BASE, vector))
    machine.take_interrupts()
    assert taken == [0x41, 0x40]
    assert machine.delivered == {0x41: 1, 0x40: 1}
    machine.deliver(Interrupt.of_message(INTERRUPT_BASE, 0x41))
    assert machine.wait_for_interrupt(0) and taken == [0x41, 0x40, 0x41]


def test_a_vector_that_comes_while_it_is_handled_comes_again() -> None:
    nothing: Any = None
    machine = HostMachine(PhysicalMemory(), nothing, nothing, nothing, lambda _: None)
    taken: list[int] = []

    def handler(vector: int) -> None:
        taken.append(vector)
        if len(taken) == 1:
            machine.deliver(Interrupt.of_message(INTERRUPT_BASE, vector))

    machine.set_interrupt_handler(handler)
    machine.deliver(Interrupt.of_message(INTERRUPT_BASE, 0x41))
    machine.take_interrupts()
    assert taken == [0x41, 0x41]
