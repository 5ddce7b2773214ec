"""The process of an application in a guest: user space of that guest's kernel."""

from __future__ import annotations

import os
from typing import Any

from viommu_actors.actors.control import LAUNCHER, Control
from viommu_actors.actors.remote_system import RemoteSystem
from viommu_actors.actors.runtime import inbox_listener, log, open_slots
from viommu_actors.app.commands import AppCommands
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import MalformedMessage
from viommu_actors.wire.sockets import Channel, Inbox, make_context
from viommu_actors.wire.tally import Tally


class AppActor:
    """Its inbox brings commands, and signals of eventfds, which a poll-mode driver has no use for."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name, kernel, fabric = configuration["name"], configuration["kernel"], configuration["fabric"]
        self._inbox = Inbox(make_context(), inbox_listener(configuration))
        self._kernel = Tally(f"vfio:{name}", name)
        self._direct = Tally(f"direct:{name}", name)
        self._notify = Tally(f"notify:{name}", name)
        calls = Channel(name, kernel["address"], m.VFIO, m.VFIO_ANSWER, self._kernel)
        direct = Channel(name, fabric["address"], m.DIRECT, m.DIRECT_ANSWER, self._direct)
        [hugepages] = open_slots([configuration["hugepages"]], "gpa")
        system = RemoteSystem(calls, direct, hugepages)
        self._control = Control(self._inbox, name, [self._kernel, self._direct, self._notify])
        self._control.register(AppCommands(system, log, os.urandom).handlers() | {"counters": self._counters})

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            peer, frame = self._inbox.receive()
            if peer == LAUNCHER:
                command = self._control.decode(frame)
                if command is not None:
                    self._control.run(command)
                continue
            try:
                signal = m.NOTIFY.decode(frame)
            except MalformedMessage as error:
                self._notify.rejected[error.defect] += 1
                log(f"notify: {error}")
            else:
                self._notify.received[type(signal)] += 1

    def _counters(self) -> dict[str, int]:
        """System calls, and accesses to BARs that nobody but the device saw."""
        return {
            "system_calls": sum(self._kernel.sent.values()),
            "mmio_reads": self._direct.sent[m.DirectRead],
            "mmio_writes": self._direct.sent[m.DirectWrite],
        }
