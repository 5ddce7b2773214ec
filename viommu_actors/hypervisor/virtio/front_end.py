"""The hypervisor's end of the vhost wire of one device, after QEMU's hw/virtio/vhost.c and vhost-user.c.

The back end is not trusted: each of its accesses is judged here, whatever it was told, what it owes is waited for with
a limit, and whoever does not answer is cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from viommu_actors.hypervisor.virtio.memory import FunctionMemory
from viommu_actors.hypervisor.virtio.told_pages import ToldPages
from viommu_actors.pci.link import Log, Outcome
from viommu_actors.spec import vhost, virtio
from viommu_actors.spec.vhost import ReadStatus
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd.listener import Effort

#: What both ends have to have, of what was offered to the driver.
_ESSENTIAL = virtio.Feature.VERSION_1 | virtio.Feature.ACCESS_PLATFORM
#: Lines logged of what a back end does wrong; all of it is counted.
_LOGGED = 10
_SEQUENCES = 1 << 32
#: What waiting for an acknowledgement costs, in entries of tables: a guest's queue pauses after some of it.
_WAIT = 1 << 12
_new = tuple.__new__


class Vring(NamedTuple):
    """A queue as the driver set it up; addresses are the driver's."""

    queue: int
    size: int
    descriptors: int
    available: int
    used: int


class BackEnd(Protocol):
    """A connection to a back end."""

    @property
    def waits(self) -> bool:
        """Whether something that was sent waits for room. When nothing does any more the front end is told."""
        ...

    def send(self, message: Any) -> bool:
        """False where it takes no more, or is gone; never blocks."""
        ...

    def wait(self, until: Callable[[], bool]) -> None:
        """Serves every back end of the machine until that is so, or for as long as one may owe an answer."""
        ...

    def cut_off(self) -> None:
        """Nothing comes from this connection any more; there may be another."""
        ...


class Device(Protocol):
    """What a back end serves."""

    def link_changed(self, up: bool) -> None:
        """A back end is there, or is not any more."""
        ...

    def used(self, queue: int) -> None:
        """Buffers of a queue were used, and the driver wants to hear of it."""
        ...

    def broken(self, why: str) -> None:
        """It can do nothing until the driver resets it."""
        ...

    def ring_broken(self, why: str) -> None:
        """A queue is served no more until the driver resets the device. Only then the others stop, which is waited for:
        not here, where others may be waited for."""
        ...


