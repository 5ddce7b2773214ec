"""The transcript format `vtd-transcript/1`: its lines as typed operations.

Untrusted input: every field is checked for type and range, and `Malformed` names the line of what is wrong. Line 1 is
the header, each further line one operation. Fields that the format does not have are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

FORMAT: Final = "vtd-transcript/1"
ADDENDUM: Final = "shadow/1"

#: Longest line and largest transcript that is read, in bytes once unpacked.
LINE_LIMIT: Final = 1 << 20
SIZE_LIMIT: Final = 32 << 20
#: A DMA request has 1 to 4095 bytes. The message of a vfio-user device may ask for more, and is refused beyond 1 MiB.
DMA_LIMIT: Final = 4095
MESSAGE_LIMIT: Final = 1 << 20
_ASKED_LIMIT: Final = 1 << 32
_MEMORY_LIMIT: Final = 16 << 20
_RAM_LIMIT: Final = 1 << 52
_REGISTERS_SIZE: Final = 0x1000

Hex = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{1,16}$")]
Bdf = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]$")]
Permission = Literal["r", "rw"]
Impl = str | UnsetType
RegisterSize = Literal[4, 8]


class Malformed(Exception):
    """A line of a transcript that is none."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Platform(Struct):
    """The unit's options; those that a shadow transcript leaves out are QEMU's defaults."""

    aw_bits: Literal[39, 48]
    caching_mode: bool
    intremap: bool
    pt: bool = True
    device_iotlb: bool = False
    snoop_control: bool = False
    eim: bool = False
    dma_translation: bool = True
    dma_drain: bool = True
    server: Literal["lenient", "strict"] = "lenient"


class Header(Struct, tag_field="op", tag="header"):
    format: str
    scenario: str
    class_: Literal["spec", "qemu"] = msgspec.field(name="class")
    platform: Platform
    ram: Annotated[list[tuple[Hex, Hex]], Meta(min_length=1, max_length=64)]
    devices: Annotated[list[Bdf], Meta(max_length=65536)]
    description: str = ""
    addendum: str = ""
    qemu: str = ""

    @property
    def of_shadow(self) -> bool:
        """Whether it has an assigned device and its messages."""
        return self.addendum == ADDENDUM

    def ranges(self) -> list[tuple[int, int]]:
        """RAM, half open, ascending."""
        return sorted((int(low, 16), int(high, 16)) for low, high in self.ram)


class Comment(Struct, tag_field="op", tag="comment", omit_defaults=True):
    text: str = ""
    impl: Impl = UNSET


class MemWrite(Struct, tag_field="op", tag="mem_write", omit_defaults=True):
    addr: Hex
    data: str
    impl: Impl = UNSET


class MemFill(Struct, tag_field="op", tag="mem_fill", omit_defaults=True):
    addr: Hex
    len: Annotated[int, Meta(ge=0, le=_MEMORY_LIMIT, multiple_of=8)]
    word: Hex
    step: int | Hex = 1
    impl: Impl = UNSET


class MemRead(Struct, tag_field="op", tag="mem_read", omit_defaults=True):
    addr: Hex
    len: Annotated[int, Meta(ge=1, le=_MEMORY_LIMIT)]
    expect: str
    impl: Impl = UNSET


class RegWrite(Struct, tag_field="op", tag="reg_write", omit_defaults=True):
    offset: Hex
    size: RegisterSize
    value: Hex
    impl: Impl = UNSET


class RegRead(Struct, tag_field="op", tag="reg_read", omit_defaults=True):
    offset: Hex
    size: RegisterSize
    expect: Hex
    mask: Hex = "0xffffffffffffffff"
    impl: Impl = UNSET


class Delivered(Struct, omit_defaults=True):
    """An interrupt as the interrupt controller gets it."""

    dest: int
    dest_mode: int
    delivery_mode: int
    vector: int
    trigger_mode: int
    remapped_index: int | UnsetType = UNSET


class Segment(Struct, omit_defaults=True):
    """What became of one page of a request."""

    iova: Hex
    len: int
    result: str
    gpa: Hex | None = None
    msi: list[Delivered] | UnsetType = UNSET


class Fault(Struct, omit_defaults=True):
    """What QEMU detected; a fault that FPD suppresses has no reason."""

    reason: int | UnsetType = UNSET
    page: Hex | UnsetType = UNSET
    write: bool | UnsetType = UNSET
    disposition: str = ""


class Held(Struct):
    """What a container holds at an address."""

    gpa: Hex | None
    perm: Permission


DmaOutcome = Literal["ok", "blocked", "partial", "interrupt", "unclaimed"]


class DmaWrite(Struct, tag_field="op", tag="dma_write", omit_defaults=True):
    bdf: Bdf
    addr: Hex
    data: str
    expect: DmaOutcome
    segments: list[Segment] = []
    faults: list[Fault] = []
    errno: str | UnsetType = UNSET
    container: Held | UnsetType | None = UNSET
    impl: Impl = UNSET


class DmaRead(Struct, tag_field="op", tag="dma_read", omit_defaults=True):
    bdf: Bdf
    addr: Hex
    len: Annotated[int, Meta(ge=1, le=_ASKED_LIMIT)]
    expect: DmaOutcome
    expect_data: str | UnsetType = UNSET
    segments: list[Segment] = []
    faults: list[Fault] = []
    errno: str | UnsetType = UNSET
    container: Held | UnsetType | None = UNSET
    impl: Impl = UNSET


class Msi(Struct, tag_field="op", tag="msi", omit_defaults=True):
    bdf: Bdf
    addr: Hex
    data: Hex
    expect: Literal["delivered", "dropped", "dma_ok", "dma_blocked", "dma_unclaimed"]
    delivered: Delivered | None = None
    remapped: bool | UnsetType = UNSET
    impl: Impl = UNSET


