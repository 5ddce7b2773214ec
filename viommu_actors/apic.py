"""The local APIC of a machine's one CPU: which interrupts it takes.

Intel SDM volume 3, sections 11.6.2 (destinations) and 11.11 (message signalled interrupts).
"""

from __future__ import annotations

from viommu_actors.spec.vtd_interrupts import DeliveryMode, Interrupt

#: The only CPU: its APIC ID, and its bit in a flat logical destination.
APIC_ID = 0
LOGICAL_ID = 1 << APIC_ID
_BROADCAST = (0xFF, 0xFFFF_FFFF)
#: Vectors 0 to 15 are illegal (section 11.5.2).
_FIRST_LEGAL = 16


def accepted(interrupt: Interrupt) -> int | None:
    """The vector that the CPU takes; None for an interrupt of another CPU, an illegal vector, or no fixed one.

    SMI, NMI, INIT and ExtINT are not modelled: no kernel here asks for them, and a forged one is lost.
    """
    if interrupt.delivery_mode not in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
        return None
    if interrupt.destination not in _BROADCAST:
        mine = interrupt.destination & LOGICAL_ID if interrupt.logical else interrupt.destination == APIC_ID
        if not mine:
            return None
    return interrupt.vector if interrupt.vector >= _FIRST_LEGAL else None
