"""Starts the actors of a plan, commands them, and notices at once when one of them dies.

One thread, one poll: control channels, a pidfd for each actor, the run's control socket, and a
pipe that signals write to. Whatever the launcher waits for, it waits for it here.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final

import zmq

from viommu_actors.supervise.actor_plan import ActorPlan
from viommu_actors.supervise.counted import all_stamps, by_wire, checked_counts
from viommu_actors.supervise.door import Door
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import Plan, guest_of
from viommu_actors.supervise.process import Actor
from viommu_actors.supervise.questions import Answer, Asked, Question
from viommu_actors.text import printable
from viommu_actors.wire.libzmq import make_context
from viommu_actors.wire.messages import Command, Reply
from viommu_actors.wire.tally import disagreements

#: How long an actor may take for one command before the run counts as stuck.
COMMAND_TIMEOUT = 60.0
#: How long the counts of both ends of a wire may take to agree once all is quiet.
_QUIESCE = 2.0
_UNPLUG_TIMEOUT = 1.0
_HEARD_NOTED = 1000
#: Messages taken from one actor before the others get their turn.
_DRAIN = 64
#: How often a process that is to be restarted is; one that dies once more never stays up.
_RESTARTS = 16


class ActorDied(Exception):
    """A process died that should not have; the text names it and what it last did."""

    how: Final = "died"


class ActorGone(Exception):
    """A command to an actor whose death was contained."""


class Interrupted(Exception):
    """SIGINT, SIGTERM or the control message `stop`."""

    how: Final = "interrupted"


class Withdrawn(Exception):
    """Whoever asked for the job that is being done has given it up, or is gone."""


class CommandFailed(Exception):
    """An actor could not do what it was told; the text is its reason."""

    how: Final = "failed"


class Supervisor:
    """The running processes of one plan. Use as a context manager: on leaving, all of them have ended."""

    def __init__(self, plan: Plan, folder: RunFolder, contain: bool = False) -> None:
        """`contain`: the death of anything but the host is noted in `lost`, and the rest goes on."""
        self._plan = plan
        self._folder = folder
        self._context = make_context()
        self._poller = zmq.Poller()
        self._number = 0
        #: asked and not answered; answered and not fetched
        self._open: set[Question] = set()
        self._answers: dict[Question, Answer] = {}
        self._interrupted = ""
        self._contain = contain
        self.actors: dict[str, Actor] = {}
        #: who died and was contained -> how
        self.lost: dict[str, str] = {}
        #: actors whose death ends nothing but themselves, and how they died that did
        self.expendable: set[str] = set()
        self.fallen: dict[str, str] = {}
        #: how often an actor that has died was started again
        self.restarts: Counter[str] = Counter()
        #: connections of the door that ended, to be fetched by whoever serves its jobs
        self.departed: set[bytes] = set()
        #: what `status` tells beside the processes
        self.more_status: Callable[[], dict[str, Any]] = dict

    def __enter__(self) -> Supervisor:
        self._lifeline = os.pipe2(os.O_CLOEXEC)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._outer = _supervisor_of(signal.getsignal(signal.SIGINT))
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        if self._outer is not None and self._outer._interrupted:
            self._interrupt(self._outer._interrupted)
        self._wakeup_fd = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self._poller.register(self._wake[0], zmq.POLLIN)
        self.door = Door(self._context)
        self._poller.register(self.door.socket, zmq.POLLIN)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors.values():
            actor.kill()
        for name in list(self.actors):
            self.retire(name)
        for device in list(self._plan.cables):
            self._plan.pull(device)
        self.door.close()
        self._context.destroy(linger=0)
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for fd in (*self._lifeline, *self._wake):
            os.close(fd)

    def _start(self) -> None:
        try:
            for plan in self._plan.actors:
                self._raise_if_interrupted()
                self._spawn(plan, plan.name)
        finally:
            self._plan.close()

    def _spawn(self, plan: ActorPlan, name: str) -> None:
        with self._folder.log(name, again=self.restarts[name] > 0) as log:
            actor = Actor(plan, name, self._lifeline[0], log, since=self._number)
        self.actors[name] = actor
        self._poller.register(actor.pidfd, zmq.POLLIN)
        self._poller.register(actor.channel.socket, zmq.POLLIN)
        self._folder.event(name, "started", role=plan.role, pid=actor.pid)

    # --- actors that come and go while the others stay

    def enlist(self, plan: ActorPlan, name: str) -> None:
        """Starts one more actor, and waits until it is up; `name` is its own among the actors, and its log's.

        Its death ends nothing but itself, and stands in `fallen`. Raises ActorGone, CommandFailed.
        """
        kept = {cable["fd"] for cable in self._plan.cables.values()}
        self.fallen.pop(name, None)
        self.expendable.add(name)
        try:
            self._spawn(plan, name)
        finally:
            for fd in set(plan.fds) - kept:
                os.close(fd)
        self.command(name, "ping")

    def succeed(self, successor: str, name: str, expendable: bool) -> None:
        """One actor ends, if it has not already, and an enlisted one goes on by its name."""
        self.retire(name)
        actor = self.actors.pop(successor)
        actor.name = name
        self.actors[name] = actor
        self.expendable -= {successor, name}
        self.fallen.pop(name, None)
        if expendable:
            self.expendable.add(name)

    def dismiss(self, name: str) -> None:
        """Ends an enlisted actor, if it has not already; nothing is left of its name."""
        self.retire(name)
        self.expendable.discard(name)
        self.fallen.pop(name, None)

    def retire(self, name: str) -> None:
        """Ends an actor, where it is there."""
        actor = self.actors.pop(name, None)
        if actor is not None:
            self._poller.unregister(actor.pidfd)
            self._poller.unregister(actor.channel.socket)
            actor.end()

    # --- commands

    def command(self, actor: str, name: str, **arguments: Any) -> Any:
        """Has one actor do something; returns its result."""
        return self.commands([actor], name, **arguments)[actor]

    def commands(self, actors: Iterable[str], name: str, **arguments: Any) -> dict[str, Any]:
        """Has several actors do the same at the same time; their results.

        Raises CommandFailed, ActorDied, Interrupted, ActorGone.
        """
        return self.each(dict.fromkeys(actors, arguments), name)

    def each(
        self, arguments: Mapping[str, dict[str, Any]], name: str, seconds: float = COMMAND_TIMEOUT
    ) -> dict[str, Any]:
        """The same with arguments of their own for each of the actors, and within so many seconds."""
        return self._fetch([self._send(actor, name, own) for actor, own in arguments.items()], name, seconds)

    def ask(self, actor: str, name: str, **arguments: Any) -> Asked:
        """Has one actor do something, and goes on; `answer` waits for it."""
        return Asked(self._send(actor, name, arguments), name)

    def answer(self, asked: Asked, seconds: float = COMMAND_TIMEOUT) -> Any:
        """The result of what was asked; raises as `commands` does."""
        [result] = self._fetch([asked.question], asked.name, seconds).values()
        return result

    def _fetch(self, asked: list[Question], name: str, seconds: float) -> dict[str, Any]:
        self._wait_for(asked, name, seconds)
        replies = {question.actor: self._answers.pop(question).reply for question in asked}
        for actor, reply in replies.items():
            self._folder.event(actor, f"did {name}", error=reply.error)
            if reply.error:
                raise CommandFailed(f"{actor}: {name}: {printable(reply.error)}")
        return {actor: reply.result for actor, reply in replies.items()}

    def living(self, actors: Iterable[str], name: str) -> None:
        """As `commands`, without those whose death was contained, before or meanwhile."""
        asked = [self._send(actor, name, {}) for actor in actors if actor not in self.lost]
        while asked:
            try:
                self._wait_for(asked, name, COMMAND_TIMEOUT, keep=True)
                break
            except ActorGone:
                asked = [question for question in asked if not self._why_unanswered(question)]
        for question in asked:
            reply = self._answers.pop(question).reply
            self._folder.event(question.actor, f"did {name}", error=reply.error)
            if reply.error:
                raise CommandFailed(f"{question.actor}: {name}: {printable(reply.error)}")

    def _send(self, actor: str, name: str, arguments: dict[str, Any]) -> Question:
        self._raise_if_lost(actor)
        self._number += 1
        self.actors[actor].last_did = f"was told to {name}"
        self.actors[actor].channel.post(Command(self._number, name, arguments))
        question = Question(actor, self._number)
        self._open.add(question)
        return question

    def _wait_for(self, asked: list[Question], name: str, seconds: float, keep: bool = False) -> None:
        """Until all of these are answered. Raises CommandFailed naming those that are not in time, ActorGone.

        After an error nobody asks for the answers any more, unless they are to be kept.
        """
        deadline = time.monotonic() + seconds
        try:
            while late := [question for question in asked if question not in self._answers]:
                if how := next(filter(None, map(self._why_unanswered, late)), ""):
                    raise ActorGone(how)
                if time.monotonic() > deadline:
                    names = ", ".join(question.actor for question in late)
                    raise CommandFailed(f"{names}: no answer to {name!r} within {seconds:.0f} s")
                self.poll(deadline - time.monotonic())
        except BaseException:
            for question in () if keep else asked:
                self._open.discard(question)
                self._answers.pop(question, None)
            raise

    def poll(self, seconds: float) -> None:
        """Waits once for whatever happens first. Raises ActorDied, Interrupted."""
        seconds = max(0.0, min(seconds, self.door.patience))
        if any(actor.channel.behind for actor in self.actors.values()):
            seconds = 0.0
        slow = [actor.channel.socket for actor in self.actors.values() if actor.channel.wants_room]
        for channel in slow:
            self._poller.modify(channel, zmq.POLLIN | zmq.POLLOUT)
        ready = {source for source, _ in self._poller.poll(int(seconds * 1000))}
        for channel in slow:
            self._poller.modify(channel, zmq.POLLIN)
        for actor in list(self.actors.values()):
            if actor.channel.socket in ready or actor.channel.behind:
                self._drain(actor)
                actor.channel.flush()
            if actor.channel.lost is not None and actor.role == "device":
                # One that hangs up, or sends messages without an end, is not to be commanded any more. All others hang
                # up as they die, which their pidfd tells.
                actor.kill()
        withdrawn = self.door.socket in ready and self.door.serve(self._status, self._stop)
        self._raise_if_interrupted()
        for actor in list(self.actors.values()):
            # Its VM may have been lost by a death before its own.
            if actor.pidfd in ready and self.actors.get(actor.name) is actor:
                self._died(actor)
        gone = self.door.departed()
        self.departed |= gone
        if withdrawn or self.door.revocable in gone:
            raise Withdrawn

    def wait_until_stopped(self, serve: Callable[[], None]) -> None:
        """Stays up until a signal or `stop`; `serve` is called whenever something happened. Raises ActorDied."""
        self.door.open = True
        while True:
            try:
                serve()
                self.poll(3600)
            except Interrupted:
                return

    def _drain(self, actor: Actor) -> None:
        for _ in range(_DRAIN):
            try:
                message = actor.channel.receive()
            except BlockingIOError:
                return
            except ValueError as error:  # a device is not trusted to speak the wire
                self._heard(actor, "sent a malformed message", str(error))
                continue
            if isinstance(message, Reply):
                question = Question(actor.name, message.number)
                if question in self._open:
                    self._open.discard(question)
                    self._answers[question] = Answer(message, actor.tally.as_dict())
                else:
                    self._heard(actor, "answered what it was not asked", message.number)

    def _heard(self, actor: Actor, what: str, fields: Any) -> None:
        """Notes what an actor says unasked, the first so many times: a flood of it shall not fill the disk."""
        actor.heard += 1
        if actor.heard <= _HEARD_NOTED:
            actor.last_did = what
            self._folder.event(actor.name, what, fields=repr(fields))

    def _died(self, actor: Actor) -> None:
        status = actor.exit_status()
        how = f"was killed by {signal.Signals(-status).name}" if status and status < 0 else f"exited with {status}"
        words = printable(actor.last_words())
        text = f"{actor.name} (pid {actor.pid}) {how}; it last {actor.last_did}; last in its log: {words}"
        self._folder.event(actor.name, "died", status=status, last_did=actor.last_did, log=words)
        if actor.name in self.expendable:
            self.retire(actor.name)
            self.fallen[actor.name] = text
            return
        on_death = actor.plan.on_death or ("contain" if self._contain else "end")
        if on_death == "restart" and self.restarts[actor.name] < _RESTARTS:
            self._restart(actor)
        elif on_death != "contain" or actor.role == "host":
            raise ActorDied(text)
        else:
            self._lose(actor, text)

    def _restart(self, actor: Actor) -> None:
        """Another process takes the place of a virtual switch; each front end is told where its port is now."""
        successor = self._plan.again(actor.name)
        self.retire(actor.name)
        self.restarts[actor.name] += 1
        try:
            self._spawn(successor, actor.name)
        finally:
            for fd in successor.fds:
                os.close(fd)
        for (hypervisor, device), port in zip(successor.fronts, successor.configuration["ports"], strict=True):
            if hypervisor not in self.lost:
                self._send(hypervisor, "connect_backend", {"device": device, "address": port["address"]})

    def _lose(self, actor: Actor, text: str) -> None:
        """Goes on without an actor; a VM whose hypervisor or guest died is gone, and all that runs in it."""
        alone = not actor.vms or actor.role == "app"
        others = set() if alone else {other.name for other in self.actors.values() if actor.vms[-1] in other.vms}
        for name in {actor.name} | others:
            self.retire(name)
            self._plan.pull(name)
            self.lost[name] = text if name == actor.name else f"{name} ended with {actor.name}"
            if not actor.plan.fronts:
                self._send("host", "gone", {"name": name})
        # The guest kernel that it ran on, if it did not run on the host.
        kernels = actor.vms if actor.role == "app" else actor.vms[:-1]
        for name in sorted({actor.name} | others) if kernels else ():
            self._send(guest_of(kernels[-1]), "gone", {"name": name})

    def _raise_if_lost(self, actor: str) -> None:
        if how := self.lost.get(actor) or self.fallen.get(actor):
            raise ActorGone(how)

    def _why_unanswered(self, question: Question) -> str:
        """Why nobody will answer; "" where somebody may."""
        name = question.actor
        if how := self.lost.get(name) or self.fallen.get(name):
            return how
        asked_now = question.number > self.actors[name].since
        return "" if asked_now else f"{name} died before it answered, and was started again"

    # --- the counts of both ends

    def reconcile(self) -> list[str]:
        """The wires whose ends disagree, once all is quiet; empty as it should be."""
        deadline = time.monotonic() + _QUIESCE
        while True:
            try:
                lines = disagreements(self._counts(), self.lost.keys() | self._plan.unserved(self.lost))
            except ActorGone:  # one died meanwhile: the others are counted anew
                continue
            if not lines or time.monotonic() > deadline:
                return lines
            self.poll(0.02)

    def messages(self) -> dict[str, Counter[str]]:
        """How many of each kind went over each wire up to now."""
        while True:
            with suppress(ActorGone):  # one died meanwhile: the others are counted anew
                return by_wire(self._counts())

    def _counts(self) -> list[dict[str, Any]]:
        asked = [self._send(name, "counts", {}) for name in self.actors]
        self._wait_for(asked, "counts", COMMAND_TIMEOUT)
        ends: list[dict[str, Any]] = []
        for question in asked:
            reply, mine = self._answers.pop(question)
            mine["received"]["Reply"] -= 1  # the actor took its counts before it sent them
            ends += [*checked_counts(reply.result), mine]
        return ends

    # --- messages in time

    def trace(self, on: bool) -> None:
        """Starts or stops noting when each message crosses each end of its wire; to be done while all is quiet."""
        self.commands(list(self.actors), "trace", on=on)

    def stamps(self) -> list[dict[str, Any]]:
        """What every actor noted since the trace began or since the last call (`measure.trace.crossings`)."""
        return [all_stamps(partial(self.command, name, "stamps")) for name in list(self.actors)]

    # --- stopping

    def quiesce(self) -> None:
        """Unplugs every device, so that no DMA arrives any more; gives up where the host is too busy for it."""
        try:
            self._wait_for([self._send("host", "unplug", {})], "unplug", _UNPLUG_TIMEOUT)
        except (ActorDied, ActorGone, CommandFailed, Interrupted):
            return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Of several supervisors that are up at the same time, the one that is waiting is to hear of it, whichever."""
        self._interrupt(signal.Signals(number).name)
        if self._outer is not None:
            self._outer._on_signal(number, frame)

    def _interrupt(self, reason: str) -> None:
        self._interrupted = reason
        with suppress(BlockingIOError):
            os.write(self._wake[1], b"\0")

    def _stop(self) -> None:
        self._interrupted = "the control message stop"

    def _raise_if_interrupted(self) -> None:
        if self._interrupted:
            reason, self._interrupted = self._interrupted, ""
            self._folder.event("launcher", "interrupted", by=reason)
            while True:
                try:
                    os.read(self._wake[0], 64)
                except BlockingIOError:
                    break
            raise Interrupted(f"ended by {reason}")

    def _status(self) -> dict[str, Any]:
        return {
            "processes": [
                {"role": actor.role, "name": actor.name, "pid": actor.pid, "last_did": actor.last_did}
                for actor in self.actors.values()
            ]
        } | self.more_status()


def _supervisor_of(handler: object) -> Supervisor | None:
    """Whose handler of signals that is; None for another's."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Supervisor) else None
