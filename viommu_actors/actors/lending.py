"""BARs lent to guests: the direct wire's end at the fabric.

A channel is a capability: whoever knows its 16 random bytes may access the one BAR it stands for,
so that a kernel can lend it on to a deeper guest without a hop of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from viommu_actors.actors.host_fabric import Fabric
from viommu_actors.actors.runtime import log
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.tally import Tally


class Lending:
    """The channels, and the requests of guests that come through them: the ports of the kernel's KVM.

    `inject(vm, vector)` interrupts a guest.
    """

    def __init__(self, fabric: Fabric, inbox: Inbox, inject: Callable[[str, int], None]) -> None:
        self._fabric = fabric
        self._inbox = inbox
        self.inject = inject
        self._bars: dict[bytes, tuple[int, int]] = {}
        self._guests: dict[bytes, Tally] = {}

    def add_guest(self, peer: bytes, tally: Tally) -> None:
        """A guest, or an application in one, whose inbox name is `peer` may use channels."""
        self._guests[peer] = tally

    def serves(self, peer: bytes) -> bool:
        """Whether this peer may use channels."""
        return peer in self._guests

    def serve(self, peer: bytes, frame: bytes) -> None:
        """Forwards one access; a read is answered when the device completes it."""
        tally = self._guests[peer]
        try:
            request = m.DIRECT.decode(frame)
        except MalformedMessage as error:
            tally.rejected[error.defect] += 1
            log(f"{peer.decode()}: {error}")
            return
        tally.received[type(request)] += 1
        base, length = self._bars.get(request[0], (0, 0))
        offset, size = request[1], request[2]
        inside = offset + size <= length
        if type(request) is m.DirectWrite:
            if inside:
                self._fabric.post(base + offset, size, request.value)
        elif inside:
            self._fabric.read(base + offset, size, lambda value: self._answer(peer, tally, value))
        else:
            self._answer(peer, tally, (1 << size * 8) - 1)

    def _answer(self, peer: bytes, tally: Tally, value: int) -> None:
        self._inbox.send(peer, m.DirectValue(value), m.DIRECT_ANSWER, tally)

    def lend_bar(self, physical_address: int, size: int) -> bytes:
        """A new channel to this BAR."""
        token = secrets.token_bytes(16)
        self._bars[token] = (physical_address, size)
        return token

    def revoke(self, token: bytes) -> None:
        """The channel is dead: reads through it are all-ones."""
        self._bars.pop(token, None)
