"""Messages of a chain to hops that add up."""

from __future__ import annotations

from viommu_actors.measure.hops import by_level, role, split, within
from viommu_actors.measure.trace import Crossing

GUEST, HYPERVISOR, HOST, DEVICE = "vm0.guest", "vm0.hypervisor", "host", "nic0"


def trap(at: int) -> list[Crossing]:
    """Guest, hypervisor, host and back: 10 on each way, work of 3, 5 and 7."""
    return [
        Crossing("trap:vm0.guest", "TrapWrite", GUEST, HYPERVISOR, at, at + 10),
        Crossing("vfio:vm0.hypervisor", "MapDma", HYPERVISOR, HOST, at + 13, at + 23),
        Crossing("vfio:vm0.hypervisor", "Done", HOST, HYPERVISOR, at + 28, at + 38),
        Crossing("trap:vm0.guest", "TrapDone", HYPERVISOR, GUEST, at + 45, at + 55),
    ]


def test_a_chain_is_split_into_work_and_ways() -> None:
    operations = split([*trap(100), *trap(200)], GUEST, "TrapWrite", "TrapDone")
    assert (
        operations
        == [
            [
                ("wire guest to hypervisor", 10),
                ("hypervisor work", 3),
                ("wire hypervisor to host", 10),
                ("host work", 5),
                ("wire host to hypervisor", 10),
                ("hypervisor work", 7),
                ("wire hypervisor to guest", 10),
            ]
        ]
        * 2
    )


def test_hops_add_up_to_the_whole() -> None:
    operations = split([*trap(0), *trap(100)], GUEST, "TrapWrite", "TrapDone")
    wholes = [70, 61]
    for hops, whole in zip(within(operations, wholes, "guest"), wholes, strict=True):
        assert hops[0] == ("guest work", whole - 55)
        assert sum(nanoseconds for _, nanoseconds in hops) == whole


def test_a_message_beside_the_chain_changes_no_sum() -> None:
    beside = [
        Crossing("inject:vm0.guest", "Inject", HOST, GUEST, 11, 12),
        Crossing("link:nic0", "MmioWrite", HOST, DEVICE, 2, 9),
    ]
    messages = sorted([*trap(0), *beside], key=lambda each: each.sent)
    (hops,) = split(messages, GUEST, "TrapWrite", "TrapDone")
    assert sum(nanoseconds for _, nanoseconds in hops) == 55


def test_what_begins_anew_begins_at_its_own_first_message() -> None:
    lost = Crossing("trap:vm0.guest", "TrapWrite", GUEST, HYPERVISOR, 1, 2)
    operations = split([lost, *trap(50)], GUEST, "TrapWrite", "TrapDone")
    assert [sum(nanoseconds for _, nanoseconds in hops) for hops in operations] == [55]


def test_a_posted_message_is_a_chain_of_one() -> None:
    write = Crossing("link:nic0", "MemWrite", DEVICE, HOST, 5, 25)
    assert split([write], DEVICE, "MemWrite", "MemWrite") == [[("wire device to host", 20)]]


def test_roles() -> None:
    assert [role(name) for name in (GUEST, HYPERVISOR, HOST, DEVICE)] == ["guest", "hypervisor", "host", "device"]


def test_a_vm_in_a_vm_is_told_from_the_one_around_it_and_its_trap_from_the_traps_within() -> None:
    inner = [
        Crossing("trap:vm1.guest", "TrapWrite", "vm1.guest", "vm1.hypervisor", 0, 1),
        Crossing("vfio:vm1.hypervisor", "MapDma", "vm1.hypervisor", GUEST, 3, 6),
        *trap(10),
        Crossing("vfio:vm1.hypervisor", "Done", GUEST, "vm1.hypervisor", 70, 80),
        Crossing("trap:vm1.guest", "TrapDone", "vm1.hypervisor", "vm1.guest", 90, 100),
    ]
    (hops,) = split(inner, "vm1.guest", "TrapWrite", "TrapDone", by_level(["vm0", "vm1"], True))
    assert [name for name, _ in hops[:5]] == [
        "wire L2 guest to L2 hypervisor",
        "L2 hypervisor work",
        "wire L2 hypervisor to L1 guest",
        "L1 guest work",
        "wire L1 guest to L1 hypervisor",
    ]
    assert sum(nanoseconds for _, nanoseconds in hops) == 100
    assert by_level(["vm0"], False)(GUEST) == "guest" and by_level(["vm0"], True)(GUEST) == "L1 guest"
    assert by_level(["vm0", "vm1"], True)("host") == "host"
