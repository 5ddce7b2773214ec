"""The Ethernet controller of `spec.nic`: two descriptor rings, loopback or a cable.

What a driver puts in registers and rings is bounded before use: a ring moves one descriptor at a time
and ends at the tail, frames have a longest length, and a ring whose descriptors cannot be read stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from viommu_actors.devices.dma_engine import Task, Transfer
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.pci import config_space
from viommu_actors.spec import nic, pci, tlp
from viommu_actors.spec.nic import Cause, Control, Done, Flag, Reg, Status, Vector

#: Frames from the cable that wait for the receive ring; more are dropped.
_RECEIVE_QUEUE = 64
_DESCRIPTOR_SIZE = nic.DESCRIPTOR.size
_VECTORS = {Cause.RX_DONE: Vector.RECEIVE, Cause.TX_DONE: Vector.TRANSMIT}


@dataclass
class _Ring:
    """One ring's registers, what they stand for while it works, and whether its task runs."""

    halted_bit: Status
    base: int = 0
    size: int = 0
    head: int = 0
    tail: int = 0
    busy: bool = False

    @property
    def address(self) -> int:
        """Where the descriptor at the head stands."""
        return self.base + self.head * _DESCRIPTOR_SIZE

    @property
    def valid(self) -> bool:
        size = self.size
        return nic.MIN_RING <= size <= nic.MAX_RING and not size & (size - 1) and not self.base % _DESCRIPTOR_SIZE

    @property
    def empty(self) -> bool:
        return self.head == self.tail


