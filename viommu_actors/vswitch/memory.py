"""A back end's way to the memory of a guest: messages to its front end, which judges each.

`Memory` has the primitives, and keeps to nothing; `TranslatedMemory` accesses what the device-IOTLB gives leave for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

from viommu_actors.spec import vhost
from viommu_actors.spec.vhost import Access
from viommu_actors.spec.vtd import PAGE_MASK, PAGE_SIZE
from viommu_actors.vswitch.device_iotlb import DeviceIotlb
from viommu_actors.vswitch.task import Wait

#: Reads on the way, and pages asked for by one task; who wants more waits. The front end has room for as many answers
#: as both queues may thus have to come (`wire.zmtp.QUEUE`).
_WINDOW: Final = 32
_ADDRESS_SPACE: Final = 1 << 64
_new = tuple.__new__
#: An enum's bits are expensive to combine, and each access does.
READ, WRITE = int(Access.READ), int(Access.WRITE)

#: A page that was asked for, and the leave.
_Miss = tuple[int, int]


class Read(Wait):
    """A read of guest memory. `data` is None as long as it is not over, and where it failed."""

    __slots__ = ("data", "iova", "size")

    def __init__(self, iova: int, size: int) -> None:
        super().__init__()
        self.iova = iova
        self.size = size
        self.data: bytes | None = None


class Memory:
    """Reads, writes and misses as they are asked for."""

    def __init__(self, send: Callable[[Any], None], counters: Counter[str]) -> None:
        self._send = send
        self._counters = counters
        self._tag = 0
        #: tag -> read on the way
        self._reads: dict[int, Read] = {}
        #: who waits until fewer are
        self._turns: deque[Wait] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another read may be on the way."""
        return len(self._reads) < _WINDOW

    def turn(self) -> Wait:
        """For who wants to read and finds no room: over once there may be some. Leave may have been lost by then."""
        turn = Wait()
        self._turns.append(turn)
        return turn

    def read(self, iova: int, size: int) -> Read:
        """Of 1 to `vhost.MAX_ACCESS` bytes, at once. There is room."""
        self._counters["reads"] += 1
        # Tags go round, and there are far more of them than reads on the way: a late answer meets no newer read.
        tag = self._tag
        self._tag = (tag + 1) % vhost.MAX_TAGS
        self._reads[tag] = read = Read(iova, size)
        self._send(_new(vhost.MemoryRead, (tag, iova, size)))
        return read

    def write(self, iova: int, data: bytes) -> None:
        """Of 1 to `vhost.MAX_ACCESS` bytes, posted: nobody tells whether it arrived. In order with all else."""
        self._counters["writes"] += 1
        self._send(_new(vhost.MemoryWrite, (iova, data)))

    def miss(self, iova: int, access: int) -> None:
        """Asks for leave."""
        self._counters["iotlb_misses"] += 1
        self._send(vhost.IotlbMiss(iova, access))

    def complete(self, completion: vhost.ReadCompletion) -> None:
        """The answer to a read; one that answers none, or not as it was asked, is counted."""
        tag, status, data = completion
        read = self._reads.pop(tag, None)
        if read is None:
            self._counters["unexpected_completions"] += 1
            return
        # One that has been ended meanwhile takes no room.
        while self._turns and self.has_room:
            self._turns.popleft().finish()
        if status != vhost.ReadStatus.DONE:
            self._counters["reads_failed"] += 1
        elif len(data) != read.size:
            self._counters["unexpected_completions"] += 1
        else:
            read.data = data
        read.finish()

    def start_over(self) -> None:
        """Nothing that is on the way will be answered, and nobody waits for it any more."""
        self._reads.clear()
        self._turns.clear()


