"""A hostile device: a plan of accesses played by any endpoint, whatever its driver allowed.

It uses any requester ID, ignores bus master enable and honest limits, and says what came back. Nothing it says
decides a verdict. Results are bounded, however much is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from viommu_actors.devices.dma_engine import Task, Transfer
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.rogue_plan import (
    MESSAGES,
    STEPS,
    AtomicStep,
    Control,
    Fuzz,
    Interrupt,
    Invalidations,
    Message,
    Raw,
    Read,
    Scan,
    Step,
    Stream,
    Tamper,
    Translate,
    Withhold,
    Write,
    parse_plan,
)
from viommu_actors.spec import tlp
from viommu_actors.spec.tlp import AddressType, AtomicKind, CompletionStatus

__all__ = ["Rogue", "StepResult", "parse_plan"]

#: Data up to this length is returned as it is.
DATA_KEPT = 64
#: Addresses of a scan's first hits that are returned.
HITS_KEPT = 64
#: Reads of a scan in flight.
_WINDOW = 16
_NAMES = {kind: name for name, kind in STEPS.items()}


@dataclass(frozen=True)
class StepResult:
    """What one step saw, in its own words.

    `status`: completed, unsupported request, completer abort, timeout; sent where nothing answers; for the
    control completed, refused or differs. A scan completed where every access did, or else has the status of its
    first failure. `digest`: SHA-256 of what was read, in hexadecimal; `data`: the same where it is short.
    """

    step: int
    kind: str
    status: str
    attempts: int = 1
    completed: int = 0
    length: int = 0
    digest: str = ""
    data: bytes = b""
    hits: tuple[int, ...] = ()


class BareLink(Protocol):
    """The link beneath its messages."""

    def send(self, *frames: bytes) -> bool:
        """In place of a message; False on a link that is down."""

    def fuzz(self, seed: int, count: int) -> None:
        """See `rogue_plan.Fuzz`."""

    def write(self, data: bytes, times: int) -> None:
        """See `rogue_plan.Stream`."""


class Rogue:
    """Plays plans on an endpoint; `link` for what is no message, where there is a link."""

    def __init__(self, endpoint: Endpoint, link: BareLink | None = None) -> None:
        self._endpoint = endpoint
        self._link = link

    def play(self, plan: Sequence[Step], done: Callable[[list[StepResult]], None]) -> None:
        """Starts a plan. `done` gets its results, fewer than steps where a reset of the device ended it."""
        self._endpoint.start(self._play(plan, done))

    def _play(self, plan: Sequence[Step], done: Callable[[list[StepResult]], None]) -> Task:
        results: list[StepResult] = []
        try:
            for number, step in enumerate(plan):
                result = yield from self._step(number, step)
                results.append(result)
        finally:
            done(results)

    def _step(self, number: int, step: Step) -> Generator[Transfer, None, StepResult]:
        kind = _NAMES[type(step)]
        match step:
            case Read():
                transfer = self._endpoint.engine.read(
                    self._name(step.requester), step.address, step.length, step.limit, step.at
                )
                yield transfer
                return _read_result(number, kind, transfer)
            case AtomicStep():
                transfer = self._endpoint.engine.atomic(
                    self._name(step.requester), AtomicKind(step.kind), step.address, step.data, step.at
                )
                yield transfer
                return _read_result(number, kind, transfer)
            case Scan():
                return (yield from self._scan(number, kind, step))
            case Control():
                return (yield from self._control(number, kind, step))
            case Write():
                limit = step.limit or self._endpoint.max_payload
                for _ in range(step.times):
                    self._endpoint.engine.write(self._name(step.requester), step.address, step.data, limit, step.at)
                return StepResult(number, kind, "sent", attempts=step.times, length=len(step.data))
            case Interrupt():
                data = step.data.to_bytes(tlp.DWORD, "little")
                message = tlp.MemWrite(self._name(step.requester), AddressType.UNTRANSLATED, step.address, 0xF, 0, data)
                for _ in range(step.times):
                    self._endpoint.send(message)
                return StepResult(number, kind, "sent", attempts=step.times)
            case Tamper():
                for _ in range(step.times):
                    self._endpoint.interrupt_otherwise(step.address, step.data)
                return StepResult(number, kind, "sent", attempts=step.times)
            case Translate():
                requester = self._name(step.requester)
                transfer = self._endpoint.engine.translate(requester, step.address, step.no_write)
                yield transfer
                return _read_result(number, kind, transfer)
            case Invalidations():
                return StepResult(number, kind, self._treat_invalidations(step.policy))
            case Message():
                for _ in range(step.times):
                    self._endpoint.send(MESSAGES[step.name](*step.fields))  # type: ignore[arg-type]
                return StepResult(number, kind, "sent", attempts=step.times)
            case Raw():
                self._bare.send(step.data)
                return StepResult(number, kind, "sent", length=len(step.data))
            case Fuzz():
                self._bare.fuzz(step.seed, step.times)
                return StepResult(number, kind, "sent", attempts=step.times)
            case Withhold():
                self._endpoint.withhold(step.times)
                return StepResult(number, kind, "withheld", attempts=step.times)
            case Stream():
                self._bare.write(step.data, step.times)
                return StepResult(number, kind, "sent", attempts=step.times, length=len(step.data))

    def _treat_invalidations(self, policy: str) -> str:
        device_tlb = self._endpoint.device_tlb
        if device_tlb is None:
            return "unsupported request"
        if policy == "honest":
            device_tlb.start_over()
        else:
            device_tlb.invalidated = device_tlb.complete if policy == "keep" else lambda request: None
        return "completed"

    def _scan(self, number: int, kind: str, step: Scan) -> Generator[Transfer, None, StepResult]:
        requester = self._name(step.requester)
        tally = _Tally()
        flight: deque[tuple[int, Transfer]] = deque()
        for address in range(step.first, step.last + 1, step.stride):
            flight.append((address, self._endpoint.engine.read(requester, address, step.length, tlp.PAGE)))
            if len(flight) == _WINDOW:
                yield flight[0][1]
                tally.add(*flight.popleft())
        for address, transfer in flight:
            yield transfer
            tally.add(address, transfer)
        return tally.result(number, kind, step.length)

    def _control(self, number: int, kind: str, step: Control) -> Generator[Transfer, None, StepResult]:
        yield from self._endpoint.dma_write(step.iova, step.data)
        data = yield from self._endpoint.dma_read(step.iova, len(step.data))
        if data is None:
            return StepResult(number, kind, "refused")
        status = "completed" if data == step.data else "differs"
        return StepResult(number, kind, status, 1, 1, len(data), sha256(data).hexdigest(), data[:DATA_KEPT])

    @property
    def _bare(self) -> BareLink:
        if self._link is None:
            raise ValueError("there is no link beneath this endpoint")
        return self._link

    def _name(self, requester: int | None) -> int:
        return self._endpoint.requester if requester is None else requester


class _Tally:
    """The outcome of a scan's reads, in order."""

    def __init__(self) -> None:
        self._digest = sha256()
        self._hits: list[int] = []
        self._status = "completed"
        self._attempts = self._completed = 0

    def add(self, address: int, transfer: Transfer) -> None:
        self._attempts += 1
        if transfer.data is None:
            if self._status == "completed":
                self._status = _status(transfer)
            return
        self._completed += 1
        self._digest.update(transfer.data)
        if len(self._hits) < HITS_KEPT:
            self._hits.append(address)

    def result(self, number: int, kind: str, length: int) -> StepResult:
        digest = self._digest.hexdigest() if self._completed else ""
        total = self._completed * length
        hits = tuple(self._hits)
        return StepResult(number, kind, self._status, self._attempts, self._completed, total, digest, b"", hits)


def _status(transfer: Transfer) -> str:
    if transfer.timed_out:
        return "timeout"
    return {
        CompletionStatus.SUCCESS: "completed",
        CompletionStatus.COMPLETER_ABORT: "completer abort",
    }.get(transfer.status, "unsupported request")


def _read_result(number: int, kind: str, transfer: Transfer) -> StepResult:
    data = transfer.data
    if data is None:
        return StepResult(number, kind, _status(transfer))
    short = data if len(data) <= DATA_KEPT else b""
    return StepResult(number, kind, "completed", 1, 1, len(data), sha256(data).hexdigest(), short)
