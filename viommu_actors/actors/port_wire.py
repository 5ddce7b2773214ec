"""The virtual switch's end of the wire of one port: never blocks, and polls for room only while something waits."""

from __future__ import annotations

from collections import deque
from typing import Any

import zmq

from viommu_actors.actors.runtime import log
from viommu_actors.spec import vhost
from viommu_actors.wire.codec import Defect, MalformedMessage, Message
from viommu_actors.wire.libzmq import bind_link, receive_frame, send_frame
from viommu_actors.wire.sockets import Listener
from viommu_actors.wire.tally import Tally
from viommu_actors.wire.vhost import VHOST_DOWN, VHOST_UP

#: An enum's bits are expensive.
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)


class PortWire:
    """Messages of one port; what waits is as much as a port has to say until it is answered (`Port.is_full`)."""

    def __init__(
        self, context: zmq.Context[Any], poller: zmq.Poller, listener: Listener, device: str, end: str
    ) -> None:
        #: What the poller returns for it.
        self.socket = bind_link(context, listener)
        self.tally = Tally(f"vhost:{device}", end)
        self._device = device
        self._poller = poller
        self._waiting: deque[bytes] = deque()
        poller.register(self.socket, zmq.POLLIN)

    def send(self, message: Message) -> None:
        """Sends now, or as soon as there is room."""
        self.tally.sent[type(message)] += 1
        frame = VHOST_UP.encode(message)
        if self._waiting or not self._send(frame):
            if not self._waiting:
                self._poller.modify(self.socket, zmq.POLLIN | zmq.POLLOUT)
            self._waiting.append(frame)

    def _start_over(self) -> None:
        """Another connection of the front end: whatever waits for it is nothing to it, and both count anew."""
        self._waiting.clear()
        self._poller.modify(self.socket, zmq.POLLIN)
        self.tally.start_over()

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        waiting = self._waiting
        while waiting and self._send(waiting[0]):
            waiting.popleft()
        if not waiting:
            self._poller.modify(self.socket, zmq.POLLIN)

    @property
    def waits(self) -> bool:
        """Whether something waits for room."""
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether a message waits: half the time of an attempt to receive one that fails."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def receive(self) -> Message | None:
        """The next message; None for something that is none, which has been counted. One is `ready`."""
        frame = receive_frame(self.socket, _NOBLOCK)
        try:
            if frame is None:
                raise MalformedMessage(Defect.FRAMES, "several frames")
            message = VHOST_DOWN.decode(frame)
        except MalformedMessage as error:
            self.tally.rejected[error.defect] += 1
            log(f"{self._device}: {error}")
            return None
        if type(message) is vhost.GetFeatures:
            self._start_over()
        self.tally.received[type(message)] += 1
        return message

    def _send(self, frame: bytes) -> bool:
        try:
            send_frame(self.socket, frame, _NOBLOCK)
        except zmq.Again:
            return False
        return True
