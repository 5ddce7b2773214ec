"""Peer to peer: a memory request that goes from one device to another below the root complex, past every IOMMU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viommu_actors.pci.component import read_registers, write_registers
from viommu_actors.pci.fragment import byte_count, enabled_ranges, well_formed
from viommu_actors.pci.link import Link, Outcome
from viommu_actors.spec import tlp
from viommu_actors.spec.tlp import Atomic, Completion, CompletionStatus, MemRead, MemWrite

#: (link, requester, completion): routes a completion by ID, from where the request came in.
Complete = Callable[[Link, int, Completion], None]


def forward(
    link: Link, request: MemRead | MemWrite | Atomic, refusal: Outcome | None, peers: Sequence[Link], complete: Complete
) -> None:
    """Carries a request of the link's device to its peers; `refusal` is what stops it at the port, if anything does.

    Registers are as far as it gets: what is no single access of 1, 2, 4 or 8 bytes no device here supports.
    """
    if isinstance(request, MemRead):
        _read(link, request, refusal, peers, complete)
    elif isinstance(request, MemWrite):
        _write(link, request, refusal, peers)
    else:
        # No port here routes AtomicOps (section 6.15.3).
        outcome = refusal or Outcome.UNSUPPORTED
        link.record("atomic", request.requester, request.address, len(request.data), outcome)
        _refuse(link, request.requester, request.tag, outcome, complete)


def _read(link: Link, request: MemRead, refusal: Outcome | None, peers: Sequence[Link], complete: Complete) -> None:
    requester, tag, _, address, dwords, first_be, last_be = request
    length = dwords * tlp.DWORD
    if not well_formed(address, dwords, first_be, last_be):
        link.record("peer read", requester, address, length, Outcome.MALFORMED)
        return
    access = _single_access(address, dwords, first_be, last_be)
    if not _admit("peer read", link, requester, address, length, refusal, access is not None and bool(peers)):
        _refuse(link, requester, tag, refusal or Outcome.UNSUPPORTED, complete)
        return
    assert access is not None
    skip, size = access

    def done(value: int) -> None:
        data = (value << 8 * skip).to_bytes(length, "little")
        remaining = byte_count(dwords, first_be, last_be)
        complete(link, requester, Completion(tag, CompletionStatus.SUCCESS, remaining, data))

    def failed() -> None:
        _refuse(link, requester, tag, Outcome.UNSUPPORTED, complete)

    read_registers(peers, address + skip, size, done, failed)


def _write(link: Link, request: MemWrite, refusal: Outcome | None, peers: Sequence[Link]) -> None:
    requester, _, address, first_be, last_be, data = request
    length = len(data)
    dwords = length // tlp.DWORD
    whole = dwords * tlp.DWORD == length
    if not whole or length > link.max_payload or not well_formed(address, dwords, first_be, last_be):
        link.record("peer write", requester, address, length, Outcome.MALFORMED)
        return
    access = _single_access(address, dwords, first_be, last_be)
    if _admit("peer write", link, requester, address, length, refusal, access is not None and bool(peers)):
        assert access is not None
        skip, size = access
        write_registers(peers, address + skip, data[skip : skip + size])


def _admit(
    kind: str, link: Link, requester: int, address: int, length: int, refusal: Outcome | None, supported: bool
) -> bool:
    """Records the request; whether it goes on."""
    outcome = refusal or (Outcome.OK if supported else Outcome.UNSUPPORTED)
    passes = outcome is Outcome.OK
    link.record(kind, requester, address, length, outcome, address if passes else None)
    return passes


def _single_access(address: int, dwords: int, first_be: int, last_be: int) -> tuple[int, int] | None:
    """(offset, size) of the one naturally aligned register access that a request is, or None."""
    ranges = enabled_ranges(dwords, first_be, last_be)
    if len(ranges) != 1:
        return None
    start, stop = ranges[0]
    size = stop - start
    return (start, size) if size in (1, 2, 4, 8) and (address + start) % size == 0 else None


def _refuse(link: Link, requester: int, tag: int, outcome: Outcome, complete: Complete) -> None:
    complete(link, requester, Completion(tag, outcome.status, 0, b""))
