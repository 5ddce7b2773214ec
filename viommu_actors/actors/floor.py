"""A floor: what the wires cost with nothing on them but the fastest calls of ZeroMQ and bare msgpack.

No validation, no counting, no work. Each process stands where an actor stands, on the same CPU, with the same types
of socket and the same payload; every command is given to all that take part in it, and each does its part.
"""

from __future__ import annotations

import select
import socket
from array import array
from time import perf_counter_ns, sleep
from typing import Any

import msgpack
import zmq

from viommu_actors.actors.control import Control
from viommu_actors.actors.runtime import inbox_listener
from viommu_actors.spec import tlp
from viommu_actors.wire import messages as m
from viommu_actors.wire.codec import Codec, Message
from viommu_actors.wire.inbox import Inbox
from viommu_actors.wire.libzmq import bind_link, bind_router, connect, make_context, send_frame
from viommu_actors.wire.link import LINK_DOWN, LINK_UP

_DRAIN = 64
_MORE = int(zmq.SNDMORE)


def _payload(codec: Codec, message: Message) -> tuple[Any, ...]:
    """What msgpack makes the same frame of as the wire's own codec."""
    return tuple(msgpack.unpackb(codec.encode(message)))


#: The messages of a register read, and of a strict map of one page.
_TRAP_READ = _payload(m.TRAP, m.TrapRead(0xFED9_0000, 4))
_TRAP_VALUE = _payload(m.TRAP_ANSWER, m.TrapValue(0x10))
_TRAP_WRITE = _payload(m.TRAP, m.TrapWrite(0xFED9_0088, 4, 0x320))
_TRAP_DONE = _payload(m.TRAP_ANSWER, m.TrapDone(False))
_MAP_DMA = _payload(m.VFIO, m.MapDma(3, 3, 0x7F00_0000_0000, 0xFFFF_F000, 4096))
_DONE = _payload(m.VFIO_ANSWER, m.Done(0))


