"""BARs of emulated devices in the hands of applications: what the guest's kernel maps for one, its accesses find here.

An application's load or store of such a BAR is an exit of the guest's CPU to the hypervisor like a kernel's, and waits
for its answer like one; its kernel has no part in it. Where the kernel's page tables would say what the application
may reach, a token does: the kernel asks for it, and it ends when the BAR does not decode any more, be it for a moment.

What an application accesses, and with what token, is judged. Its end of the wire is trusted, as its kernel's of the
trap wire: both stand for a CPU of the guest, and what no CPU does (messages without end, another's name) is not kept
off.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from viommu_actors.actors.peer_wire import is_told
from viommu_actors.actors.runtime import log
from viommu_actors.hypervisor.machine import Register
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage, Message
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.tally import Tally


class Emulation(Protocol):
    """The machine (`hypervisor.machine.GuestMachine`)."""

    def emulated(self, address: int, size: int) -> Register | None:
        """Of an emulated device, at a guest-physical address that it decodes."""
        ...


class EmulatedBars:
    """What was lent, and the accesses that come for it."""

    def __init__(self, machine: Emulation, inbox: Inbox, name: str, apps: Sequence[str]) -> None:
        """`name` is the hypervisor's, `apps` the names of the processes that its guest's kernel may map a BAR for."""
        self._machine = machine
        self._inbox = inbox
        self._tallies = {app.encode(): Tally(f"trap:{app}", name) for app in apps}
        #: token -> guest-physical address, and what starts there
        self._lent: dict[bytes, tuple[int, Register]] = {}

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
        register = self._machine.emulated(address, 1)
        if register is None or not self._tallies:
            return m.TrapLent(address, 0, b"")
        base = address - register.offset
        bar = base, register._replace(offset=0)
        token = next((token for token, lent in self._lent.items() if lent == bar), None)
        if token is None:
            token = secrets.token_bytes(16)
            self._lent[token] = bar
        return m.TrapLent(base, register.bar_size, token)

    def settle(self) -> None:
        """A configuration space was written: what does not decode any more is not lent any more."""
        gone = [token for token, (base, bar) in self._lent.items() if self._machine.emulated(base, 1) != bar]
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
            if is_told(tally.malformed):
                log(f"{peer.decode()}: message {tally.malformed} that is none: {error}")
            return
        tally.received[type(request)] += 1
        register, size = self._register(*request[:3]), request[2]
        answer: Message
        if type(request) is m.DirectWrite:
            if register is not None:
                register.write(size, request.value)
            answer = m.TrapDone(False)
        else:
            answer = m.TrapValue((1 << size * 8) - 1 if register is None else register.read(size))
        self._inbox.send(peer, answer, m.TRAP_ANSWER, tally)

    def _register(self, token: bytes, offset: int, size: int) -> Register | None:
        """What an access is for; None where nothing is lent, and for one that is not aligned."""
        _, bar = self._lent.get(token, (0, None))
        if bar is None or offset % size or offset + size > bar.bar_size:
            return None
        return bar._replace(offset=offset)
