"""The process of an application in a guest: user space of that guest's kernel."""

from __future__ import annotations

import os
import select
from typing import Any

from viommu_actors.actors.control import Control
from viommu_actors.actors.remote_system import RemoteSystem
from viommu_actors.actors.runtime import inbox_listener, log, open_slots
from viommu_actors.actors.signals import Signals
from viommu_actors.app.commands import AppCommands
from viommu_actors.wire import messages as m
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.sockets import Channel
from viommu_actors.wire.tally import Tally


class AppActor:
    """Its inbox brings commands, and signals of eventfds, which it may sleep on."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name, kernel, fabric = configuration["name"], configuration["kernel"], configuration["fabric"]
        inbox = Inbox(inbox_listener(configuration), select.epoll())
        self._kernel = Tally(f"vfio:{name}", name)
        self._direct = Tally(f"direct:{name}", name)
        notify = Tally(f"notify:{name}", name)
        self._signals = Signals(inbox, notify)
        calls = Channel(name, kernel["address"], m.VFIO, m.VFIO_ANSWER, self._kernel)
        direct = Channel(name, fabric["address"], m.DIRECT, m.DIRECT_ANSWER, self._direct)
        [hugepages] = open_slots([configuration["hugepages"]], "gpa")
        trap, self._traps = None, Tally(f"trap:{name}", name)
        tallies = [self._kernel, self._direct, notify]
        if configuration["hypervisor"] is not None:
            trap = Channel(name, configuration["hypervisor"]["address"], m.DIRECT, m.TRAP_ANSWER, self._traps)
            tallies.append(self._traps)
        system = RemoteSystem(calls, direct, trap, hugepages, self._signals)
        self._control = Control(inbox, name, tallies)
        self._commands = AppCommands(system, log, os.urandom)
        self._control.register(self._commands.handlers() | {"counters": self._counters})

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            command = self._control.decode(self._signals.command())
            if command is not None:
                self._control.run(command)

    def _counters(self) -> dict[str, int]:
        """System calls, how often an interrupt woke the application, and accesses to BARs that nobody but the device
        saw."""
        return {
            "system_calls": sum(self._kernel.sent.values()) + self._signals.waits,
            "wakes": self._commands.wakes,
            "mmio_reads": self._direct.sent[m.DirectRead],
            "mmio_writes": self._direct.sent[m.DirectWrite],
        }