class Nic(Endpoint):
    """`send_frame` is its end of a cable (None: no cable); `receive_frame` takes what comes from the other end.

    With `msix` it has three MSI-X vectors beside its MSI and its INTx, with `ats` address translation services.
    """

    def __init__(
        self,
        send: Callable[[tlp.Upstream], None],
        log: Callable[[str], None] = lambda _: None,
        *,
        mac: bytes,
        max_payload: int = 4096,
        msix: bool = True,
        ats: bool = False,
        send_frame: Callable[[bytes], None] | None = None,
    ) -> None:
        if len(mac) != 6:
            raise ValueError("a MAC address has 6 bytes")
        config = config_space.endpoint_header(nic.VENDOR_ID, nic.DEVICE_ID, pci.ClassCode.ETHERNET, nic.REVISION)
        config.add_bar(nic.BAR, nic.BAR_SIZE)
        config_space.add_power_management(config)
        config_space.add_intx(config)
        config_space.add_msi(config)
        if msix:
            config.add_bar(nic.MSIX_BAR, nic.MSIX_BAR_SIZE)
            config_space.add_msix(config, nic.MSIX_BAR, len(nic.Vector), nic.MSIX_TABLE, nic.MSIX_PBA)
        config_space.add_express(config, pci.PortType.ENDPOINT, max_payload)
        if ats:
            config_space.add_ats(config)
        super().__init__(config, send, log)
        self._mac = int.from_bytes(mac, "little")
        self._send_frame = send_frame
        self._link_up = send_frame is not None
        self.device_reset()

    def device_reset(self) -> None:
        self._control = 0
        self._halted = Status(0)
        self._cause = 0
        self._cause_enable = 0
        #: causes that an interrupt was asked for
        self._raised = 0
        self._tx = _Ring(Status.TX_HALTED)
        self._rx = _Ring(Status.RX_HALTED)
        self._frames: deque[bytes] = deque()
        self._statistics = dict.fromkeys(nic.STATISTICS, 0)
        self.set_intx(False)

    # --- cable

    def receive_frame(self, frame: bytes) -> None:
        """A frame arrives by the cable. It is dropped unless the controller is on, listens, and has room."""
        listens = self._control & Control.ENABLE and not self._control & Control.LOOPBACK
        fits = nic.MIN_FRAME <= len(frame) <= nic.MAX_FRAME
        if not listens or not fits or len(self._frames) >= _RECEIVE_QUEUE:
            self._statistics["rx_dropped"] += 1
            return
        self._frames.append(frame)
        if not self._rx.busy:
            self._rx.busy = True
            self.start(self._receive_queued())

    def set_link(self, up: bool) -> None:
        """The other end of the cable was plugged in or out."""
        if up != self._link_up and self._send_frame is not None:
            self._link_up = up
            self._raise(Cause.LINK_CHANGED)

    # --- registers

    def bar_read(self, bar: int, offset: int, size: int) -> int | None:
        if size == 8:
            return self._register(offset) | self._register(offset + 4) << 32
        return self._register(offset) if size == 4 else None

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if size == 8:
            self._set_register(offset, value & 0xFFFF_FFFF)
            self._set_register(offset + 4, value >> 32)
        elif size == 4:
            self._set_register(offset, value)

    def _register(self, offset: int) -> int:
        index, half = divmod(offset - Reg.STATISTICS, 8)
        if 0 <= index < len(nic.STATISTICS):
            return self._statistics[nic.STATISTICS[index]] >> half * 8 & 0xFFFF_FFFF
        ring = self._rx if offset >= Reg.RX_BASE else self._tx
        match offset:
            case Reg.CONTROL:
                return self._control
            case Reg.STATUS:
                return self._halted | (Status.LINK_UP if self._has_link() else 0)
            case Reg.CAUSE:
                return self._cause
            case Reg.CAUSE_ENABLE:
                return self._cause_enable
            case Reg.MAC_LOW:
                return self._mac & 0xFFFF_FFFF
            case Reg.MAC_HIGH:
                return self._mac >> 32
            case Reg.TX_BASE | Reg.RX_BASE:
                return ring.base & 0xFFFF_FFFF
            case Reg.TX_BASE_HIGH | Reg.RX_BASE_HIGH:
                return ring.base >> 32
            case Reg.TX_SIZE | Reg.RX_SIZE:
                return ring.size
            case Reg.TX_HEAD | Reg.RX_HEAD:
                return ring.head
            case Reg.TX_TAIL | Reg.RX_TAIL:
                return ring.tail
        return 0

    def _set_register(self, offset: int, value: int) -> None:
        if offset in (Reg.TX_TAIL, Reg.RX_TAIL):
            self._doorbell(self._tx if offset == Reg.TX_TAIL else self._rx, value)
        elif offset == Reg.CONTROL:
            self._set_control(value)
        elif offset == Reg.CAUSE:
            self._cause &= ~value
            self._raised &= ~value
            self._drive()
        elif offset == Reg.CAUSE_ENABLE:
            self._cause_enable = value & (Cause.TX_DONE | Cause.RX_DONE | Cause.LINK_CHANGED | Cause.ERROR)
            self._drive()
        elif not self._control & Control.ENABLE:
            self._set_ring(offset, value)

    def _set_ring(self, offset: int, value: int) -> None:
        ring = self._rx if offset >= Reg.RX_BASE else self._tx
        match offset:
            case Reg.TX_BASE | Reg.RX_BASE:
                ring.base = ring.base & ~0xFFFF_FFFF | value
            case Reg.TX_BASE_HIGH | Reg.RX_BASE_HIGH:
                ring.base = ring.base & 0xFFFF_FFFF | value << 32
            case Reg.TX_SIZE | Reg.RX_SIZE:
                ring.size = value

    def _set_control(self, value: int) -> None:
        if value & Control.RESET:
            self.cancel_tasks()
            self.device_reset()
            return
        was_on = self._control & Control.ENABLE
        if was_on and not value & Control.ENABLE:
            self.cancel_tasks()
            self._frames.clear()
            for ring in (self._tx, self._rx):
                ring.head = ring.tail = 0
                ring.busy = False
            self._halted = Status(0)
        if not was_on and value & Control.ENABLE:
            for ring in (self._tx, self._rx):
                if not ring.valid:
                    self._halt(ring, "bad_descriptors", f"ring of {ring.size} at {ring.base:#x} is refused")
        # The mode of a controller that works is fixed.
        mode = (self._control if was_on and value & Control.ENABLE else value) & Control.LOOPBACK
        self._control = value & Control.ENABLE | mode

    def _doorbell(self, ring: _Ring, tail: int) -> None:
        if not self._control & Control.ENABLE or self._halted & ring.halted_bit:
            return
        if tail >= ring.size:
            self._halt(ring, "bad_descriptors", f"tail {tail} is beyond a ring of {ring.size}")
            return
        ring.tail = tail
        if ring is self._tx and not ring.busy:
            ring.busy = True
            self.start(self._transmit())

    # --- rings

    def _transmit(self) -> Task:
        ring = self._tx
        while not ring.empty and not self._halted & ring.halted_bit:
            descriptor = yield from self._fetch(ring)
            if descriptor is None:
                break
            address, length, flags, _, _ = descriptor
            frame = None
            if nic.MIN_FRAME <= length <= nic.MAX_FRAME:
                frame = yield from self.dma_read(address, length)
                if frame is None:
                    self._count_error("dma_errors", f"nic: frame at {address:#x} could not be read")
            else:
                self._count_error("bad_descriptors", f"nic: no frame has {length} bytes")
            sent = frame is not None and self._has_link()
            yield from self._write_back(ring, 0, Done.DONE if sent else Done.DONE | Done.ERROR)
            self._finish_one(Cause.TX_DONE, flags)
            if sent and frame is not None:
                self._statistics["tx_packets"] += 1
                self._statistics["tx_bytes"] += length
                if self._control & Control.LOOPBACK:
                    yield from self._deliver(frame)
                elif self._send_frame is not None:
                    self._send_frame(frame)
        ring.busy = False

    def _receive_queued(self) -> Task:
        while self._frames:
            yield from self._deliver(self._frames.popleft())
        self._rx.busy = False

    def _deliver(self, frame: bytes) -> Generator[Transfer, None, None]:
        """One frame into the buffer of the receive descriptor at the head; dropped where there is none."""
        ring = self._rx
        if ring.empty or self._halted & ring.halted_bit:
            self._statistics["rx_dropped"] += 1
            return
        descriptor = yield from self._fetch(ring)
        if descriptor is None:
            return
        address, length, flags, _, _ = descriptor
        if length < len(frame):
            self._count_error("bad_descriptors", f"nic: a buffer of {length} bytes is too short for {len(frame)}")
            yield from self._write_back(ring, 0, Done.DONE | Done.ERROR)
        else:
            yield from self.dma_write(address, frame)
            yield from self._write_back(ring, len(frame), Done.DONE)
            self._statistics["rx_packets"] += 1
            self._statistics["rx_bytes"] += len(frame)
        self._finish_one(Cause.RX_DONE, flags)

    def _fetch(self, ring: _Ring) -> Generator[Transfer, None, tuple[int, int, int, int, int] | None]:
        """The descriptor at the head; None, and the ring halts, where it cannot be read."""
        data = yield from self.dma_read(ring.address, _DESCRIPTOR_SIZE)
        if data is None:
            self._halt(ring, "dma_errors", f"descriptor at {ring.address:#x} could not be read")
            return None
        address, length, flags, received, status = nic.DESCRIPTOR.unpack(data)
        return address, length, flags, received, status

    def _write_back(self, ring: _Ring, received: int, status: int) -> Generator[Transfer, None, None]:
        yield from self.dma_write(ring.address + nic.WRITE_BACK_OFFSET, nic.WRITE_BACK.pack(received, status))
        ring.head = (ring.head + 1) % ring.size

    def _finish_one(self, cause: Cause, flags: int) -> None:
        if flags & Flag.INTERRUPT:
            self._raise(cause)
        else:
            self._cause |= cause

    def _halt(self, ring: _Ring, statistic: str, why: str) -> None:
        self._halted |= ring.halted_bit
        side = "transmit" if ring is self._tx else "receive"
        self._count_error(statistic, f"nic: {side} ring halted: {why}")

    def _count_error(self, statistic: str, line: str) -> None:
        self._statistics[statistic] += 1
        self.complain(statistic, line)
        self._raise(Cause.ERROR)

    def _raise(self, cause: Cause) -> None:
        self._cause |= cause
        self._raised |= cause
        self._drive()
        if cause & self._cause_enable:
            self.interrupt(_VECTORS.get(cause, Vector.OTHER))

    def _drive(self) -> None:
        self.set_intx(bool(self._raised & self._cause_enable))

    def _has_link(self) -> bool:
        return self._link_up or bool(self._control & Control.LOOPBACK)
