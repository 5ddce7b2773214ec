"""A root port: its bridge registers, what it lets pass, and what it has seen.

PCI Express Base 5.0 sections 2.3 (handling of received requests), 6.12 (ACS), 7.5 (registers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from viommu_actors.pci import config_space
from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AddressType, Completion, CompletionStatus, Downstream, Tag

#: Tags that the port may have in flight (10-bit tags).
_TAGS = 1 << 10

_SERVICES = (
    pci.Acs.SOURCE_VALIDATION
    | pci.Acs.TRANSLATION_BLOCKING
    | pci.Acs.REQUEST_REDIRECT
    | pci.Acs.COMPLETION_REDIRECT
    | pci.Acs.UPSTREAM_FORWARDING
)


class Outcome(StrEnum):
    """What became of a transaction that a device sent."""

    OK = "ok"
    FAULT = "fault"
    ACS = "acs"
    MALFORMED = "malformed"
    UNCLAIMED = "unclaimed"
    NO_BUS_MASTER = "no bus master"
    #: A translated request or a translation request: ATS is not there.
    ADDRESS_TYPE = "address type"
    #: It would have reached another device's BAR.
    PEER = "peer to peer"
    #: It touched the interrupt range, and is no interrupt.
    INTERRUPT_RANGE = "interrupt range"
    UNEXPECTED_COMPLETION = "unexpected completion"
    #: A kind of request that no device may send upstream, such as a configuration request.
    UNSUPPORTED = "unsupported"


class LogEntry(NamedTuple):
    """One transaction as the port saw it; `physical` where it was translated, `reason` where that faulted."""

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
class PortConfig:
    """A slot of the topology: device number on bus 0, whether ACS is there, max payload in bytes."""

    slot: int
    acs: bool = True
    max_payload: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.slot < pci.DEVICES_PER_BUS:
            raise ValueError(f"slot {self.slot} is no device number of bus 0 (1 to 31)")
        if self.max_payload not in pci.PAYLOAD_SIZES:
            raise ValueError(f"max payload {self.max_payload} is none of {pci.PAYLOAD_SIZES}")


@dataclass(frozen=True)
class Outstanding:
    """A non-posted request that waits for the device: `length` bytes to come, and whom to tell."""

    length: int
    done: Callable[[int], None]

    def fail(self) -> None:
        """Answers all-ones, as a root complex does for a read that nothing completes."""
        self.done((1 << 8 * self.length) - 1)


class RootPort:
    """Device `slot`, function 0 of bus 0. The bus behind it holds one device."""

    def __init__(self, config: PortConfig) -> None:
        self.slot = config.slot
        self.bdf = pci.bdf(0, config.slot, 0)
        self.config = config_space.bridge_header(pci.VENDOR_REDHAT, pci.DEVICE_ROOT_PORT)
        self._express = config_space.add_express(self.config, pci.PortType.ROOT_PORT, config.max_payload)
        config_space.add_slot(self.config, self._express, config.slot)
        self._acs = config_space.add_acs(self.config, _SERVICES, _SERVICES) if config.acs else None
        self.counters: Counter[str] = Counter()
        self.log: Log | None = None
        self.outstanding: dict[Tag, Outstanding] = {}
        self.send: Callable[[Downstream], bool] | None = None
        self._next_tag = 0
        #: Tags of requests that timed out since the device last completed one.
        self._overdue: set[Tag] = set()
        self._latch()

    # --- registers

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """A configuration write to the port itself; True where it resets the bus behind (bridge control)."""
        held = self.config.read(pci.BRIDGE_CONTROL, 2)
        self.config.write(offset, size, value)
        self._latch()
        return bool(self.config.read(pci.BRIDGE_CONTROL, 2) & ~held & pci.SECONDARY_BUS_RESET)

    def _latch(self) -> None:
        """Keeps what each transaction needs of the registers at hand."""
        read = self.config.read
        command = read(pci.COMMAND, 2)
        self.bus_master = bool(command & pci.Command.BUS_MASTER)
        self.first_bus = read(pci.SECONDARY_BUS, 1)
        self.last_bus = read(pci.SUBORDINATE_BUS, 1)
        control = read(self._express + pci.EXP_DEVICE_CONTROL, 2)
        code = (control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT
        self.max_payload = pci.payload_size(code)
        acs = read(self._acs + pci.ACS_CONTROL, 2) if self._acs is not None else 0
        self.source_validation = bool(acs & pci.Acs.SOURCE_VALIDATION)
        self._windows = self._decode_windows() if command & pci.Command.MEMORY else ()

    def _decode_windows(self) -> tuple[tuple[int, int], ...]:
        read = self.config.read
        mask = pci.WINDOW_MASK
        last = pci.WINDOW_GRANULARITY - 1
        memory = ((read(pci.MEMORY_BASE, 2) & mask) << 16, (read(pci.MEMORY_LIMIT, 2) & mask) << 16 | last)
        prefetch = (
            read(pci.PREFETCH_BASE_UPPER, 4) << 32 | (read(pci.PREFETCH_BASE, 2) & mask) << 16,
            read(pci.PREFETCH_LIMIT_UPPER, 4) << 32 | (read(pci.PREFETCH_LIMIT, 2) & mask) << 16 | last,
        )
        # A window at address zero is one that nobody has programmed yet.
        return tuple(window for window in (memory, prefetch) if 0 < window[0] <= window[1])

    def forwards_bus(self, bus: int) -> bool:
        """Whether requests by ID to that bus go down this port."""
        return 0 < self.first_bus <= bus <= self.last_bus

    def forwards_address(self, address: int) -> bool:
        """Whether memory requests to that address go down this port."""
        return any(first <= address <= last for first, last in self._windows)

    def set_presence(self, present: bool) -> None:
        """Shows in slot and link status what stands in the slot."""
        slot = self._express + pci.EXP_SLOT_STATUS
        state = self.config.read(slot, 2) & ~pci.SLTSTA_PRESENT
        changed = pci.SLTSTA_PRESENCE_CHANGED | pci.SLTSTA_LINK_CHANGED
        self.config.set(slot, 2, state | changed | (pci.SLTSTA_PRESENT if present else 0))
        link = self._express + pci.EXP_LINK_STATUS
        active = self.config.read(link, 2) & ~pci.LNKSTA_DLL_ACTIVE
        self.config.set(link, 2, active | (pci.LNKSTA_DLL_ACTIVE if present else 0))

    # --- upstream

    def refusal(self, requester: int, address_type: int) -> Outcome | None:
        """Why a well-formed request may not go upstream, or None.

        ACS checks the bus number only: another function number of the own bus passes (section 6.12.1.1).
        """
        if self.source_validation and not self.forwards_bus(requester >> 8):
            return Outcome.ACS
        if address_type != AddressType.UNTRANSLATED:
            return Outcome.ADDRESS_TYPE
        if not self.bus_master:
            return Outcome.NO_BUS_MASTER
        return None

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
        self.counters[kind if outcome is Outcome.OK else outcome] += 1
        if self.log is not None:
            write = kind in ("write", "atomic", "msi")
            self.log.add(LogEntry(kind, requester, address, length, write, outcome, physical, reason))

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
        """A device fresh from its reset, or another: it owes nothing."""
        self._overdue.clear()

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