class SentInterrupt(Struct):
    addr: Hex
    data: Hex


class Irqs(Struct, tag_field="op", tag="irqs", omit_defaults=True):
    expect: list[SentInterrupt]
    impl: Impl = UNSET


class Message(Struct, omit_defaults=True):
    """One message to the server of an assigned device."""

    type: Literal["map", "unmap", "device_reset"]
    iova: Hex = "0x0"
    size: Hex = "0x0"
    gpa: Hex | None = None
    perm: Permission | UnsetType = UNSET
    server_reply: str | UnsetType = UNSET


class Shadow(Struct, tag_field="op", tag="shadow", omit_defaults=True):
    bdf: Bdf
    expect: list[Message]
    impl: Impl = UNSET


class ShadowOrder(Struct, tag_field="op", tag="shadow_order", omit_defaults=True):
    """How the messages of two devices interleaved: differs from run to run, never compared."""

    impl: Impl = UNSET


class BusMaster(Struct, tag_field="op", tag="bus_master", omit_defaults=True):
    bdf: Bdf
    on: bool
    impl: Impl = UNSET


class SystemReset(Struct, tag_field="op", tag="system_reset", omit_defaults=True):
    impl: Impl = UNSET


Plain = Comment | MemWrite | MemFill | MemRead | RegWrite | RegRead | DmaWrite | DmaRead | Msi | Irqs
Operation = Plain | Shadow | ShadowOrder | BusMaster | SystemReset

_HEADER: Final = msgspec.json.Decoder(Header)
_OPERATION: Final = msgspec.json.Decoder(Operation)
_T = TypeVar("_T")


def write(header: Header, operations: Iterable[Operation]) -> Iterator[bytes]:
    """The lines of a transcript, each with its end."""
    for line in (header, *operations):
        yield msgspec.json.encode(line) + b"\n"


def bdf(text: str) -> int:
    """The requester id of `bus:device.function`."""
    bus, rest = text.split(":")
    device, function = rest.split(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function)


def name_of(operation: Operation) -> str:
    """Its `op`."""
    return str(operation.__struct_config__.tag)


def read_header(line: bytes) -> Header:
    """Of line 1. Raises Malformed."""
    header = _decode(_HEADER, 1, line)
    if header.format != FORMAT:
        raise Malformed(1, f"format is {header.format!r}; known is {FORMAT!r}")
    if header.addendum not in ("", ADDENDUM):
        raise Malformed(1, f"addendum is {header.addendum!r}; known is {ADDENDUM!r}")
    last = 0
    for low, high in header.ranges():
        if not last <= low < high <= _RAM_LIMIT or (low | high) & 0xFFF:
            raise Malformed(1, f"RAM {low:#x}-{high:#x} is empty, not of whole pages, too large or overlaps another")
        last = high
    if header.platform.eim and not header.platform.intremap:
        raise Malformed(1, "eim needs intremap")
    return header


def read_operations(header: Header, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Operation]]:
    """The numbered lines behind the header as operations. Raises Malformed."""
    limit = _ASKED_LIMIT if header.of_shadow else DMA_LIMIT
    for number, line in lines:
        operation = _decode(_OPERATION, number, line)
        try:
            _check(operation, header, limit)
        except ValueError as error:
            raise Malformed(number, f"{name_of(operation)}: {error}") from None
        yield number, operation


def _decode(decoder: msgspec.json.Decoder[_T], number: int, line: bytes) -> _T:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(number, str(error)) from None


def _check(operation: Operation, header: Header, limit: int) -> None:
    """What types do not say. Raises ValueError."""
    match operation:
        case MemWrite():
            _span(operation.addr, _hex_length(operation.data, _MEMORY_LIMIT))
        case MemFill() | MemRead():
            _span(operation.addr, operation.len)
            if isinstance(operation, MemRead) and _hex_length(operation.expect, _MEMORY_LIMIT) != operation.len:
                raise ValueError(f"expect has not {operation.len} bytes")
        case RegWrite() | RegRead():
            if int(operation.offset, 16) + operation.size > _REGISTERS_SIZE:
                raise ValueError(f"offset {operation.offset} is beyond the register file")
            if isinstance(operation, RegWrite) and int(operation.value, 16) >> 8 * operation.size:
                raise ValueError(f"value {operation.value} is wider than {operation.size} bytes")
        case DmaWrite() | DmaRead():
            length = operation.len if isinstance(operation, DmaRead) else _hex_length(operation.data, limit)
            if not 1 <= length <= limit:
                raise ValueError(f"{length} bytes; a request has 1 to {limit}")
            _span(operation.addr, length)
        case Msi():
            if int(operation.data, 16) >> 32:
                raise ValueError(f"data {operation.data} is wider than 4 bytes")
            _span(operation.addr, 4)
        case Shadow() | ShadowOrder() | BusMaster() | SystemReset() if not header.of_shadow:
            raise ValueError(f"only with addendum {ADDENDUM!r} in the header")
        case Shadow() | BusMaster() if operation.bdf not in header.devices:
            raise ValueError(f"{operation.bdf} is not among the header's devices")


def _span(address: str, length: int) -> None:
    if int(address, 16) + length > 1 << 64:
        raise ValueError(f"{length} bytes at {address} pass the end of the address space")


def _hex_length(data: str, limit: int) -> int:
    if len(data) > 2 * limit:
        raise ValueError(f"more than {limit} bytes of data")
    try:
        length = len(bytes.fromhex(data))
    except ValueError:
        length = -1
    if 2 * length != len(data):
        raise ValueError("data is not hex digits in pairs")
    return length
