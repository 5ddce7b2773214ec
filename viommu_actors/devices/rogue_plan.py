"""What a hostile device is to do, as plain values: steps, their bounds, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from viommu_actors.spec import pci, tlp
from viommu_actors.spec.tlp import AddressType, AtomicKind

MAX_STEPS = 1024
#: Most bytes that one step moves.
MAX_BYTES = 1 << 20
#: Most accesses of one scan or interrupt step.
MAX_ACCESSES = 1 << 24


class Read(NamedTuple):
    """Reads bytes, in TLPs of at most `limit` bytes. `requester` None: its own."""

    address: int
    length: int
    requester: int | None = None
    at: int = AddressType.UNTRANSLATED
    limit: int = tlp.PAGE


class Write(NamedTuple):
    """Writes bytes, posted, `times` times; `limit` None: the max payload that was programmed."""

    address: int
    data: bytes
    requester: int | None = None
    at: int = AddressType.UNTRANSLATED
    limit: int | None = None
    times: int = 1


class Scan(NamedTuple):
    """Reads `length` bytes at `first`, `first + stride`, ... up to and with `last`."""

    first: int
    last: int
    stride: int = tlp.PAGE
    length: int = tlp.DWORD
    requester: int | None = None


class AtomicStep(NamedTuple):
    """One AtomicOp of an `AtomicKind`."""

    kind: int
    address: int
    data: bytes
    requester: int | None = None
    at: int = AddressType.UNTRANSLATED


class Interrupt(NamedTuple):
    """`times` message signalled interrupts with any address and data."""

    address: int
    data: int
    times: int = 1
    requester: int | None = None


class Tamper(NamedTuple):
    """Raises its own interrupt `times` times, with this message in place of the one that its driver programmed."""

    address: int
    data: int
    times: int = 1


class Translate(NamedTuple):
    """Asks address translation services for the page of an address; what it reads is one entry (`spec.ats`)."""

    address: int
    no_write: bool = False
    requester: int | None = None


class Invalidations(NamedTuple):
    """What becomes of invalidations of its translations from here on.

    `honest`, with nothing kept of before; `keep`: completed and not obeyed; `ignore`: neither.
    """

    policy: str


class Message(NamedTuple):
    """A link message as it is, however malformed: its class in `spec.tlp` by name, and its fields; `times` times.

    Not waited for.
    """

    name: str
    fields: tuple[int | bytes, ...]
    times: int = 1


class Raw(NamedTuple):
    """Bytes put on the link in place of a message. Not waited for."""

    data: bytes


class Fuzz(NamedTuple):
    """Hostile messages of a fuzzer, `times` of them, the same for the same `seed`. Not waited for."""

    seed: int
    times: int


class Withhold(NamedTuple):
    """Answers none of the next requests, `times` of them, and late those that it did not answer before."""

    times: int


class Stream(NamedTuple):
    """Bytes put on the link's connection `times` times, beneath what separates messages. Not waited for."""

    data: bytes
    times: int = 1


class Control(NamedTuple):
    """The positive control: an honest write of `data` to a mapped address, and an honest read of it."""

    iova: int
    data: bytes


Step = (
    Read
    | Write
    | Scan
    | AtomicStep
    | Interrupt
    | Tamper
    | Translate
    | Invalidations
    | Message
    | Raw
    | Fuzz
    | Stream
    | Withhold
    | Control
)
STEPS: dict[str, type[Step]] = {
    "read": Read,
    "write": Write,
    "scan": Scan,
    "atomic": AtomicStep,
    "interrupt": Interrupt,
    "tamper": Tamper,
    "translate": Translate,
    "invalidations": Invalidations,
    "message": Message,
    "raw": Raw,
    "fuzz": Fuzz,
    "stream": Stream,
    "withhold": Withhold,
    "control": Control,
}
MESSAGES = {
    kind.__name__: kind
    for kind in (
        tlp.MemRead,
        tlp.MemWrite,
        tlp.Atomic,
        tlp.Completion,
        tlp.ConfigRequest,
        tlp.InvalidateCompletion,
    )
}
POLICIES = ("honest", "keep", "ignore")


def parse_plan(
    values: Sequence[Mapping[str, object]], messages: Mapping[str, Any] = MESSAGES
) -> list[Step]:
    """A plan from plain values: `{"do": "read", "address": 0, "length": 4}` and so on.

    `messages` are those of the rogue's wire, by name. Raises ValueError, naming the step, where it is
    none or is out of bounds.
    """
    if len(values) > MAX_STEPS:
        raise ValueError(f"a plan has at most {MAX_STEPS} steps, this one {len(values)}")
    return [_parse_step(number, value, messages) for number, value in enumerate(values)]


def _parse_step(number: int, value: Mapping[str, object], messages: Mapping[str, Any]) -> Step:
    fields = dict(value)
    name = fields.pop("do", None)
    kind = STEPS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"step {number}: do is {name!r}, none of {', '.join(STEPS)}")
    try:
        step = kind(**fields)  # type: ignore[arg-type]
        problem = _problem(step, messages)
    except TypeError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"step {number} ({name}): {problem}")
    return step


def _problem(step: Step, messages: Mapping[str, Any]) -> str | None:
    """What is wrong with a step, or None. A TypeError out of here names a field of a wrong type."""
    match step:
        case Read():
            ok = 0 <= step.length <= MAX_BYTES and step.limit in pci.PAYLOAD_SIZES
        case Write():
            short = len(bytes(memoryview(step.data))) <= MAX_BYTES and 1 <= step.times <= MAX_ACCESSES
            ok = short and step.limit in (None, *pci.PAYLOAD_SIZES)
        case Scan():
            short = 1 <= step.length <= tlp.PAGE and step.stride >= 1
            ok = short and 0 <= step.first <= step.last and (step.last - step.first) // step.stride < MAX_ACCESSES
        case AtomicStep():
            ok = step.kind in set(AtomicKind) and 4 <= len(memoryview(step.data)) <= 32
        case Interrupt() | Tamper():
            ok = 0 <= step.data < 1 << 32 and 1 <= step.times <= MAX_ACCESSES and not step.address & 3
        case Translate():
            ok = type(step.no_write) is bool
        case Invalidations():
            ok = step.policy in POLICIES
        case Message():
            kind = messages.get(step.name)
            ok = kind is not None and len(step.fields) == len(kind._fields) and 1 <= step.times <= MAX_ACCESSES
        case Fuzz():
            ok = 0 <= step.seed < 1 << 32 and 1 <= step.times <= MAX_ACCESSES
        case Withhold():
            ok = 0 <= step.times <= MAX_STEPS
        case Stream():
            ok = len(memoryview(step.data)) <= MAX_BYTES and 1 <= step.times <= MAX_ACCESSES
        case Raw() | Control():
            ok = len(memoryview(step.data)) <= tlp.PAGE
    address = getattr(step, "address", getattr(step, "first", getattr(step, "iova", 0)))
    requester = getattr(step, "requester", None)
    if not 0 <= address < 1 << 64 or not 0 <= (requester or 0) < 1 << 16:
        return "an address has 64 bits, a requester 16"
    return None if ok else "a field is out of bounds"
