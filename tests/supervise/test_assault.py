"""Which record of a fault stands for an attack, and for how many."""

from __future__ import annotations

from typing import Any

from viommu_actors.pci.watch import Aim
from viommu_actors.supervise.assault import fault_of
from viommu_actors.supervise.stage import Mission

MISSION = Mission(steps=[], aims=[Aim(0x5000, 0x6000, 0x1000)], keeps=(), before="")


def record(source: str, place: int) -> dict[str, Any]:
    return {"source": source, "place": f"{place:#x}", "interrupt": False, "write": True, "reason": 5, "text": "t"}


def test_a_fault_counts_the_records_of_its_own_source() -> None:
    others = [record("02:00.0", 0x5000), record("02:00.0", 0x6000)]
    own = [record("01:00.0", 0x9000), record("01:00.0", 0x6000)]
    fault = fault_of("01:00.0", {"records": [*others, *own], "lost": 0}, MISSION)
    assert fault is not None and (fault.source, fault.address, fault.count) == ("01:00.0", "0x6000", 2)


def test_others_records_and_other_addresses_are_of_no_attack() -> None:
    faults = {"records": [record("02:00.0", 0x5000), record("01:00.0", 0x9000)], "lost": 3}
    assert fault_of("01:00.0", faults, MISSION) is None
