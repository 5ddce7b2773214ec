"""What a guest sends: its transmit queue, burst by burst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator

from viommu_actors.spec.virtio_net import HEADER, MAX_FRAME, MIN_FRAME
from viommu_actors.vswitch.chain import Chain
from viommu_actors.vswitch.delivery import Delivery
from viommu_actors.vswitch.memory import TranslatedMemory
from viommu_actors.vswitch.ring import Ring
from viommu_actors.vswitch.task import Task, Wait


def ingress(
    ring: Ring, memory: TranslatedMemory, counters: Counter[str], forward: Callable[[list[bytes], Delivery], None]
) -> Task:
    """Gives bursts to `forward`, and their buffers back once all that `forward` added to the delivery is settled.

    So what the guest is told was sent has arrived, or nobody could take it: a switch that dies before leaves it in the
    ring, for the next one to send. Raises RingBroken.
    """
    while True:
        yield from ring.wait()
        chains = yield from ring.take()
        frames = yield from _gather(chains, memory)
        delivery = Delivery()
        whole = [frame for frame in frames if frame is not None]
        counters["rx_errors"] += len(frames) - len(whole)
        counters["rx_packets"] += len(whole)
        counters["rx_bytes"] += sum(map(len, whole))
        forward(whole, delivery)
        delivery.settle()
        yield delivery
        yield from ring.use([(chain.head, 0) for chain in chains])


def _gather(chains: list[Chain], memory: TranslatedMemory) -> Generator[Wait, None, list[bytes | None]]:
    """Their frames, without the header: no offload was negotiated, so it says nothing. None where there is no frame."""
    places = []
    counts = []
    for chain in chains:
        size = chain.size - HEADER.size
        pieces = [] if chain.writable or not MIN_FRAME <= size <= MAX_FRAME else list(chain.part(HEADER.size, size))
        places += pieces
        counts.append(len(pieces))
    data = yield from memory.fetch_all(places)
    frames: list[bytes | None] = []
    at = 0
    for count in counts:
        parts = [part for part in data[at : at + count] if part is not None]
        frames.append(b"".join(parts) if count and len(parts) == count else None)
        at += count
    return frames
