"""The requester of a function: its non-posted requests in flight, their tags, and what comes back.

PCI Express Base 5.0 sections 2.2.6 (transaction IDs) and 2.2.9 (completions).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from functools import partial

from viommu_actors.pci.fragment import enables, fragments
from viommu_actors.spec import ats, tlp
from viommu_actors.spec.tlp import AddressType, Atomic, AtomicKind, Completion, CompletionStatus, MemRead, MemWrite
from viommu_actors.spec.vtd import PAGE_MASK

#: Non-posted requests in flight: as many as tags of 5 bits tell apart; with extended tags, which are 8 bits wide, as
#: many as the function has buffers for, since it cannot refuse a completion (section 2.6.1).
TAGS, EXTENDED_TAGS = 32, 64
_ADDRESS_SPACE = 1 << 64
_SUCCESS = CompletionStatus.SUCCESS
_new = tuple.__new__


class Transfer:
    """Non-posted requests that a task waits for together. `data` is None where one of them failed."""

    __slots__ = ("buffer", "data", "length", "status", "task", "timed_out", "waiting")

    def __init__(self, length: int) -> None:
        self.length = length
        self.data: bytes | None = None
        self.status = _SUCCESS
        #: A request of it got no answer in time.
        self.timed_out = False
        #: Requests that are not answered yet, and one while more are being issued.
        self.waiting = 1
        #: What goes on once all of them are answered.
        self.task: Task | None = None
        #: Where the answers are put together, if there are several.
        self.buffer: bytearray | None = None


#: A device's work, which yields what it waits for.
Task = Generator[Transfer, None, None]
#: One TLP in flight: (transfer, size, offset, length, lead, received). Its answer of `size` bytes, whole dwords, fills
#: `length` bytes of the transfer from `offset`, after `lead` bytes; `received` is what has come of it so far.
_Request = tuple[Transfer, int, int, int, int, bytes]


class DmaEngine:
    """Splits reads and writes into TLPs, queues them while no tag is free, and puts completions together.

    Any requester ID, any size: what an honest function may do is for `Endpoint` to keep to.
    """

    def __init__(
        self, send: Callable[[tlp.Upstream], None], counters: Counter[str], resume: Callable[[Task], None]
    ) -> None:
        """`resume` has a task go on whose transfer is over."""
        self._send = send
        self._counters = counters
        self._resume = resume
        self._requests: dict[int, _Request] = {}
        self._queued: deque[tuple[_Request, Callable[[int], tlp.Upstream]]] = deque()
        self._tags = TAGS
        self._free_tags = deque(range(TAGS))
        #: (transfers that were under way, whom to tell once they are over)
        self._drains: list[tuple[set[Transfer], Callable[[], None]]] = []

    def extend_tags(self, enabled: bool) -> None:
        """Extended tags were enabled, or disabled: from the next request on."""
        before, self._tags = self._tags, EXTENDED_TAGS if enabled else TAGS
        if self._tags != before:
            more = (tag for tag in range(before, self._tags) if tag not in self._requests)
            self._free_tags = deque([*(tag for tag in self._free_tags if tag < self._tags), *more])

    @property
    def busy(self) -> bool:
        """Whether a request waits for a completion."""
        return bool(self._requests)

    @property
    def outstanding(self) -> list[int]:
        """Tags of requests that wait for a completion, oldest first."""
        return list(self._requests)

    def read(
        self, requester: int, address: int, length: int, limit: int, at: int = AddressType.UNTRANSLATED
    ) -> Transfer:
        """Sends reads of at most `limit` bytes each; the transfer is to be waited for."""
        transfer = Transfer(length)
        if 0 < length <= limit - address % limit and address < _ADDRESS_SPACE:
            # One request does: the one thing that the transfer waits for.
            if not (address | length) & 3 and length > tlp.DWORD:
                first_be, last_be, dwords = 0xF, 0xF, length >> 2
            else:
                first_be, last_be, dwords = enables(address, length)
            lead = address & 3
            aligned = address - lead
            request = (transfer, dwords * tlp.DWORD, 0, length, lead, b"")
            if self._free_tags:
                tag = self._free_tags.popleft()
                self._requests[tag] = request
                self._send(_new(MemRead, (requester, tag, at, aligned, dwords, first_be, last_be)))
            else:
                build = partial(_read_request, requester, at, aligned, dwords, first_be, last_be)
                self._queued.append((request, build))
            return transfer
        for piece in fragments(address, length, limit):
            request = (transfer, piece.dwords * tlp.DWORD, piece.offset, piece.length, piece.lead, b"")
            build = partial(_read_request, requester, at, piece.address, piece.dwords, piece.first_be, piece.last_be)
            self._issue(request, build)
        self._release(transfer)
        return transfer

    def write(self, requester: int, address: int, data: bytes, limit: int, at: int = AddressType.UNTRANSLATED) -> None:
        """Sends posted writes of at most `limit` bytes each."""
        for piece in fragments(address, len(data), limit):
            part = data[piece.offset : piece.offset + piece.length]
            if piece.length != piece.dwords * tlp.DWORD:
                part = (bytes(piece.lead) + part).ljust(piece.dwords * tlp.DWORD, b"\0")
            self._send(MemWrite(requester, at, piece.address, piece.first_be, piece.last_be, part))

    def atomic(
        self, requester: int, kind: AtomicKind, address: int, data: bytes, at: int = AddressType.UNTRANSLATED
    ) -> Transfer:
        """Sends an AtomicOp; the transfer's data is the old value."""
        size = len(data) // 2 if kind is AtomicKind.COMPARE_SWAP else len(data)
        transfer = Transfer(size)
        request = (transfer, -(-size // tlp.DWORD) * tlp.DWORD, 0, size, 0, b"")
        self._issue(request, lambda tag: Atomic(requester, tag, at, kind, address, data))
        self._release(transfer)
        return transfer

    def translate(self, requester: int, address: int, no_write: bool = False) -> Transfer:
        """Sends a translation request for the page of `address`; the transfer's data is one entry (`spec.ats`)."""
        transfer = Transfer(ats.ENTRY_SIZE)
        request = (transfer, ats.ENTRY_SIZE, 0, ats.ENTRY_SIZE, 0, b"")
        place = address & ~PAGE_MASK | (ats.NO_WRITE if no_write else 0)
        kind = AddressType.TRANSLATION_REQUEST
        self._issue(request, partial(_read_request, requester, kind, place, ats.ENTRY_DWORDS, 0xF, 0xF))
        self._release(transfer)
        return transfer

    def drain(self, done: Callable[[], None]) -> None:
        """Calls `done` once every request that is in flight or queued now is over."""
        under_way = {request[0] for request in self._requests.values()} | {request[0] for request, _ in self._queued}
        if under_way:
            self._drains.append((under_way, done))
        else:
            done()

    def completion(self, completion: Completion) -> None:
        """An answer from the root port. One that fits no request is counted and dropped."""
        tag, status, remaining, data = completion
        request = self._requests.get(tag)
        if request is None:
            self._counters["unexpected completion"] += 1
            return
        if status:
            self._retire(tag, request, _failure(status), None)
            return
        transfer, size, offset, length, lead, received = request
        owed = length + lead - len(received) if received else length
        received += data
        missing = size - len(received)
        if remaining != owed or not data or missing < 0:
            self._counters["malformed completion"] += 1
        elif not missing:
            self._retire(tag, request, _SUCCESS, received)
        else:
            self._requests[tag] = (transfer, size, offset, length, lead, received)

    def expire(self, tag: int) -> None:
        """Completion timeout: the request failed; a late completion is unexpected."""
        request = self._requests.get(tag)
        if request is not None:
            self._counters["completion timeout"] += 1
            request[0].timed_out = True
            self._retire(tag, request, CompletionStatus.UNSUPPORTED_REQUEST, None)

    def abandon(self) -> None:
        """Forgets what is in flight or queued; completions of it are unexpected from now on."""
        self._free_tags.extend(tag for tag in self._requests if tag < self._tags)
        self._requests.clear()
        self._queued.clear()
        drains, self._drains = self._drains, []
        for _, done in drains:
            done()

    def _issue(self, request: _Request, build: Callable[[int], tlp.Upstream]) -> None:
        request[0].waiting += 1
        if self._free_tags:
            self._dispatch(request, build)
        else:
            self._queued.append((request, build))

    def _dispatch(self, request: _Request, build: Callable[[int], tlp.Upstream]) -> None:
        tag = self._free_tags.popleft()
        self._requests[tag] = request
        self._send(build(tag))

    def _retire(self, tag: int, request: _Request, status: CompletionStatus, data: bytes | None) -> None:
        """A request is over. Tags go round, so that a late completion meets no newer request."""
        del self._requests[tag]
        transfer, _, offset, length, lead, _ = request
        if data is None:
            transfer.status = status
        elif length == len(data) == transfer.length:
            transfer.data = data
        else:
            if transfer.buffer is None:
                transfer.buffer = bytearray(transfer.length)
            transfer.buffer[offset : offset + length] = data[lead : lead + length]
        if tag < self._tags:
            self._free_tags.append(tag)
        if self._queued and self._free_tags:
            self._dispatch(*self._queued.popleft())
        self._release(transfer)

    def _release(self, transfer: Transfer) -> None:
        """One thing less to wait for; after the last the task goes on."""
        transfer.waiting -= 1
        if transfer.waiting:
            return
        if transfer.status:
            transfer.data = None
        elif transfer.data is None:
            transfer.data = bytes(transfer.buffer or b"")
        if transfer.task is not None:
            self._resume(transfer.task)
        if self._drains:
            self._drained(transfer)

    def _drained(self, transfer: Transfer) -> None:
        """A transfer is over; those that waited for it as the last one are told."""
        over = []
        for under_way, done in self._drains:
            under_way.discard(transfer)
            if not under_way:
                over.append(done)
        self._drains = [each for each in self._drains if each[0]]
        for done in over:
            done()


def _failure(status: int) -> CompletionStatus:
    """Reserved statuses count as unsupported request (section 2.2.9.1)."""
    known = status in (CompletionStatus.CONFIGURATION_RETRY, CompletionStatus.COMPLETER_ABORT)
    return CompletionStatus(status) if known else CompletionStatus.UNSUPPORTED_REQUEST


def _read_request(
    requester: int, at: int, address: int, dwords: int, first_be: int, last_be: int, tag: int
) -> tlp.Upstream:
    return MemRead(requester, tag, at, address, dwords, first_be, last_be)
