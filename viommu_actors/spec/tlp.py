"""Transaction layer packets as messages: what crosses the link between a device and its root port.

PCI Express Base Specification 5.0, chapter 2. Addresses are dword aligned, lengths are in
dwords, byte enables are per byte of the first and last dword, as in a TLP header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

from viommu_actors.spec.fields import U8, U16, U32, U64, Length, Range

DWORD = 4
PAGE = 4096
#: No memory request crosses a naturally aligned 4 KiB boundary (section 2.2.7).
BOUNDARY = 4096
MAX_DWORDS = 1024
#: Interrupt address range: memory writes here are message signalled interrupts (VT-d section 3.14).
INTERRUPT_FIRST = 0xFEE0_0000
INTERRUPT_LAST = 0xFEEF_FFFF


class AddressType(IntEnum):
    """AT field of a memory request (section 2.2.4.1)."""

    UNTRANSLATED = 0
    TRANSLATION_REQUEST = 1
    TRANSLATED = 2


class CompletionStatus(IntEnum):
    """Completion status (section 2.2.9)."""

    SUCCESS = 0
    UNSUPPORTED_REQUEST = 1
    CONFIGURATION_RETRY = 2
    COMPLETER_ABORT = 4


class AtomicKind(IntEnum):
    """AtomicOp requests (section 6.15). COMPARE_SWAP's data is compare value then swap value."""

    FETCH_ADD = 0
    SWAP = 1
    COMPARE_SWAP = 2


Tag = Annotated[int, Range(0, 0x3FF)]
Dwords = Annotated[int, Range(1, MAX_DWORDS)]
Nibble = Annotated[int, Range(0, 0xF)]
Payload = Annotated[bytes, Length(0, PAGE)]


class MemRead(NamedTuple):
    """Memory read request, device to root. Answered by one or more `Completion`s with its tag."""

    requester: U16
    tag: Tag
    at: U8
    address: U64
    dwords: Dwords
    first_be: Nibble
    last_be: Nibble


class MemWrite(NamedTuple):
    """Posted memory write, device to root; to 0xFEExxxxx an MSI. `data` holds whole dwords."""

    requester: U16
    at: U8
    address: U64
    first_be: Nibble
    last_be: Nibble
    data: Payload


class Atomic(NamedTuple):
    """AtomicOp request, device to root; operand size is len(data), or half of it for a compare."""

    requester: U16
    tag: Tag
    at: U8
    kind: U8
    address: U64
    data: Annotated[bytes, Length(4, 32)]


class Completion(NamedTuple):
    """Answer to a non-posted request, either way.

    `remaining` is the byte count of the header: bytes still owed to the request, these included.
    """

    tag: Tag
    status: U8
    remaining: Annotated[int, Range(0, PAGE)]
    data: Payload


class MmioRead(NamedTuple):
    """Memory read request, root to device: `length` is 1, 2, 4 or 8 bytes, naturally aligned."""

    tag: Tag
    address: U64
    length: Annotated[int, Range(1, 8)]


class MmioWrite(NamedTuple):
    """Posted memory write, root to device: 1, 2, 4 or 8 bytes, naturally aligned."""

    address: U64
    data: Annotated[bytes, Length(1, 8)]


class CfgRead(NamedTuple):
    """Type 0 configuration read: `offset` 0..4095, `length` 1, 2 or 4.

    `devfn` and `bus` are the target's: a function captures them as its own ID (section 2.2.6.2).
    """

    tag: Tag
    bus: U8
    devfn: U8
    offset: Annotated[int, Range(0, 4095)]
    length: Annotated[int, Range(1, 4)]


class CfgWrite(NamedTuple):
    """Type 0 configuration write (non-posted); 1, 2 or 4 bytes."""

    tag: Tag
    bus: U8
    devfn: U8
    offset: Annotated[int, Range(0, 4095)]
    data: Annotated[bytes, Length(1, 4)]


class InvalidateRequest(NamedTuple):
    """ATS invalidate request, root to device by ID (section 10.3.1): `word` is a range (`spec.ats.decode_range`)."""

    requester: U16
    itag: Annotated[int, Range(0, 31)]
    target: U16
    word: U64


class InvalidateCompletion(NamedTuple):
    """ATS invalidate completion, device to root by ID (section 10.3.2).

    `itags` has a bit for each tag that it completes, `copies` is how many such messages there are of it (CC; 0: eight).
    """

    requester: U16
    target: U16
    copies: Annotated[int, Range(0, 7)]
    itags: U32


class IntxMessage(NamedTuple):
    """Assert_INTx or Deassert_INTx, a message to the port above (section 2.2.8.1): wire `pin` (0 is INTA) goes up or
    down. Whose wire it is follows from the link."""

    pin: Annotated[int, Range(0, 3)]
    asserted: bool


class ConfigRequest(NamedTuple):
    """Configuration request of a device, which none may send: they go down from the root only (section 7.3.3).

    `bus`, `devfn` and `offset` name the register that it is after; `data` is what it writes, none for a read.
    """

    requester: U16
    tag: Tag
    bus: U8
    devfn: U8
    offset: Annotated[int, Range(0, 4095)]
    data: Annotated[bytes, Length(0, 4)]


class HotReset(NamedTuple):
    """The link's hot reset (training sequence, section 4.2.5.11): the device forgets everything."""

    reason: U32


#: What a device may send, and what it may be sent.
Upstream = MemRead | MemWrite | Atomic | Completion | ConfigRequest | InvalidateCompletion | IntxMessage
Downstream = MmioRead | MmioWrite | CfgRead | CfgWrite | HotReset | Completion | InvalidateRequest