class FloorActor:
    """One process of the floor. `part` is guest, hypervisor, host, device, or root, which has the links of many."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        name: str = configuration["name"]
        self._part: str = configuration["part"]
        context = make_context()
        self._inbox = Inbox(inbox_listener(configuration), select.epoll())
        self._serve: zmq.Socket[bytes] | None = None
        if "serve" in configuration:
            self._serve = bind_router(context, inbox_listener(configuration, "serve"))
        self._ask: zmq.Socket[bytes] | None = None
        if "ask" in configuration:
            self._ask = connect(context, configuration["ask"], name)
        self._links = [connect(context, address) for address in configuration.get("links", ())]
        if "link" in configuration:
            self._links.append(bind_link(context, inbox_listener(configuration, "link")))
        self._unix = socket.socket(fileno=configuration["unix"]) if "unix" in configuration else None
        self._pack = msgpack.Packer(autoreset=True).pack
        self._control = Control(self._inbox, name, [])
        self._control.register(
            {
                "round_trips": self._round_trips,
                "chain": self._chain,
                "unix": self._unix_round_trips,
                "posted": self._posted,
                "reads": self._reads,
                "stream": self._stream,
            }
        )

    def run(self) -> None:
        """Serves until the process ends."""
        while True:
            _, frame = self._inbox.receive()
            command = self._control.decode(frame)
            if command is not None:
                self._control.run(command)

    # --- a trap, and a trap that goes on to the host

    def _round_trips(self, count: int) -> bytes | None:
        """DEALER to ROUTER and back: guest and hypervisor."""
        if self._part == "guest":
            return self._call(count, _TRAP_READ)
        self._answer(count, _TRAP_VALUE)
        return None

    def _chain(self, count: int) -> bytes | None:
        """Guest, hypervisor, host and back."""
        if self._part == "guest":
            return self._call(count, _TRAP_WRITE)
        if self._part == "host":
            self._answer(count, _DONE)
            return None
        assert self._ask is not None and self._serve is not None
        serve, recv, ask, pack, unpack = self._serve, self._serve.recv, self._ask, self._pack, msgpack.unpackb
        for _ in range(count):
            peer = recv()
            unpack(recv())
            send_frame(ask, pack(_MAP_DMA))
            unpack(ask.recv())
            send_frame(serve, peer, _MORE)
            send_frame(serve, pack(_TRAP_DONE))
        return None

    def _call(self, count: int, request: tuple[Any, ...]) -> bytes:
        assert self._ask is not None
        ask, recv, pack, unpack = self._ask, self._ask.recv, self._pack, msgpack.unpackb
        taken = array("q")
        for _ in range(count):
            began = perf_counter_ns()
            send_frame(ask, pack(request))
            unpack(recv())
            taken.append(perf_counter_ns() - began)
        return taken.tobytes()

    def _answer(self, count: int, answer: tuple[Any, ...]) -> None:
        assert self._serve is not None
        serve, recv, pack, unpack = self._serve, self._serve.recv, self._pack, msgpack.unpackb
        for _ in range(count):
            peer = recv()
            unpack(recv())
            send_frame(serve, peer, _MORE)
            send_frame(serve, pack(answer))

    def _unix_round_trips(self, count: int) -> bytes | None:
        """AF_UNIX stream, no ZeroMQ and no msgpack: guest and hypervisor."""
        assert self._unix is not None
        send, recv = self._unix.sendall, self._unix.recv
        request, answer = self._pack(_TRAP_READ), self._pack(_TRAP_VALUE)
        if self._part != "guest":
            for _ in range(count):
                recv(4096)
                send(answer)
            return None
        taken = array("q")
        for _ in range(count):
            began = perf_counter_ns()
            send(request)
            recv(4096)
            taken.append(perf_counter_ns() - began)
        return taken.tobytes()

    # --- a link: device and host

    def _posted(self, count: int, length: int, gap: float) -> bytes:
        """Writes nobody answers: when each was begun, or had arrived."""
        link, pack, times = self._links[0], self._pack, array("q")
        if self._part == "device":
            write = _payload(LINK_UP, tlp.MemWrite(0x100, 0, 0xFFFF_F000, 15, 15, bytes(length)))
            for _ in range(count):
                times.append(perf_counter_ns())
                send_frame(link, pack(write))
                sleep(gap)
        else:
            for _ in range(count):
                msgpack.unpackb(link.recv())
                times.append(perf_counter_ns())
        return times.tobytes()

    def _reads(self, count: int, length: int) -> bytes | None:
        """Reads one after another."""
        link, pack, unpack = self._links[0], self._pack, msgpack.unpackb
        if self._part != "device":
            self._complete(count, length)
            return None
        taken, read = array("q"), _mem_read(length)
        for _ in range(count):
            began = perf_counter_ns()
            send_frame(link, pack(read))
            unpack(link.recv())
            taken.append(perf_counter_ns() - began)
        return taken.tobytes()

    def _stream(self, count: int, length: int, window: int) -> tuple[int, int] | None:
        """Reads with `window` outstanding, of each device: (began, ended)."""
        if self._part == "root":
            self._complete_all(count * len(self._links), length)
            return None
        if self._part == "host":
            self._complete(count, length)
            return None
        link, pack, unpack, read = self._links[0], self._pack, msgpack.unpackb, _mem_read(length)
        began = perf_counter_ns()
        for _ in range(min(window, count)):
            send_frame(link, pack(read))
        for _ in range(count - window):
            unpack(link.recv())
            send_frame(link, pack(read))
        for _ in range(min(window, count)):
            unpack(link.recv())
        return began, perf_counter_ns()

    def _complete(self, count: int, length: int) -> None:
        """The host's part of one link."""
        link, pack, unpack = self._links[0], self._pack, msgpack.unpackb
        completion = _completion(length)
        for _ in range(count):
            unpack(link.recv())
            send_frame(link, pack(completion))

    def _complete_all(self, count: int, length: int) -> None:
        """The host's part of many: up to 64 messages of each link that has some at every wake."""
        poller, pack, unpack = zmq.Poller(), self._pack, msgpack.unpackb
        for link in self._links:
            poller.register(link, zmq.POLLIN)
        completion = _completion(length)
        while count:
            for link, _ in poller.poll():
                for _ in range(_DRAIN):
                    try:
                        frame = link.recv(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    unpack(frame)
                    send_frame(link, pack(completion))
                    count -= 1


def _mem_read(length: int) -> tuple[Any, ...]:
    return _payload(LINK_UP, tlp.MemRead(0x100, 0, 0, 0xFFFF_F000, length // tlp.DWORD, 15, 15))


def _completion(length: int) -> tuple[Any, ...]:
    return _payload(LINK_DOWN, tlp.Completion(0, 0, length, bytes(length)))
