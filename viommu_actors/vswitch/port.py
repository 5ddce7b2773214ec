"""A port of the switch: the back end of one guest's network device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from viommu_actors.spec import vhost, virtio, virtio_net
from viommu_actors.spec.virtio_net import Queue
from viommu_actors.vswitch.chain import RingBroken
from viommu_actors.vswitch.delivery import Delivery
from viommu_actors.vswitch.egress import Egress
from viommu_actors.vswitch.ingress import ingress
from viommu_actors.vswitch.memory import Memory, TranslatedMemory
from viommu_actors.vswitch.ring import Ring
from viommu_actors.vswitch.task import Task, Tasks

#: What the back end can do. The device's configuration is its front end's.
FEATURES: Final = virtio.Feature.VERSION_1 | virtio.Feature.ACCESS_PLATFORM | virtio_net.Feature.MTU
#: Lines logged of what is wrong with rings.
_LOGGED: Final = 10
#: What is counted: frames as the switch sees them (rx is what the guest sends), then what its back end did.
STATISTICS: Final = (
    "rx_packets", "rx_bytes", "rx_errors", "tx_packets", "tx_bytes", "tx_errors", "tx_dropped",
    "reads", "reads_failed", "writes", "empty_polls", "kicks", "calls",
    "iotlb_misses", "iotlb_updates", "iotlb_invalidations", "access_failures",
    "unexpected_completions", "broken_rings",
)  # fmt: skip


class Port:
    """`send` takes messages to the front end and never blocks, `forward` bursts of the guest, `log` a line.

    `is_full` tells whether some of what it was given to send still waits for room.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Any], None],
        forward: Callable[[Port, list[bytes], Delivery], None],
        log: Callable[[str], None] = lambda _: None,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        #: What it may do to the guest's memory by messages, unchecked, and with the leave of its device-IOTLB.
        self.memory = Memory(send, self.counters)
        self.guest = TranslatedMemory(self.memory, send, self.counters)
        self.egress = Egress(self.guest, self.counters)
        self.tasks = Tasks()
        #: What becomes of an invalidation.
        self.invalidated: Callable[[vhost.IotlbInvalidate], None] = self.forget
        self._send = send
        self._forward = forward
        self._log = log
        self._is_full = is_full
        #: What was not told of is to be asked for again, which found no room.
        self._owes_asking = False
        self._setups: dict[int, vhost.SetVring] = {}
        self._rings: dict[int, Ring] = {}
        self._running: dict[int, Task] = {}
        #: queue -> why it is over, until it is started again
        self._broken: dict[int, str] = {}

    def receive(self, message: Any) -> None:
        """Serves one message of the front end."""
        match message:
            case vhost.ReadCompletion():
                self.memory.complete(message)
            case vhost.Kick(queue):
                self._kick(queue)
            case vhost.IotlbUpdate():
                self.guest.update(message)
            case vhost.IotlbInvalidate():
                self.counters["iotlb_invalidations"] += 1
                self.invalidated(message)
            case vhost.GetFeatures():
                self._start_over()
                self._send(vhost.Features(FEATURES))
            case vhost.SetFeatures(features):
                self.guest.start_over(bool(features & virtio.Feature.ACCESS_PLATFORM))
            case vhost.SetVring(queue):
                self._stop(queue)
                self._setups[queue] = message
            case vhost.StartVring(queue):
                self._start(queue)
            case vhost.StopVring(queue):
                self._send(vhost.VringBase(queue, self._stop(queue)))
            case vhost.Reset():
                self._reset()

    def has_room(self) -> None:
        """Nothing waits to be sent any more."""
        if self._owes_asking:
            self._owes_asking = False
            self.guest.ask_again()

    def forget(self, message: vhost.IotlbInvalidate) -> None:
        """Drops what is invalidated, and says so. Whatever was accessed by it went out before, on the same wire."""
        self.guest.invalidate(message.iova, message.size)
        self._send(vhost.IotlbInvalidated(message.sequence))

    def ring(self, queue: int) -> tuple[vhost.SetVring, int] | None:
        """Where a queue that works lies, and the index of its used ring; None of one that does not."""
        ring = self._rings.get(queue)
        return None if ring is None else (self._setups[queue], ring.used)

    def _start_over(self) -> None:
        """Another connection of the front end: of the one before, and of all that was under way, nothing is left."""
        self.tasks.cancel_all()
        self._reset()
        self.memory.start_over()

    def statistics(self) -> dict[str, int]:
        """`STATISTICS`."""
        return {name: self.counters[name] for name in STATISTICS}

    def state(self) -> dict[str, Any]:
        """Plain values: queues that work, why others do not, entries of the device-IOTLB."""
        return {
            "started": sorted(Queue(queue).name.lower() for queue in self._running),
            "broken": {Queue(queue).name.lower(): why for queue, why in self._broken.items()},
            "iotlb": len(self.guest.iotlb),
        }

    def _start(self, queue: int) -> None:
        setup = self._setups.get(queue)
        if setup is None or queue in self._running or setup.size & setup.size - 1:
            self._complain(queue, f"not to be started: {setup}")
            return
        self._broken.pop(queue, None)
        self._rings[queue] = ring = Ring(setup, self.guest, self.counters, lambda: self._send(vhost.Call(queue)))
        serve = self.egress.run(ring) if queue == Queue.RECEIVE else self._ingress(ring)
        self._running[queue] = task = self._guarded(queue, serve)
        self.tasks.start(task)

    def _ingress(self, ring: Ring) -> Task:
        return ingress(ring, self.guest, self.counters, lambda frames, delivery: self._forward(self, frames, delivery))

    def _guarded(self, queue: int, serve: Task) -> Task:
        """What is wrong with a ring is the end of that ring, and of nothing else."""
        try:
            yield from serve
        except RingBroken as error:
            self._broken[queue] = str(error)
            del self._running[queue]
            self._complain(queue, str(error))
            if queue == Queue.RECEIVE:
                self.egress.close()

    def _complain(self, queue: int, line: str) -> None:
        """Its guest is to hear of it; one may go on with it for ever, and all of it is counted."""
        self._send(vhost.VringError(queue))
        self.counters["broken_rings"] += 1
        if self.counters["broken_rings"] <= _LOGGED:
            self._log(f"{self.name}: {Queue(queue).name.lower()} queue: {line}")

    def _stop(self, queue: int) -> int:
        """A queue is not served any more; where it would go on."""
        task = self._running.pop(queue, None)
        if task is not None:
            self.tasks.cancel(task)
            if queue == Queue.RECEIVE:
                self.egress.close()
        ring = self._rings.pop(queue, None)
        if ring is not None:
            return ring.used
        setup = self._setups.get(queue)
        return 0 if setup is None else setup.base

    def _kick(self, queue: int) -> None:
        self.counters["kicks"] += 1
        # The guest has done something: what it had not mapped it may have mapped. It can do that without end, faster
        # than it is asked: so many notifications are one.
        self._owes_asking = True
        if not self._is_full():
            self.has_room()
        ring = self._rings.get(queue)
        if ring is not None:
            ring.kick()

    def _reset(self) -> None:
        for queue in Queue:
            self._stop(queue)
        self._setups.clear()
        self._broken.clear()
        self._owes_asking = False
        self.guest.start_over(False)
