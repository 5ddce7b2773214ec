"""What a guest is sent: frames that wait for buffers of its receive queue, bounded in time.

How many there are needs no bound of its own: of each other port there is at most a burst that is not settled.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator
from typing import Final

from viommu_actors.spec.virtio_net import HEADER, RECEIVE_HEADER
from viommu_actors.vswitch.chain import Chain
from viommu_actors.vswitch.delivery import Delivery, Parcel
from viommu_actors.vswitch.memory import WRITE, TranslatedMemory
from viommu_actors.vswitch.ring import BURST, Ring
from viommu_actors.vswitch.task import Task, Wait

#: Seconds that a frame waits where its guest gives no buffer. After that all that waits is dropped, and what comes then
#: at once, until the guest gives one: whoever sends to it waits for it no more than once.
BUFFER_TIMEOUT: Final = 0.5
#: Seconds that it waits, likewise, for whatever else its guest or the front end does not do. Each frame's time is its
#: own: it does not begin anew for what becomes of others, nor for buffers that nothing may be written into.
DELIVERY_TIMEOUT: Final = 1.0


class Egress:
    """The way out of a port.

    Frames for a guest that was not there yet wait as for one that does not answer: when a switch has been started again
    its front ends come back one by one. Those for one that has gone are dropped.
    """

    def __init__(self, memory: TranslatedMemory, counters: Counter[str]) -> None:
        self._memory = memory
        self._counters = counters
        self._ring: Ring | None = None
        self._waiting: deque[Parcel] = deque()
        #: written to the guest, which has not been seen to have it yet
        self._written: list[Parcel] = []
        #: Frames are dropped at once: the guest took none, or it has gone.
        self._congested = False
        self._arrival: Wait | None = None

    def send(self, frame: bytes, delivery: Delivery, now: float) -> None:
        """A frame for the guest, sent `now` (as of `expire`), to be followed by `wake`.

        `delivery` hears when it is settled.
        """
        if self._congested:
            self._counters["tx_dropped"] += 1
            return
        delivery.add()
        self._waiting.append(Parcel(frame, delivery, now))

    def wake(self) -> None:
        """The last frame for now has been sent."""
        if self._arrival is not None and self._waiting:
            arrival, self._arrival = self._arrival, None
            arrival.finish()

    def run(self, ring: Ring) -> Task:
        """Serves the receive queue. Raises RingBroken."""
        self._ring = ring
        self._congested = False
        yield from ring.want_notifications(False)
        # Whether there are frames or not: the driver may be owed an interrupt (`Ring`).
        yield from ring.poll()
        chains: deque[Chain] = deque()
        while True:
            self._congested = False
            while not self._waiting:
                self._arrival = Wait()
                yield self._arrival
            while not chains:
                yield from ring.wait()
                chains.extend((yield from ring.take()))
            yield from self._ask_leave(chains)
            used = yield from self._fill(chains)
            if used:
                yield from ring.use(used)
                # What is read behind the writes says that they are done, and whether an interrupt is wanted.
                yield from ring.poll()
            self._settle()

    def close(self) -> None:
        """The receive queue does not work any more; nobody has what waits for it."""
        self._ring = self._arrival = None
        self._congested = True
        self._drop([*self._written, *self._waiting])

    def expire(self, now: float) -> float | None:
        """Drops what has waited for too long; when to be called again, if at all (seconds of a monotonic clock)."""
        if not (self._written or self._waiting):
            return None
        oldest = self._written[0] if self._written else self._waiting[0]
        asleep = self._ring is not None and self._ring.asleep
        end = oldest.since + (BUFFER_TIMEOUT if asleep else DELIVERY_TIMEOUT)
        if now < end:
            return end
        self._congested = True
        self._drop([*self._written, *self._waiting])
        return None

    def _fill(self, chains: deque[Chain]) -> Generator[Wait, None, list[tuple[int, int]]]:
        """Writes what waits into buffers: (head, bytes written) of each that it is done with."""
        used: list[tuple[int, int]] = []
        while self._waiting and chains and len(used) < BURST:
            size = HEADER.size + len(self._waiting[0].frame)
            chain = chains[0]
            if not chain.writable or chain.size < size:
                # Not used up, but passed by: the next frame may fit.
                self._counters["tx_errors"] += 1
                self._drop([self._waiting[0]])
                if not chain.writable:
                    used.append((chains.popleft().head, 0))
                continue
            pieces = list(chain.part(0, size))
            if not all(self._memory.has_leave(*piece, WRITE) for piece in pieces):
                if used:
                    break  # The others are not to wait for the answer.
                if (yield from self._leave(pieces)):
                    continue  # Meanwhile another frame may be the first.
                self._counters["tx_errors"] += 1
                used.append((chains.popleft().head, 0))
                continue
            parcel = self._waiting.popleft()
            data = RECEIVE_HEADER + parcel.frame
            at = 0
            for address, length in pieces:
                self._memory.memory.write(address, data[at : at + length])
                at += length
            self._written.append(parcel)
            used.append((chains.popleft().head, size))
        return used

    def _ask_leave(self, chains: deque[Chain]) -> Generator[Wait, None, None]:
        """For all buffers that what waits is likely to go into."""
        fits = zip(chains, self._waiting, range(BURST), strict=False)
        pieces = [piece for chain, parcel, _ in fits for piece in chain.part(0, HEADER.size + len(parcel.frame))]
        yield from self._memory.ask(pieces, WRITE)

    def _leave(self, pieces: list[tuple[int, int]]) -> Generator[Wait, None, bool]:
        for address, length in pieces:
            if not (yield from self._memory.leave(address, length, WRITE)):
                return False
        return True

    def _settle(self) -> None:
        """The guest has what was written."""
        written, self._written = self._written, []
        for parcel in written:
            self._counters["tx_packets"] += 1
            self._counters["tx_bytes"] += len(parcel.frame)
            parcel.delivery.settle()

    def _drop(self, parcels: list[Parcel]) -> None:
        self._counters["tx_dropped"] += len(parcels)
        self._written = [parcel for parcel in self._written if parcel not in parcels]
        self._waiting = deque(parcel for parcel in self._waiting if parcel not in parcels)
        for parcel in parcels:
            parcel.delivery.settle()