class TranslatedMemory:
    """What an honest back end does: each access only with the leave of the device-IOTLB, asked for page by page."""

    def __init__(self, memory: Memory, send: Callable[[Any], None], counters: Counter[str]) -> None:
        self.memory = memory
        self.iotlb = DeviceIotlb()
        #: Whether addresses are IOVAs (VIRTIO_F_ACCESS_PLATFORM).
        self.translated = False
        self._send = send
        self._counters = counters
        #: what is to be told of -> who waits for it; not asked twice
        self._misses: dict[_Miss, list[Wait]] = {}

    def has_leave(self, iova: int, size: int, access: int) -> bool:
        """Whether it may access this now."""
        if self.translated:
            return self.iotlb.allows(iova, size, access)
        return iova + size <= _ADDRESS_SPACE

    def leave(self, iova: int, size: int, access: int) -> Generator[Wait, None, bool]:
        """Waits until it is known whether it may access this; without end where the front end does not tell."""
        while not self.has_leave(iova, size, access):
            if iova + size > _ADDRESS_SPACE or not self.translated:
                return False
            if self.iotlb.missing(iova, size) is None:
                self._counters["access_failures"] += 1
                self._send(vhost.IotlbAccessFail(iova, size, access))
                return False
            yield from self.ask([(iova, size)], access)
        return True

    def ask(self, places: Iterable[tuple[int, int]], access: int) -> Generator[Wait, None, None]:
        """Asks at once for all pages of each (address, size) of which nothing was told, and waits for the answers."""
        if not self.translated:
            return
        waits: list[tuple[_Miss, Wait]] = []
        try:
            for iova, size in places:
                end = min(iova + size, _ADDRESS_SPACE)
                while iova < end and (missing := self.iotlb.missing(iova, end - iova)) is not None:
                    page = missing & ~PAGE_MASK
                    waits.append(((page, access), self._miss((page, access))))
                    iova = page + PAGE_SIZE
                    if len(waits) >= _WINDOW:
                        yield waits[-_WINDOW][1]
            for _, wait in waits:
                yield wait
        finally:
            for miss, wait in waits:
                self._misses[miss].remove(wait)
                if not self._misses[miss]:
                    del self._misses[miss]

    def fetch(self, iova: int, size: int) -> Generator[Wait, None, bytes | None]:
        """Reads 1 to `vhost.MAX_ACCESS` bytes; None where it may not, or could not."""
        read = yield from self._read(iova, size)
        if read is None:
            return None
        yield read
        return read.data

    def fetch_all(self, places: Iterable[tuple[int, int]]) -> Generator[Wait, None, list[bytes | None]]:
        """As `fetch` of each (address, size), all of them on the way at a time."""
        places = list(places)
        yield from self.ask(places, READ)
        reads: list[Read | None] = []
        for iova, size in places:
            reads.append((yield from self._read(iova, size)))
        for read in reads:
            if read is not None:
                yield read
        return [None if read is None else read.data for read in reads]

    def store(self, iova: int, data: bytes) -> Generator[Wait, None, bool]:
        """Writes 1 to `vhost.MAX_ACCESS` bytes; False where it may not."""
        size = len(data)
        if not self.has_leave(iova, size, WRITE) and not (yield from self.leave(iova, size, WRITE)):
            return False
        self.memory.write(iova, data)
        return True

    def update(self, message: vhost.IotlbUpdate) -> None:
        """The front end tells of a range."""
        self._counters["iotlb_updates"] += 1
        self.iotlb.update(message.iova, message.size, Access(message.access))
        last = message.iova + message.size - 1
        told = [waiting for (page, _), waiting in self._misses.items() if message.iova <= page <= last]
        for wait in [wait for waiting in told for wait in waiting]:
            wait.finish()

    def invalidate(self, iova: int, size: int) -> None:
        """Forgets a range. Who waits to be told of a page in it goes on waiting for that."""
        self.iotlb.invalidate(iova, size)

    def ask_again(self) -> None:
        """For all that was asked for and not told of: the guest may have mapped it meanwhile."""
        for iova, access in self._misses:
            self.memory.miss(iova, access)

    def start_over(self, translated: bool) -> None:
        """Nothing was told yet."""
        self.translated = translated
        self.iotlb.clear()

    def _read(self, iova: int, size: int) -> Generator[Wait, None, Read | None]:
        """Issues a read once it may and there is room; None where it may not."""
        while self.has_leave(iova, size, READ) or (yield from self.leave(iova, size, READ)):
            if self.memory.has_room:
                return self.memory.read(iova, size)
            yield self.memory.turn()
        return None

    def _miss(self, miss: _Miss) -> Wait:
        """Asks, unless somebody has already."""
        waiting = self._misses.setdefault(miss, [])
        if not waiting:
            self.memory.miss(*miss)
        wait = Wait()
        waiting.append(wait)
        return wait
