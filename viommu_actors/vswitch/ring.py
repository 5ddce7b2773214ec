"""The device's side of a split virtqueue in a guest's memory, reached by messages (virtio 1.2 section 2.7).

Buffers are used in the order in which they were made available. What is adjacent is read and written at once: the
entries of a burst, their descriptors, the used ring's entries; its index once a burst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Final

from viommu_actors.spec import virtio
from viommu_actors.spec.vhost import SetVring
from viommu_actors.spec.virtio import DESCRIPTOR, INDEX_MASK, RING_ENTRIES, RING_HEAD, U16, USED_ENTRY
from viommu_actors.vswitch.chain import Chain, ChainReader, RingBroken, runs
from viommu_actors.vswitch.memory import TranslatedMemory
from viommu_actors.vswitch.task import Wait

#: Buffers of one burst (OVS: NETDEV_MAX_BURST).
BURST: Final = 32
#: Looks at an empty ring until the device sleeps, and the driver is to notify it (OVS: pmd-sleep-max).
EMPTY_POLLS: Final = 16


class Ring:
    """One queue that was started. What it awaits of memory it yields; RingBroken ends it."""

    def __init__(
        self, setup: SetVring, memory: TranslatedMemory, counters: Counter[str], call: Callable[[], None]
    ) -> None:
        """`call` interrupts the driver."""
        self._setup = setup
        self._memory = memory
        self._counters = counters
        self._call = call
        #: the next to be taken, and the driver's next as last seen
        self._taken = self._available = setup.base
        #: Index of the used ring: where the next device would go on.
        self.used = setup.base
        self._flags = virtio.UsedFlag.NO_NOTIFY
        #: Buffers were used since the driver's wish for interrupts was last looked at; perhaps by a device before this
        #: one, which died before it had told the driver.
        self._owes_call = True
        self._kick: Wait | None = None

    @property
    def available(self) -> int:
        """Chains to be taken, as far as was seen."""
        return self._available - self._taken & INDEX_MASK

    @property
    def asleep(self) -> bool:
        """Whether it waits for the driver to notify."""
        return self._kick is not None

    def kick(self) -> None:
        """The driver notifies the device."""
        if self._kick is not None:
            wait, self._kick = self._kick, None
            wait.finish()

    def poll(self) -> Generator[Wait, None, int]:
        """Looks at the available ring; how many chains there are. Interrupts the driver if it is to be."""
        head = yield from self._memory.fetch(self._setup.available, RING_HEAD.size)
        if head is None:
            raise RingBroken("its available ring is not to be read")
        flags, self._available = RING_HEAD.unpack(head)
        if self.available > self._setup.size:
            raise RingBroken(f"{self.available} chains in a queue of {self._setup.size}")
        if self._owes_call:
            self._owes_call = False
            if not flags & virtio.AvailableFlag.NO_INTERRUPT:
                self._counters["calls"] += 1
                self._call()
        return self.available

    def wait(self) -> Generator[Wait, None, None]:
        """Until there are chains: polls for some time, then sleeps until the driver notifies.

        A driver that is to hear of what was used hears of it first: what is taken next may have to wait for others.
        """
        polls = 0
        while (self._owes_call or not self.available) and not (yield from self.poll()):
            self._counters["empty_polls"] += 1
            polls += 1
            if polls > EMPTY_POLLS:
                yield from self._sleep()
                polls = 0

    def want_notifications(self, wanted: bool) -> Generator[Wait, None, None]:
        """Tells the driver."""
        self._flags = virtio.UsedFlag(0) if wanted else virtio.UsedFlag.NO_NOTIFY
        yield from self._write_head()

    def take(self, limit: int = BURST) -> Generator[Wait, None, list[Chain]]:
        """The next chains, of those that are available."""
        heads = yield from self._heads(min(limit, self.available))
        table: dict[int, tuple[int, int, int, int]] = {}
        yield from self._read_descriptors(heads, table)
        chains = []
        for head in heads:
            reader = ChainReader(head, self._setup.size)
            chain = None
            while chain is None:
                if reader.index not in table:
                    yield from self._read_descriptors([reader.index], table)
                chain = reader.add(table[reader.index])
            chains.append(chain)
        return chains

    def use(self, done: Sequence[tuple[int, int]]) -> Generator[Wait, None, None]:
        """Gives chains back, oldest first: (head, bytes written). The driver hears of it at the next poll."""
        size = self._setup.size
        at = 0
        while at < len(done):
            slot = (self.used + at) % size
            part = done[at : at + size - slot]
            data = b"".join(USED_ENTRY.pack(*each) for each in part)
            yield from self._store(self._setup.used + RING_ENTRIES + slot * USED_ENTRY.size, data)
            at += len(part)
        self.used = self.used + len(done) & INDEX_MASK
        self._owes_call = True
        yield from self._write_head()

    def _sleep(self) -> Generator[Wait, None, None]:
        """Until the driver notifies; not at all where it made buffers available meanwhile (section 2.7.10)."""
        yield from self.want_notifications(True)
        if not (yield from self.poll()):
            self._kick = Wait()
            yield self._kick
        # Told to the driver with what is used next.
        self._flags = virtio.UsedFlag.NO_NOTIFY

    def _heads(self, count: int) -> Generator[Wait, None, list[int]]:
        """The next so many entries of the available ring, which are the device's from here on."""
        size = self._setup.size
        heads: list[int] = []
        while len(heads) < count:
            slot = (self._taken + len(heads)) % size
            part = min(count - len(heads), size - slot)
            data = yield from self._memory.fetch(
                self._setup.available + RING_ENTRIES + slot * U16.size, part * U16.size
            )
            if data is None:
                raise RingBroken("its available ring is not to be read")
            heads += (head for (head,) in U16.iter_unpack(data))
        self._taken = self._taken + count & INDEX_MASK
        return heads

    def _read_descriptors(
        self, indices: Sequence[int], table: dict[int, tuple[int, int, int, int]]
    ) -> Generator[Wait, None, None]:
        parts = list(runs([index for index in indices if index < self._setup.size]))
        table_at = self._setup.descriptors
        found = yield from self._memory.fetch_all(
            (table_at + first * DESCRIPTOR.size, count * DESCRIPTOR.size) for first, count in parts
        )
        for (first, _), data in zip(parts, found, strict=True):
            if data is None:
                raise RingBroken("its descriptors are not to be read")
            table.update(enumerate(DESCRIPTOR.iter_unpack(data), first))

    def _write_head(self) -> Generator[Wait, None, None]:
        """Flags and index of the used ring, which stand side by side. What was written before is there before."""
        yield from self._store(self._setup.used, RING_HEAD.pack(self._flags, self.used))

    def _store(self, iova: int, data: bytes) -> Generator[Wait, None, None]:
        if not (yield from self._memory.store(iova, data)):
            raise RingBroken("its used ring is not to be written")
