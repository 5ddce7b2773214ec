"""Network devices as whoever has them offers them to the launcher: frames that are numbered, and checked byte for byte.

The same commands stand before a kernel's driver and before an application's.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from errno import ETIMEDOUT
from typing import Any, Final, Protocol

from viommu_actors.pattern import pattern
from viommu_actors.spec import nic

BROADCAST = b"\xff" * 6
#: Seconds in which frames are to come, however many others come before them and between them.
RECEIVE_TIMEOUT: Final = 30.0
_TYPE = nic.ETHERTYPE_EXPERIMENTAL.to_bytes(2, "big")


def numbered_frame(number: int, size: int, destination: bytes, source: bytes) -> bytes:
    """A frame of `size` bytes (22 at least), header included, whose content differs for each number."""
    header = destination + source + _TYPE
    return header + pattern(number, size - len(header))


class Netdev(Protocol):
    """One interface, in the hands of a driver."""

    @property
    def mac(self) -> bytes: ...

    @property
    def max_frame(self) -> int:
        """Bytes of the longest frame, from its destination on."""
        ...

    @property
    def mapping(self) -> str:
        """ "static" where packet buffers are mapped once, "dynamic" where each is mapped for its packet."""
        ...

    @property
    def link_up(self) -> bool:
        """Whether somebody is at the other end."""
        ...

    def listen(self) -> None:
        """Takes frames from here on, up to as many as there are buffers until `receive`."""
        ...

    def send(self, frame: bytes) -> None:
        """Sends a frame, and waits until the device has taken it.

        Raises OSError: EINVAL for a length that no frame has, ETIMEDOUT, EIO where the device failed.
        """
        ...

    def receive(self) -> bytes:
        """The next frame, whoever it is for: no device filters here, and a switch floods what it does not know.

        Raises OSError: ETIMEDOUT where none comes, EIO where the device failed.
        """
        ...


class NetCommands:
    """Control commands of network devices; BDFs are texts like `00:03.0`."""

    def __init__(self, find: Callable[[str], Netdev], clock: Callable[[], float]) -> None:
        """`find` raises what becomes the command's error where there is no such network device; `clock` is monotonic,
        in seconds."""
        self._find = find
        self._clock = clock

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {
            "netdev": self.netdev,
            "link_up": lambda bdf: self._find(bdf).link_up,
            "listen": lambda bdf: self._find(bdf).listen(),
            "send": self.send,
            "receive": self.receive,
        }

    def netdev(self, bdf: str) -> dict[str, Any]:
        """What there is to know of the interface, and of its driver."""
        device = self._find(bdf)
        return {"mac": device.mac, "max_frame": device.max_frame, "mapping": device.mapping}

    def send(self, bdf: str, first: int, count: int, size: int, destination: bytes) -> bytes:
        """Sends frames number `first` to `first + count - 1`; nanoseconds of each, as 64-bit integers."""
        device = self._find(bdf)
        taken = array("q")
        for number in range(first, first + count):
            frame = numbered_frame(number, size, destination, device.mac)
            began = self._clock()
            device.send(frame)
            taken.append(round(1e9 * (self._clock() - began)))
        return taken.tobytes()

    def receive(
        self, bdf: str, first: int, count: int, size: int, destination: bytes, source: bytes
    ) -> dict[str, Any]:
        """Receives as many frames: whether they are those that `source` sent by `send`, in order, byte for byte.

        One that came before may come again, from a switch that was started again before it had said that it was done
        with it: `repeated` counts those. Those for others are passed over. Raises OSError as `Netdev.receive`.
        """
        device = self._find(bdf)
        own = device.mac, destination, BROADCAST
        deadline = self._clock() + RECEIVE_TIMEOUT
        repeated = 0
        for number in range(first, first + count):
            before = numbered_frame(number - 1, size, destination, source) if number else None
            while (frame := device.receive()) == before or not frame.startswith(own):
                repeated += frame == before
                if self._clock() >= deadline:
                    raise OSError(ETIMEDOUT, f"{bdf}: frame {number} did not come in {RECEIVE_TIMEOUT:g} s")
            if frame != numbered_frame(number, size, destination, source):
                return {"verified": False, "repeated": repeated}
        return {"verified": True, "repeated": repeated}
