"""The driver's end of a split virtqueue, against the standard's layout by numbers of the test's own."""

from __future__ import annotations

import struct
from collections import deque
from errno import EIO

import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, data, integers, lists, sampled_from

from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.virtio.virtqueue import Places, Virtqueue

BASE = 0x1000


class Device:
    """The other end: what it has seen of the available ring, and in what order it uses that is the test's to say."""

    def __init__(self, size: int) -> None:
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(bytearray(0x4000)))])
        self.places = Places.at(BASE, size)
        self.seen = self.used = 0
        #: heads that it has
        self.has: deque[int] = deque()

    def u16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def look(self) -> None:
        while self.u16(self.places.available + 2) != self.seen:
            self.has.append(self.u16(self.places.available + 4 + 2 * (self.seen % self.places.size)))
            self.seen = self.seen + 1 & 0xFFFF

    def descriptor(self, head: int) -> tuple[int, int, int, int]:
        address, length, flags, following = struct.unpack(
            "<QIHH", self.memory.read(self.places.descriptors + 16 * head, 16)
        )
        return address, length, flags, following

    def use(self, head: int, length: int) -> None:
        entry = self.places.used + 4 + 8 * (self.used % self.places.size)
        self.memory.write(entry, struct.pack("<II", head, length))
        self.used = self.used + 1 & 0xFFFF
        self.memory.write(self.places.used + 2, self.used.to_bytes(2, "little"))


@pytest.mark.parametrize("size", [1, 2, 16, 128])
def test_the_parts_are_aligned_do_not_overlap_and_fit_a_page(size: int) -> None:
    places = Places.at(BASE, size)
    assert places.descriptors % 16 == places.available % 2 == places.used % 4 == 0
    assert places.available >= places.descriptors + 16 * size
    assert places.used >= places.available + 4 + 2 * size
    assert places.end == places.used + 4 + 8 * size <= BASE + 4096


@settings(max_examples=80, deadline=None)
@given(data(), sampled_from([1, 2, 8]), lists(sampled_from(["post", "publish", "use", "take"]), max_size=120))
def test_each_buffer_comes_back_once_with_its_token_in_whatever_order(data, size, steps) -> None:  # type: ignore[no-untyped-def]
    device = Device(size)
    queue: Virtqueue[int] = Virtqueue(device.memory, BASE, size, interrupts=True)
    out: dict[int, tuple[int, int, bool]] = {}
    expected: deque[tuple[int, int]] = deque()
    number = untold = 0
    for step in steps:
        if step == "post" and queue.room:
            number += 1
            out[number] = number * 0x1000, data.draw(integers(1, 4096)), data.draw(booleans())
            address, length, writable = out[number]
            queue.post(address, length, number, writable=writable)
            untold += 1
        elif step == "publish":
            queue.publish()
            untold = 0
            device.look()
        elif step == "use" and device.has:
            head = data.draw(sampled_from(sorted(device.has)))
            device.has.remove(head)
            address, length, flags, _ = device.descriptor(head)
            token = address // 0x1000
            assert out[token] == (address, length, flags == 2) and flags in (0, 2)
            written = data.draw(integers(0, length)) if flags == 2 else 0
            device.use(head, written)
            expected.append((token, written))
        elif step == "take":
            taken = queue.take()
            assert taken == (expected.popleft() if expected else None)
            if taken is not None:
                del out[taken[0]]
        assert (queue.out, queue.room, queue.untold) == (len(out), size - len(out), untold)
    assert sorted(queue.reset()) == sorted(out) and queue.room == size and not queue.untold


def test_the_indices_go_round() -> None:
    device = Device(4)
    queue: Virtqueue[int] = Virtqueue(device.memory, BASE, 4, interrupts=False)
    for number in range(0x1_0008):
        queue.post(0x1000, 64, number, writable=True)
        queue.publish()
        device.look()
        device.use(device.has.popleft(), 60)
        assert queue.take() == (number, 60)
    assert device.u16(device.places.available + 2) == 8 and queue.take() is None


@pytest.mark.parametrize(
    ("index", "head", "length", "why"),
    [
        (2, 0, 0, "has used 2 buffers of 1"),
        (0xFFFF, 0, 0, "has used 65535 buffers of 1"),
        (1, 1, 0, "descriptor 1, which it does not have"),
        (1, 0xFFFF_FFFF, 0, "which it does not have"),
        (1, 0, 65, "65 bytes into a buffer for 64"),
    ],
)
def test_a_used_ring_that_cannot_be_true_is_an_error_and_takes_nothing(
    index: int, head: int, length: int, why: str
) -> None:
    device = Device(4)
    queue: Virtqueue[str] = Virtqueue(device.memory, BASE, 4, interrupts=True)
    queue.post(0x2000, 64, "buffer", writable=True)
    queue.publish()
    queue.post(0x3000, 64, "untold", writable=True)
    device.memory.write(device.places.used + 2, struct.pack("<HII", index, head, length))
    for _ in range(2):
        with pytest.raises(OSError, match=why) as raised:
            queue.take()
        assert raised.value.errno == EIO
    assert queue.reset() == ["buffer", "untold"]


def test_a_buffer_for_reading_cannot_have_been_written() -> None:
    device = Device(4)
    queue: Virtqueue[str] = Virtqueue(device.memory, BASE, 4, interrupts=True)
    queue.post(0x2000, 64, "buffer", writable=False)
    queue.publish()
    device.look()
    device.use(device.has.popleft(), 1)
    with pytest.raises(OSError, match="1 bytes into a buffer for 0"):
        queue.take()


@pytest.mark.parametrize(("interrupts", "flags"), [(True, 0), (False, 1)])
def test_the_driver_says_whether_it_wants_interrupts_and_hears_whether_to_notify(interrupts: bool, flags: int) -> None:
    device = Device(4)
    queue: Virtqueue[None] = Virtqueue(device.memory, BASE, 4, interrupts=interrupts)
    for _ in range(2):
        assert device.u16(device.places.available) == flags
        assert queue.wants_notification
        device.memory.write(device.places.used, b"\1\0")
        assert not queue.wants_notification
        queue.reset()
