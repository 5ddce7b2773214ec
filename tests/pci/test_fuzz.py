"""Messages of any content: nothing raises, and memory changes only where the IOMMU allows it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.devices.bench import Bench
from tests.pci.fabric import DEVICE, LINK, Fabric
from tests.pci.tree import BARS, BRIDGE_WINDOW, Tree, bridge, switch
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.vtd import Access

ALLOWED_PAGE = 3
REQUESTERS = (DEVICE, DEVICE, DEVICE, DEVICE + 1, pci.bdf(2, 0, 0), 0, 0xFFFF)


def address(rng: random.Random) -> int:
    foreign = [0, 0x1000, 0xFEE0_0000, 0xFEF0_0000, 0xC010_0000, 1 << 32, (1 << 64) - 4096]
    near = rng.choice([ALLOWED_PAGE << 12, rng.choice(foreign)])
    return (near + rng.choice([0, 4, 8, 0xFFC, 0xFF8, rng.getrandbits(12)])) % (1 << 64)


def upstream(rng: random.Random) -> Any:
    """A message within the bounds of the link's schema."""
    requester, tag, at = rng.choice(REQUESTERS), rng.getrandbits(10), rng.choice([0, 0, 0, 1, 2, 3, 255])
    first, last = rng.choice([15, rng.getrandbits(4)]), rng.choice([0, 15, rng.getrandbits(4)])
    data = rng.randbytes(rng.choice([0, 4, 4, 8, 16, 128, 4096, rng.randrange(4097)]))
    match rng.randrange(6):
        case 0:
            return tlp.MemRead(requester, tag, at, address(rng), rng.choice([1, 2, 1024, 0, 2000]), first, last)
        case 1 | 2:
            return tlp.MemWrite(requester, at, address(rng), first, last, data)
        case 3:
            return tlp.Atomic(requester, tag, at, rng.choice([0, 1, 2, 3, 200]), address(rng), data[:32])
        case 4:
            bus, devfn = rng.getrandbits(3), rng.choice([0, 8, rng.getrandbits(8)])
            return tlp.ConfigRequest(requester, tag, bus, devfn, rng.getrandbits(12), data[:4])
        case _:
            return tlp.Completion(rng.choice([0, 1, tag]), rng.choice([0, 1, 200]), rng.randrange(4097), data)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("acs", [True, False])
def test_the_root_complex_takes_anything(seed: int, acs: bool) -> None:
    rng = random.Random(seed)
    fabric = Fabric(acs, max_payload=rng.choice([128, 4096]))
    fabric.table = {(DEVICE, ALLOWED_PAGE): (ALLOWED_PAGE, Access.BOTH)}
    before = bytes(fabric.ram)
    for _ in range(2000):
        if rng.random() < 0.05:
            fabric.root.mmio_read(0xC000_0000, 4, lambda _: None)
        fabric.root.receive(LINK, upstream(rng))
    page = slice(ALLOWED_PAGE << 12, ALLOWED_PAGE + 1 << 12)
    assert fabric.ram[page] != before[page]
    fabric.ram[page] = before[page]
    assert fabric.ram == before
    assert all(target & 3 == 0 for _, target, _ in fabric.interrupts)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("make", [switch, bridge])
def test_what_stands_in_a_slot_takes_anything(seed: int, make: Callable[[], Tree]) -> None:
    """Memory stays as it is, whoever sends: the table lets nobody through. Peers answer or time out, in any order."""
    rng = random.Random(seed)
    tree = make()
    tree.table = {}
    before = bytes(tree.ram)
    links = list(tree.sent)
    done: list[int] = []
    for _ in range(2000):
        link = rng.choice(links)
        message = upstream(rng)
        if rng.random() < 0.5 and hasattr(message, "address"):
            message = message._replace(address=rng.choice([*BARS, BRIDGE_WINDOW]) + rng.choice([0, 4, 8, 0x1000]))
        tree.root.receive(link, message)
        if rng.random() < 0.1:
            tree.root.mmio_read(rng.choice([*BARS, BRIDGE_WINDOW]), 4, done.append)
        if rng.random() < 0.1 and (waiting := tree.root.outstanding):
            tree.root.expire(*rng.choice(waiting))
        if rng.random() < 0.01:
            tree.root.ports[link].hot_reset()
    for link in links:
        tree.root.detach(link)
    assert tree.root.outstanding == [] and tree.ram == before
    answers = sum(isinstance(each, tlp.Completion) for sent in tree.sent.values() for each in sent)
    assert answers and done


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("model", ["edu", "nic"])
def test_an_endpoint_takes_anything(seed: int, model: str) -> None:
    rng = random.Random(seed)
    bench = Bench()
    made: dict[str, Endpoint] = {"edu": Edu(bench.send), "nic": Nic(bench.send, mac=bytes(6))}
    bench.endpoint = made[model]
    bench.enable()
    for _ in range(2000):
        offset = rng.choice([rng.getrandbits(12), rng.getrandbits(7) & ~3, 0x04, 0x60])
        place = 0xC000_0000 + rng.choice([rng.getrandbits(21), rng.getrandbits(8) & ~7])
        message = rng.choice(
            [
                tlp.MmioRead(1, place, rng.randrange(1, 9)),
                tlp.MmioWrite(place, rng.randbytes(rng.choice([1, 2, 3, 4, 8]))),
                tlp.CfgRead(2, 5, rng.getrandbits(8), offset, rng.randrange(1, 5)),
                tlp.CfgWrite(3, 5, rng.choice([0, 0, 1]), offset, rng.randbytes(rng.randrange(1, 5))),
                tlp.Completion(rng.getrandbits(5), rng.choice([0, 0, 1, 99]), rng.choice([4, 16]), rng.randbytes(16)),
                tlp.HotReset(0) if rng.random() < 0.02 else tlp.MmioRead(1, place, 4),
            ]
        )
        bench.endpoint.receive(message)
        if rng.random() < 0.02:
            bench.enable()
        if rng.random() < 0.2:
            bench.take()
    assert all(len(it.data) <= 4096 for it in bench.sent if isinstance(it, tlp.MemWrite))
