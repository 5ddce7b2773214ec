"""Each kind of buffer that is offered to a device, and what the device can do with it, on a host in one process."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.devices.rig import Rig
from viommu_actors.attacks.guard import Guard
from viommu_actors.attacks.offers import Offer, Offers
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.rogue import Rogue, StepResult, parse_plan

NIC, PAGE = 1, 4096
TRANSLATED, PHYSICAL = "intel_iommu=on", ""
#: (what the device may do with the buffer's first bytes: read, write) by kind, where its kernel translates
ALLOWED = {
    "read only": (True, False),
    "write only": (False, True),
    "both ways": (True, True),
    "unmapped": (False, False),
    "reused": (True, False),
    "small": (True, True),
    "last of a range": (True, True),
    "among others": (True, True),
}


class Scene:
    """A nic that its kernel drives, and whose firmware is hostile."""

    def __init__(self, cmdline: str) -> None:
        self.rig = Rig({NIC: lambda send, log: Nic(send, log, mac=bytes([2, 0, 0, 0, 0, 1]))}, cmdline)
        self.guard = Guard(self.rig.kernel, random.Random(1).randbytes)
        self.offers = Offers(self.rig.kernel, self.guard)
        self.bdf = self.rig.bdf(NIC)
        self._rogue = Rogue(self.rig.endpoints[NIC])

    def offer(self, kind: str, **options: Any) -> Offer:
        return self.offers.offer(self.bdf, kind, **options)

    def reads(self, address: int) -> bool:
        return self._play({"do": "read", "address": address, "length": 8}).status == "completed"

    def writes(self, address: int) -> bool:
        """Whether the memory of the guarded page changed; it is mended."""
        before = self.guard.digest()
        self._play({"do": "write", "address": address, "data": b"\xde\xad\xbe\xef"})
        return self.guard.digest() != before

    def _play(self, step: dict[str, Any]) -> StepResult:
        results: list[StepResult] = []
        self._rogue.play(parse_plan([step]), results.extend)
        self.rig.pump()
        return results[0]


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_a_device_may_do_with_each_kind(kind: str) -> None:
    scene = Scene(TRANSLATED)
    may_read, may_write = ALLOWED[kind]
    offer = scene.offer(kind)
    assert scene.reads(offer.iova) is may_read
    # Of these the pages around it are guarded, and the device's own is not.
    assert scene.writes(offer.iova) is (may_write and kind not in ("last of a range", "among others"))


@pytest.mark.parametrize("kind", ALLOWED)
def test_without_translation_every_kind_is_open(kind: str) -> None:
    scene = Scene(PHYSICAL)
    offer = scene.offer(kind)
    beyond = PAGE if kind in ("last of a range", "among others") else 0
    assert scene.reads(offer.iova + beyond) and scene.writes(offer.iova + beyond)


def test_behind_the_last_page_of_a_range_nothing_is_mapped() -> None:
    scene = Scene(TRANSLATED)
    offer = scene.offer("last of a range")
    assert not scene.reads(offer.iova + PAGE) and not scene.writes(offer.iova + PAGE)


def test_the_rest_of_the_page_of_a_small_buffer_is_open() -> None:
    scene = Scene(TRANSLATED)
    offer = scene.offer("small")
    assert scene.reads(offer.iova + 2048) and scene.writes(offer.iova + 2048)


def test_what_is_taken_back_is_gone_and_has_fresh_content() -> None:
    scene = Scene(TRANSLATED)
    offer = scene.offer("both ways")
    before = scene.guard.digest()
    scene.offers.take_back()
    assert scene.guard.digest() != before
    assert not scene.reads(offer.iova) and not scene.writes(offer.iova)


def test_a_cleared_entry_goes_on_translating_while_it_is_cached() -> None:
    scene = Scene(TRANSLATED)
    offer = scene.offer("both ways")
    assert scene.reads(offer.iova)
    scene.offers.clear_entry(scene.bdf, offer.iova)
    assert scene.reads(offer.iova)
    scene.offers.end()
    assert not scene.reads(offer.iova)
    fresh = scene.offer("both ways")
    scene.offers.clear_entry(scene.bdf, fresh.iova)
    assert not scene.reads(fresh.iova)


def test_an_offer_keeps_clear_of_what_is_to_be_avoided() -> None:
    scene = Scene(TRANSLATED)
    first = scene.offer("both ways").iova
    assert scene.offer("both ways", avoid=[(first - PAGE, 2 * PAGE)]).iova not in (first, first - PAGE)
    with pytest.raises(OSError, match="to be avoided"):
        scene.offer("both ways", avoid=[(0, 1 << 64)])


@pytest.mark.parametrize("cmdline", [TRANSLATED, PHYSICAL])
def test_all_of_an_offer_is_taken_back(cmdline: str) -> None:
    scene = Scene(cmdline)
    kernel = scene.rig.kernel
    before = kernel.pages.free_pages, kernel.live_buffers
    for kind in ALLOWED:
        scene.offer(kind)
    scene.offers.end()
    assert (kernel.pages.free_pages, kernel.live_buffers) == before


def test_bytes_that_are_expected_to_change_are_what_must_stand() -> None:
    scene = Scene(TRANSLATED)
    offer = scene.offer("both ways")
    expected = scene.guard.expect([(5, 3)], b"\xde\xad\xbe\xef")
    assert scene.guard.digest() != expected
    scene._play({"do": "write", "address": offer.iova + 5, "data": b"\xde\xad\xbe"})
    assert scene.guard.digest() == expected


def test_another_kind_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Scene(TRANSLATED).offer("forever")
