"""The fabric's end of a device's link: what is in flight to the device, and what it has sent.

PCI Express Base 5.0 sections 2.2.6 (tags), 2.3 (handling of received requests), 2.8 (completion timeout).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from viommu_actors.spec import pci
from viommu_actors.spec.tlp import Completion, CompletionStatus, Downstream, HotReset, Tag

#: Tags that a port may have in flight (10-bit tags).
_TAGS = 1 << 10


class Outcome(StrEnum):
    """What became of a transaction that a device sent."""

    OK = "ok"
    FAULT = "fault"
    ACS = "acs"
    MALFORMED = "malformed"
    UNCLAIMED = "unclaimed"
    NO_BUS_MASTER = "no bus master"
    #: A translated request or a translation request, at a port that lets neither through.
    TRANSLATION_BLOCKING = "acs translation blocking"
    #: The same where the port would, and no address translation service is there.
    ADDRESS_TYPE = "address type"
    #: It would have reached another device's BAR, by way of the root complex.
    PEER = "peer to peer"
    #: It touched the interrupt range, and is no interrupt.
    INTERRUPT_RANGE = "interrupt range"
    #: Of an emulated device, whose driver does not let it do anything.
    NOT_RUNNING = "device not running"
    UNEXPECTED_COMPLETION = "unexpected completion"
    #: A kind of request that no device may send upstream, such as a configuration request; or that no peer takes.
    UNSUPPORTED = "unsupported"

    @property
    def status(self) -> CompletionStatus:
        """How a request that ended so is answered: an ACS violation by completer abort (section 6.12.4)."""
        acs = self in (Outcome.ACS, Outcome.TRANSLATION_BLOCKING)
        return CompletionStatus.COMPLETER_ABORT if acs else CompletionStatus.UNSUPPORTED_REQUEST


#: As a plain name: a member of an enum's class is found slowly.
_OK = Outcome.OK
#: Kinds of transactions that change something; the others ask.
WRITES = frozenset({"write", "atomic", "msi", "peer write", "config write"})


class LogEntry(NamedTuple):
    """One transaction as the port saw it; `physical` where it was translated, `reason` where that faulted.

    Of one that went straight to a peer `physical` is the peer's own address, of a configuration request `address` is
    the register's place in the enhanced configuration window.
    """

    kind: str
    requester: int
    address: int
    length: int
    write: bool
    outcome: Outcome
    physical: int | None
    reason: int | None


class Log(Protocol):
    """Hears of each transaction of a port."""

    def add(self, entry: LogEntry) -> None: ...


@dataclass
class PortLog:
    """The first `capacity` transactions since it was started, and how many came after."""

    capacity: int
    entries: list[LogEntry] = field(default_factory=list)
    lost: int = 0

    def add(self, entry: LogEntry) -> None:
        if len(self.entries) < self.capacity:
            self.entries.append(entry)
        else:
            self.lost += 1


@dataclass(frozen=True)
class Outstanding:
    """A non-posted request that waits for the device: `length` bytes to come, and whom to tell.

    Where nothing completes it, `failed` is told; without one the answer is all-ones, as a root complex gives it.
    """

    length: int
    done: Callable[[int], None]
    failed: Callable[[], None] | None = None

    def fail(self) -> None:
        """Ends the request without its data."""
        if self.failed is None:
            self.done((1 << 8 * self.length) - 1)
        else:
            self.failed()


class Link(ABC):
    """One device's link as the fabric holds it. `name` says where it ends, whatever device stands there."""

    #: Largest payload in bytes that may be sent up or down.
    max_payload: int

    def __init__(self, name: str) -> None:
        self.name = name
        #: of transactions by kind and outcome; a `Counter` takes three times as long to count one
        self.counters: defaultdict[str, int] = defaultdict(int)
        #: First and last of the requester IDs behind the link that `refusal` has nothing against, untranslated: what a
        #: link keeps at hand that knows them before it is asked. The first beyond the last: it is to be asked.
        self.first_passing, self.last_passing = 1, 0
        self.log: Log | None = None
        self.outstanding: Final[dict[Tag, Outstanding]] = {}
        self.send: Callable[[Downstream], bool] | None = None
        self._wires = 0
        #: hears when a wire of the device has gone up or down
        self.wires_changed: Callable[[], None] = lambda: None
        self._next_tag = 0
        #: Tags of requests that timed out since the device last completed one.
        self._overdue: set[Tag] = set()

    @abstractmethod
    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """Why a well-formed request of the device may not go upstream, or None."""

    @abstractmethod
    def forwards_bus(self, bus: int) -> bool:
        """Whether requests by ID to that bus go down this link."""

    @abstractmethod
    def set_presence(self, present: bool) -> None:
        """Shows whether a device stands there."""

    def recover(self) -> None:
        """The link was down and is up again with the same device, before anybody took notice (section 6.2.10)."""
        self.set_presence(True)

    # --- upstream

    def record(
        self,
        kind: str,
        requester: int,
        address: int,
        length: int,
        outcome: Outcome,
        physical: int | None = None,
        reason: int | None = None,
    ) -> None:
        """Counts a transaction by kind where it went well, else by what stopped it; and logs it if asked to."""
        self.counters[kind if outcome is _OK else outcome] += 1
        if self.log is not None:
            self.log.add(LogEntry(kind, requester, address, length, kind in WRITES, outcome, physical, reason))

    def reject(self, defect: str) -> None:
        """Counts what came up the link and is no transaction, by what is wrong with it."""
        self.counters[f"rejected: {defect}"] += 1
        self.record("message", 0, 0, 0, Outcome.MALFORMED)

    @property
    def wires(self) -> tuple[int, ...]:
        """INTx wires of the device that are asserted; 0 is INTA."""
        return tuple(pin for pin in range(pci.INTX_PINS) if self._wires >> pin & 1)

    def set_wire(self, pin: int, asserted: bool) -> None:
        """The device says that one of its wires goes up or down (section 2.2.8.1)."""
        self._wires = self._wires & ~(1 << pin) | asserted << pin
        self.wires_changed()

    def drop_wires(self) -> None:
        """A link that is down has no wire up."""
        self._wires = 0
        self.wires_changed()

    # --- downstream

    def request(self, waiting: Outstanding, build: Callable[[Tag], Downstream]) -> None:
        """Sends a non-posted request; with no device, no free tag or a full link the answer is all-ones at once.

        So it is for a device that owes a completion since a timeout: who asks it does not wait that long again and
        again, as downstream port containment sees to it (section 6.2.10). It is asked again once it completes that.
        """
        tag = None if self._overdue else self._free_tag()
        if self.send is None or tag is None:
            waiting.fail()
            return
        # Listed before it is sent: a link within the process answers before `send` returns.
        self.outstanding[tag] = waiting
        if not self.send(build(tag)) and self.outstanding.pop(tag, None) is not None:
            self.counters["not sent"] += 1
            waiting.fail()

    def post(self, message: Downstream) -> None:
        """Sends what needs no answer; it is lost where no device stands or the link is full."""
        if self.send is None or not self.send(message):
            self.counters["not sent"] += 1

    def complete(self, completion: Completion) -> None:
        """The device's answer to a read of it; the tag is looked up among this port's requests only."""
        tag, status, remaining, data = completion
        waiting = self.outstanding.get(tag)
        if waiting is None:
            if tag in self._overdue:
                self._overdue.clear()
            self.record("completion", 0, 0, len(data), Outcome.UNEXPECTED_COMPLETION)
            return
        success = status == CompletionStatus.SUCCESS
        if success and (len(data) != waiting.length or remaining != waiting.length):
            # Dropped, as malformed ones are: the request ends by its timeout.
            self.record("completion", 0, 0, len(data), Outcome.MALFORMED)
            return
        del self.outstanding[tag]
        self._overdue.clear()
        self.counters["completion"] += 1
        if success:
            waiting.done(int.from_bytes(data, "little"))
        else:
            waiting.fail()

    def expire(self, tag: Tag) -> None:
        """Completion timeout: the request is answered all-ones, a late completion is unexpected."""
        waiting = self.outstanding.pop(tag, None)
        if waiting is not None:
            self.counters["completion timeout"] += 1
            self._overdue.add(tag)
            waiting.fail()

    def start_over(self) -> None:
        """A device fresh from its reset, or another: it owes nothing, and asks for nothing."""
        self._overdue.clear()
        self.drop_wires()

    def hot_reset(self) -> None:
        """Resets the device, as bridge control's secondary bus reset does."""
        self.start_over()
        self.post(HotReset(0))

    def abandon(self) -> None:
        """The link is gone: whatever waits is answered all-ones."""
        while self.outstanding:
            self.outstanding.pop(next(iter(self.outstanding))).fail()

    def _free_tag(self) -> Tag | None:
        """Tags go round, so that a completion that comes after its timeout meets no newer request."""
        if len(self.outstanding) == _TAGS:
            return None
        while self._next_tag in self.outstanding:
            self._next_tag = (self._next_tag + 1) % _TAGS
        tag = self._next_tag
        self._next_tag = (tag + 1) % _TAGS
        return tag
