"""Which answer is whose, and the way of a request through the actors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.measure.requests import flows, requests
from viommu_actors.measure.trace import Crossing


def crossing(wire: str, kind: str, way: str, sent: int, received: int) -> Crossing:
    sender, receiver = way.split(" ")
    return Crossing(wire, kind, sender, receiver, sent, received)


def ways(messages: list[Crossing]) -> list[str]:
    messages = sorted(messages, key=lambda each: each.sent)
    return [" ".join(step.actor for step in way) for way in flows(messages, requests(messages))]


def test_several_that_wait_on_one_wire_are_answered_in_their_order_each_in_its_turn() -> None:
    first, second = requests(
        [
            crossing("vfio:h", "MapDma", "h host", 0, 5),
            crossing("vfio:h", "UnmapDma", "h host", 1, 6),
            crossing("vfio:h", "Done", "host h", 10, 20),
            crossing("vfio:h", "Done", "host h", 30, 40),
        ]
    )
    assert (first.ask.kind, first.asked, first.served, first.answer.received) == ("MapDma", 0, 5, 20)
    assert (second.ask.kind, second.asked, second.served, second.answer.received) == ("UnmapDma", 20, 10, 40)


def test_reads_that_are_not_answered_one_by_one_are_left_out() -> None:
    reads = [crossing("link:nic0", "MemRead", "nic0 host", at, at + 1) for at in (0, 2)]
    halves = [crossing("link:nic0", "Completion", "host nic0", at, at + 1) for at in (4, 6, 8)]
    assert requests([*reads, *halves]) == []
    assert len(requests([*reads, *halves[:2]])) == 2


def test_both_sides_of_a_link_ask() -> None:
    found = requests(
        [
            crossing("link:nic0", "MemRead", "nic0 host", 0, 1),
            crossing("link:nic0", "CfgRead", "host nic0", 0, 1),
            crossing("link:nic0", "Completion", "host nic0", 2, 3),
            crossing("link:nic0", "Completion", "nic0 host", 2, 4),
        ]
    )
    assert [(each.ask.kind, each.answer.sender, each.waits) for each in found] == [
        ("MemRead", "host", False),
        ("CfgRead", "nic0", False),
    ]


def test_a_read_of_a_register_goes_to_the_device_and_back_and_what_the_host_does_meanwhile_is_not_its() -> None:
    direct = [
        crossing("direct:g", "DirectRead", "g host", 0, 10),
        crossing("link:nic0", "MmioRead", "host nic0", 12, 20),
        crossing("link:nic0", "Completion", "nic0 host", 40, 50),
        crossing("direct:g", "DirectValue", "host g", 52, 60),
    ]
    meanwhile = [
        crossing("link:nic0", "MemWrite", "nic0 host", 22, 30),
        crossing("inject:g", "Inject", "host g", 32, 38),
    ]
    assert ways(direct) == ["g host host nic0 host g"]
    assert sorted(ways(direct + meanwhile)) == ["g host host nic0 host g", "nic0 host host g"]


def test_a_doorbell_goes_on_to_the_device_once_and_ends_there() -> None:
    assert ways(
        [
            crossing("direct:g", "DirectWrite", "g host", 0, 10),
            crossing("link:nic0", "MmioWrite", "host nic0", 12, 20),
            crossing("link:nic0", "MmioWrite", "host nic0", 13, 21),
            crossing("link:nic0", "MemWrite", "nic0 host", 23, 30),
        ]
    ) == ["g host host nic0", "host nic0", "nic0 host"]


@given(st.lists(st.integers(1, 1000), min_size=16, max_size=160))
def test_a_trap_of_a_deeper_guest_climbs_down_the_tower_and_up_again_whatever_the_times(steps: list[int]) -> None:
    """L2's trap has its hypervisor call L1's kernel, which traps in turn."""
    at, times = 0, []
    for step in steps[: len(steps) // 12 * 12]:
        at += step
        times.append(at)
    messages = []
    for t in range(0, len(times), 12):
        a = times[t : t + 12]
        messages += [
            crossing("trap:g2", "TrapWrite", "g2 h2", a[0], a[1]),
            crossing("vfio:h2", "MapDma", "h2 g1", a[2], a[3]),
            crossing("trap:g1", "TrapWrite", "g1 h1", a[4], a[5]),
            crossing("trap:g1", "TrapDone", "h1 g1", a[6], a[7]),
            crossing("vfio:h2", "Done", "g1 h2", a[8], a[9]),
            crossing("trap:g2", "TrapDone", "h2 g2", a[10], a[11]),
        ]
    assert ways(messages) == ["g2 h2 h2 g1 g1 h1 g1 h2 g2"] * (len(times) // 12)