class FrontEnd:
    """`offered` are the features that the driver was offered.

    `counters`: virtio_unexpected, what a back end said and does not fit; virtio_refused, accesses while the device does
    not run; virtio_calls_coalesced, interrupts that came with one of the same queue;
    virtio_early, what it said before its features; virtio_cut_off, back ends that did not answer, or would not listen.
    """

    def __init__(
        self,
        name: str,
        offered: int,
        requester: int,
        memory: FunctionMemory,
        device: Device,
        counters: Counter[str],
        effort: Effort,
        log: Callable[[str], None],
    ) -> None:
        self.told = ToldPages(requester, self._invalidate)
        self._name = name
        self._offered = offered
        self._memory = memory
        self._device = device
        self._counters = counters
        self._effort = effort
        self._log = log
        self._back_end: BackEnd | None = None
        self._ready = False
        self._running = False
        #: what the driver wants to run: features, and its queues
        self._wanted: tuple[int, tuple[Vring, ...]] | None = None
        #: what runs
        self._vrings: tuple[Vring, ...] = ()
        #: what the back end owes: queues that are to stop, numbers of invalidations
        self._stopping: set[int] = set()
        self._invalidations: set[int] = set()
        #: queues whose notification waits for room; two of one queue are one, as of an eventfd
        self._kicks: set[int] = set()
        self._sequence = 0
        #: of what comes at once: queues that the driver was interrupted for, and is to be once more
        self._gathers = False
        self._called: set[int] = set()
        self._owed_calls: set[int] = set()

    # --- the back end comes and goes

    def connected(self, back_end: BackEnd) -> None:
        """There is a back end; the one before is gone."""
        self.lost()
        self._back_end = back_end
        self._send(vhost.GetFeatures())

    def lost(self) -> None:
        """The back end is gone. Queues stay as they are; whoever comes next goes on with them."""
        self._back_end = None
        self._ready = self._running = False
        self._stopping.clear()
        self._invalidations.clear()
        self._kicks.clear()
        self._owed_calls.clear()
        self.told.forget()
        self._device.link_changed(False)

    # --- what the driver does

    def start(self, features: int, vrings: Sequence[Vring]) -> None:
        """The driver is there: its queues are served as soon as there is a back end."""
        self._wanted = features, tuple(vrings)
        if self._ready:
            self._run()

    def stop(self) -> None:
        """When this returns no queue is accessed any more."""
        running, self._wanted = self._running, None
        if not running:
            return
        # Still served: what the back end has under way is legal until it has stopped.
        self._stopping.update(vring.queue for vring in self._vrings)
        for vring in self._vrings:
            self._send(vhost.StopVring(vring.queue))
        self._await(lambda: not self._stopping, "a stop")
        self._running = False
        self._kicks.clear()
        self._owed_calls.clear()
        self.told.forget()
        self._send(vhost.Reset())

    def kick(self, queue: int) -> None:
        """The driver has notified the device, however often. A back end that is behind hears of it later.

        What room is left while something waits is for answers: a guest shall not take it, and its back end be cut off.
        """
        back_end = self._back_end
        if self._running and back_end is not None and (back_end.waits or not back_end.send(vhost.Kick(queue))):
            self._kicks.add(queue)

    def room(self) -> None:
        """Nothing waits for room any more: what does not depend on the back end's saying something goes out."""
        kicks, self._kicks = self._kicks, set()
        for queue in kicks:
            self.kick(queue)

    def watch(self, log: Log | None) -> None:
        """From here on `log` hears of each access of the back end; None: nobody does."""
        self._memory.log = log

    # --- what the back end says

    def receive(self, message: Any) -> None:
        """Serves one message."""
        kind = type(message)
        if not self._ready and kind is not vhost.Features:
            # It waited for room since before this connection: its sender forgets it as he hears of this one.
            self._counters["virtio_early"] += 1
        elif kind is vhost.MemoryRead:
            tag, iova, size = message
            if self._admitted():
                data = self._memory.read(iova, size)
            else:
                data = None
                self._memory.refused(iova, size, write=False)
            status = ReadStatus.FAILED if data is None else ReadStatus.DONE
            self._send(_new(vhost.ReadCompletion, (tag, int(status), data or b"")))
        elif kind is vhost.MemoryWrite:
            if self._admitted():
                self._memory.write(*message)
            else:
                self._memory.refused(message.iova, len(message.data), write=True)
        elif kind is vhost.IotlbMiss:
            self._miss(message.iova, Access(message.access))
        elif kind is vhost.Call:
            if self._admitted():
                self._call(message.queue)
        elif kind is vhost.IotlbInvalidated:
            self._expect(message.sequence, self._invalidations, message)
        elif kind is vhost.VringBase:
            self._expect(message.queue, self._stopping, message)
        elif kind is vhost.IotlbAccessFail:
            self._access_failed(message)
        elif kind is vhost.Features:
            self._features(message.features)
        elif kind is vhost.VringError:
            self._ring_broken(message.queue)

    def gather(self) -> None:
        """What comes until `flush` comes at once: of its calls for one queue, all but the first are one more."""
        self._gathers = True

    def flush(self) -> None:
        """See `gather`."""
        self._gathers = False
        self._called.clear()
        while self._owed_calls:
            self._device.used(self._owed_calls.pop())

    def _call(self, queue: int) -> None:
        self._memory.told("call", Outcome.OK)
        if queue in self._called:
            self._counters["virtio_calls_coalesced"] += 1
            self._owed_calls.add(queue)
            return
        if self._gathers:
            self._called.add(queue)
        self._device.used(queue)

    def _admitted(self) -> bool:
        """Whether the driver lets the device do anything."""
        if not self._running:
            self._counters["virtio_refused"] += 1
        return self._running

    def _miss(self, iova: int, access: Access) -> None:
        """No answer where the vIOMMU gives no leave, as in QEMU; the fault is recorded."""
        entry = self._memory.entry(iova, access) if self._admitted() else None
        if entry is None:
            return
        if self.told.full and (all_of_it := self.told.forget()) is not None:
            self._ask_to_forget(*all_of_it)
        self.told.told(entry)
        self._send(vhost.IotlbUpdate(entry.iova, entry.size, entry.address, int(entry.access)))

    def _access_failed(self, message: vhost.IotlbAccessFail) -> None:
        """What the back end was told gives no such leave. The vIOMMU is asked, so that it records the fault."""
        self._complain(f"has no leave for {message.size} bytes at {message.iova:#x}", "virtio_access_failed")
        self._miss(message.iova, Access(message.access))

    def _features(self, features: int) -> None:
        if self._ready:
            self._complain(f"tells its features {features:#x} unasked")
            return
        missing = self._offered & _ESSENTIAL & ~features
        if missing:
            self._cut_off(f"lacks features {missing:#x}")
            return
        self._ready = True
        if self._wanted is not None:
            self._run()
        if self._ready:
            self._device.link_changed(True)

    def _ring_broken(self, queue: int) -> None:
        """Of a queue that is about to stop it is nothing to the driver any more."""
        if self._running and self._wanted is not None:
            self._device.ring_broken(f"the back end cannot serve queue {queue}")

    def _expect(self, number: int, owed: set[int], message: Any) -> None:
        if number in owed:
            owed.remove(number)
        else:
            self._complain(f"owes no {message}")

    # --- running

    def _run(self) -> None:
        """Every queue goes on at the next entry of its used ring: buffers are used in order."""
        assert self._wanted is not None
        features, vrings = self._wanted
        bases = []
        for vring in vrings:
            index = self._memory.read(vring.used + virtio.RING_INDEX, virtio.U16.size)
            if index is None:
                self._device.broken(f"queue {vring.queue} has no used ring at {vring.used:#x}")
                return
            bases.append(virtio.U16.unpack(index)[0])
        self._running, self._vrings = True, vrings
        self._send(vhost.SetFeatures(features))
        for vring, base in zip(vrings, bases, strict=True):
            self._send(vhost.SetVring(*vring, base))
            self._send(vhost.StartVring(vring.queue))

    # --- the wire

    def _invalidate(self, told: tuple[int, int] | None) -> None:
        """The barrier of an invalidation. Who was told to forget all may still hold what it concerns."""
        if told is not None:
            self._ask_to_forget(*told)
        if self._invalidations:
            self._effort.left -= _WAIT
            self._await(lambda: not self._invalidations, "an invalidation")

    def _ask_to_forget(self, first: int, last: int) -> None:
        if self._back_end is None:
            return
        self._sequence = (self._sequence + 1) % _SEQUENCES
        self._invalidations.add(self._sequence)
        self._send(vhost.IotlbInvalidate(self._sequence, first, last - first + 1))

    def _await(self, until: Callable[[], bool], what: str) -> None:
        """A back end that is gone owes nothing; one that does not answer is gone then."""
        if not until() and self._back_end is not None:
            self._back_end.wait(until)
        if not until():
            self._cut_off(f"did not acknowledge {what} in time")

    def _send(self, message: Any) -> None:
        if self._back_end is not None and not self._back_end.send(message):
            self._cut_off("takes no more messages")

    def _cut_off(self, why: str) -> None:
        self._counters["virtio_cut_off"] += 1
        self._log(f"{self._name}: cut off: the back end {why}")
        if self._back_end is not None:
            self._back_end.cut_off()
        self.lost()

    def _complain(self, line: str, counter: str = "virtio_unexpected") -> None:
        self._counters[counter] += 1
        self._memory.told("answer", Outcome.UNEXPECTED_COMPLETION)
        if self._counters[counter] <= _LOGGED:
            self._log(f"{self._name}: the back end {line}")
