"""BARs of emulated devices in the hands of applications: what the guest's kernel maps for one, its accesses find here.

An application's load or store of such a BAR is an exit of the guest's CPU to the hypervisor like a kernel's, and waits
for its answer like one; its kernel has no part in it. Where the kernel's page tables would say what the application
may reach, a token does: the kernel asks for it, and it ends when the BAR does not decode any more, be it for a moment.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from viommu_actors.actors.runtime import log
from viommu_actors.hypervisor.bars import BarWindow
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.sockets import Inbox
from viommu_actors.wire.tally import Tally


class Emulation(Protocol):
    """The machine (`hypervisor.machine.GuestMachine`)."""

    def emulated_bar(self, address: int) -> tuple[int, int] | None:
        """Guest-physical address and size of the emulated BAR that decodes an address."""
        ...

    def read(self, address: int, size: int) -> int | BarWindow: ...

    def write(self, address: int, size: int, value: int) -> bool | BarWindow: ...


class EmulatedBars:
    """What was lent, and the accesses that come for it."""

    def __init__(self, machine: Emulation, inbox: Inbox, name: str, apps: Sequence[str]) -> None:
        """`name` is the hypervisor's, `apps` the names of the processes that its guest's kernel may map a BAR for."""
        self._machine = machine
        self._inbox = inbox
        self._tallies = {app.encode(): Tally(f"trap:{app}", name) for app in apps}
        #: token -> guest-physical address and size
        self._lent: dict[bytes, tuple[int, int]] = {}

    @property
    def tallies(self) -> list[Tally]:
        """Of the wires to the applications."""
        return list(self._tallies.values())

    @property
    def traps(self) -> int:
        """How often applications have left their guest."""
        return sum(sum(tally.received.values()) for tally in self._tallies.values())

    def lend(self, address: int) -> m.TrapLent:
        """Answers the kernel: the BAR around an address, with an empty token where none is emulated there."""
        bar = self._machine.emulated_bar(address)
        if bar is None or not self._tallies:
            return m.TrapLent(address, 0, b"")
        token = next((token for token, lent in self._lent.items() if lent == bar), None)
        if token is None:
            token = secrets.token_bytes(16)
            self._lent[token] = bar
        return m.TrapLent(*bar, token)

    def settle(self) -> None:
        """A configuration space was written: what does not decode any more is not lent any more."""
        gone = [token for token, bar in self._lent.items() if self._machine.emulated_bar(bar[0]) != bar]
        for token in gone:
            del self._lent[token]

    def serves(self, peer: bytes) -> bool:
        """Whether this peer is one of the applications."""
        return peer in self._tallies

    def serve(self, peer: bytes, frame: bytes) -> None:
        """Carries out one access; ones are read, and nothing is written, where nothing is lent."""
        tally = self._tallies[peer]
        try:
            request = m.DIRECT.decode(frame)
        except MalformedMessage as error:
            tally.rejected[error.defect] += 1
            log(f"{peer.decode()}: {error}")
            return
        tally.received[type(request)] += 1
        base, length = self._lent.get(request[0], (0, 0))
        offset, size = request[1], request[2]
        inside = offset + size <= length
        answer: Message
        if type(request) is m.DirectWrite:
            if inside:
                self._machine.write(base + offset, size, request.value)
            answer = m.TrapDone(False)
        else:
            value = self._machine.read(base + offset, size) if inside else (1 << size * 8) - 1
            assert not isinstance(value, BarWindow), "an emulated BAR is no window to a device"
            answer = m.TrapValue(value)
        self._inbox.send(peer, answer, m.TRAP_ANSWER, tally)
