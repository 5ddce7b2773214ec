"""A network port of an application, whatever device it is (DPDK: an ethdev)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from viommu_actors.app.mempool import Mbuf, Mempool
from viommu_actors.app.pci import Function


class Port(Protocol):
    """`statistics` in DPDK's names: ipackets, ibytes, opackets, obytes, ierrors, oerrors, rx_nombuf."""

    name: str
    function: Function
    pool: Mempool
    statistics: Counter[str]
    mac: bytes
    #: from `start` to `stop`
    running: bool

    @property
    def max_frame(self) -> int:
        """Bytes of the longest frame."""
        ...

    @property
    def loops(self) -> bool:
        """Whether it receives what it sends, where nobody is at the other end."""
        ...

    @property
    def link_up(self) -> bool:
        """Whether somebody is."""
        ...

    @property
    def rx_interrupt(self) -> bool:
        """Whether the port may be slept on."""
        ...

    def start(self) -> None:
        """Rings and receive buffers, anew where it runs."""
        ...

    def stop(self) -> None:
        """No more DMA of the device; all buffers back."""
        ...

    def close(self) -> None:
        """Stopped, and off the bus."""
        ...

    def rx_burst(self, count: int) -> list[Mbuf]:
        """Up to `count` packets that have arrived; the caller frees or sends them. OSError(EIO): the device lies."""
        ...

    def tx_burst(self, mbufs: Sequence[Mbuf]) -> int:
        """Sends as many as there is room for, from the first; those are the driver's then, the others stay."""
        ...

    def tx_done_cleanup(self) -> int:
        """Frees what was sent, or could not be; how many are not sent yet."""
        ...

    def check(self) -> None:
        """Asks the device whether it still works, which no steady state does. Raises OSError(EIO)."""
        ...

    def controller_statistics(self) -> dict[str, int]:
        """What the device counted since it was taken into use; empty where it counts nothing."""
        ...
