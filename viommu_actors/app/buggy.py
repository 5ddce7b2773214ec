"""A buggy application: it programs its honest device with addresses that are none of its buffers.

The device does as it is told. What comes of it depends on what stands between the device and the memory.
"""

from __future__ import annotations

from errno import ENOMEM, ETIMEDOUT

from viommu_actors.app.mempool import Mbuf
from viommu_actors.app.pmd_nic import NicPort
from viommu_actors.app.system import System

#: Seconds until the device has done what it can.
_PATIENCE = 2.0


def stray_write(system: System, port: NicPort, address: int, data: bytes) -> None:
    """Has the device receive `data`, a frame of 14 bytes at least, at `address`. Raises OSError where it does not."""
    port.start(loopback=True)
    try:
        port.misdirect_receive(address)
        frame = _buffer(port, len(data))
        system.memory.write(frame.vaddr, data)
        port.tx_burst([frame])
        _wait(system, port)
    finally:
        port.stop()


def stray_read(system: System, port: NicPort, address: int, length: int) -> None:
    """Has the device send `length` bytes (14 at least) from `address`, to itself. Raises as `stray_write` does."""
    port.start(loopback=True)
    try:
        port.misdirect_transmit(_buffer(port, length), address)
        _wait(system, port)
    finally:
        port.stop()


def _buffer(port: NicPort, length: int) -> Mbuf:
    mbuf = port.pool.get()
    if mbuf is None:
        raise OSError(ENOMEM, "the pool has no buffer left to send")
    mbuf.length = length
    return mbuf


def _wait(system: System, port: NicPort) -> None:
    """Until the frame has come, or could not be sent."""
    errors = port.statistics["oerrors"] + port.statistics["ierrors"]
    deadline = system.clock() + _PATIENCE
    while True:
        received = port.rx_burst(1)
        port.tx_done_cleanup()
        for mbuf in received:
            mbuf.free()
        if received or port.statistics["oerrors"] + port.statistics["ierrors"] > errors:
            return
        if system.clock() > deadline:
            port.check()
            raise OSError(ETIMEDOUT, f"{port.name}: no frame in {_PATIENCE:g} s")
        system.pause()
