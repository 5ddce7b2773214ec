"""A virtio network device after the standard's text, with numbers of its own: what the drivers are tested against.

It works in one process on a machine of the tests, and reaches memory through that machine's remapping unit. What it
transmits goes to `wire`; what it is to receive comes by `deliver`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.devices.rig import Factory, Rig
from tests.kernel.fake_machine import FakeFunction, FakeMachine
from viommu_actors.memory import PhysicalMemory
from viommu_actors.pci import config_space
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

SLOT = 4
BDF = SLOT << 3
NAME = "0000:00:04.0"
MAC = bytes.fromhex("020000000104")
VERSION_1, ACCESS_PLATFORM = 1 << 32, 1 << 33
NET_MTU, NET_MAC, NET_STATUS = 1 << 3, 1 << 5, 1 << 16
FEATURES = VERSION_1 | ACCESS_PLATFORM | NET_MTU | NET_MAC | NET_STATUS
NO_VECTOR = 0xFFFF


class TestQueue:
    """What the common configuration keeps of a queue, and how far the device has come in it."""

    __test__ = False

    def __init__(self, largest: int) -> None:
        self.size, self.vector, self.enabled = largest, NO_VECTOR, 0
        self.places = [0, 0, 0]
        self.seen = self.used = 0


class VirtioDevice:
    """Registers and queues. `at_once`: it works as soon as it is notified, else when `work` is called."""

    def __init__(self, machine: _WithVirtio, features: int = FEATURES, largest: int = 256, mtu: int = 4070) -> None:
        self.machine = machine
        self.offered = features
        self.largest = largest
        self.config = bytearray(MAC + struct.pack("<HHH", 1, 1, mtu))
        self.generation = 0
        self.vectors = bytearray(3 * 16)
        self.at_once = True
        self.refuses_features = False
        self.never_resets = False
        self.wire: Callable[[bytes], None] = lambda frame: None
        #: frames for which there was no buffer yet
        self.waiting: deque[bytes] = deque()
        self.notified: list[int] = []
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        self.resets += 1
        self.status = self.taken = self.feature_select = self.driver_select = self.select = self.isr = 0
        self.config_vector = NO_VECTOR
        self.queues = [TestQueue(self.largest), TestQueue(self.largest)]

    # --- registers: BAR 4 with a page for each structure, and the MSI-X table in BAR 1

    def read(self, bar: int, offset: int, size: int) -> int:
        if bar == 1:
            return int.from_bytes(self.vectors[offset : offset + size], "little")
        page, at = divmod(offset, 0x1000)
        if page == 0:
            return self._common(at, size)
        if page == 1:
            isr, self.isr = self.isr, 0
            return isr
        return int.from_bytes(self.config[at : at + size], "little") if page == 2 else 0

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == 1:
            self.vectors[offset : offset + size] = value.to_bytes(size, "little")
        elif offset < 0x1000:
            self._set_common(offset, size, value)
        elif offset >= 0x3000:
            assert size == 2 and offset == 0x3000 + 4 * value, "a queue's own doorbell, with its number"
            self.notified.append(value)
            if self.at_once:
                self.work()

    def _common(self, at: int, size: int) -> int:
        queue = self.queues[self.select] if self.select < 2 else TestQueue(0)
        places = struct.unpack("<6I", struct.pack("<3Q", *queue.places))
        values = {
            0x00: (4, self.feature_select),
            0x04: (4, self.offered >> 32 * self.feature_select & 0xFFFF_FFFF),
            0x10: (2, self.config_vector),
            0x12: (2, 2),
            0x14: (1, self.status),
            0x15: (1, self.generation),
            0x18: (2, queue.size),
            0x1A: (2, queue.vector),
            0x1C: (2, queue.enabled),
            0x1E: (2, self.select),
            **{0x20 + 4 * index: (4, value) for index, value in enumerate(places)},
        }
        width, value = values[at]
        assert size == width, f"{at:#x} has {width} bytes"
        return value

    def _set_common(self, at: int, size: int, value: int) -> None:
        queue = self.queues[self.select]
        assert size == {0x14: 1}.get(at, 2 if 0x10 <= at < 0x20 else 4)
        if at == 0x00:
            self.feature_select = value
        elif at == 0x08:
            self.driver_select = value
        elif at == 0x0C:
            assert not self.status & 8, "no change of features after FEATURES_OK"
            self.taken |= value << 32 * self.driver_select
        elif at == 0x10:
            self.config_vector = value
        elif at == 0x14:
            self._set_status(value)
        elif at == 0x16:
            self.select = value
        elif at in (0x18, 0x1A, 0x1C) or at >= 0x20:
            assert self.status & 8 and not queue.enabled, "queues are set up after the features and before use"
            self._set_queue(queue, at, value)
        else:
            raise AssertionError(f"{at:#x} is not to be written")

    def _set_queue(self, queue: TestQueue, at: int, value: int) -> None:
        if at == 0x18:
            assert value & value - 1 == 0 and 0 < value <= self.largest
            queue.size = value
        elif at == 0x1A:
            queue.vector = value if value < 3 else NO_VECTOR
        elif at == 0x1C:
            assert value == 1 and all(queue.places) and not queue.places[0] % 16 and not queue.places[2] % 4
            queue.enabled = 1
        else:
            part, high = divmod(at - 0x20, 8)
            half = self.queues[self.select].places[part]
            queue.places[part] = half & 0xFFFF_FFFF | value << 32 if high else half >> 32 << 32 | value

    def _set_status(self, value: int) -> None:
        if value == 0:
            if not self.never_resets:
                self.reset()
            return
        assert value & self.status == self.status & ~0x40, "no bit is taken back but by a reset"
        if value & 8 and not self.status & 8:
            assert not self.taken & ~self.offered
            if self.refuses_features or (self.offered & ACCESS_PLATFORM and not self.taken & ACCESS_PLATFORM):
                value &= ~8
        self.status = value
        if value & 4:
            assert all(queue.enabled for queue in self.queues)

    # --- queues

    def work(self) -> None:
        """Takes what is to be transmitted, and gives what waits to be received."""
        if not self.status & 4:
            return
        transmit = self.queues[1]
        while (head := self.next_available(transmit)) is not None:
            address, length, flags, _ = struct.unpack("<QIHH", self.dma_read(transmit.places[0] + 16 * head, 16))
            assert flags == 0, "one buffer for the device to read"
            data = self.dma_read(address, length)
            assert not any(data[:12]), "no offload was negotiated"
            self.use(transmit, head, 0)
            self.wire(data[12:])
        while self.waiting and self.give(self.waiting[0]):
            self.waiting.popleft()

    def deliver(self, frame: bytes) -> None:
        self.waiting.append(frame)
        self.work()

    def give(self, frame: bytes) -> bool:
        """Puts a frame into the next receive buffer; False where there is none."""
        head = self.next_available(self.queues[0])
        if head is None:
            return False
        address, length, flags, _ = struct.unpack(
            "<QIHH", self.dma_read(self.queues[0].places[0] + 16 * head, 16)
        )
        assert flags == 2 and length >= 12 + len(frame)
        self.dma_write(address, bytes(10) + b"\x01\0" + frame)
        self.use(self.queues[0], head, 12 + len(frame))
        return True

    def next_available(self, queue: TestQueue) -> int | None:
        index = int.from_bytes(self.dma_read(queue.places[1] + 2, 2), "little")
        if index == queue.seen:
            return None
        head = int.from_bytes(self.dma_read(queue.places[1] + 4 + 2 * (queue.seen % queue.size), 2), "little")
        queue.seen = queue.seen + 1 & 0xFFFF
        return head

    def use(self, queue: TestQueue, head: int, length: int) -> None:
        """An entry in the used ring, and an interrupt where the driver wants one."""
        self.dma_write(queue.places[2] + 4 + 8 * (queue.used % queue.size), struct.pack("<II", head, length))
        queue.used = queue.used + 1 & 0xFFFF
        self.dma_write(queue.places[2] + 2, queue.used.to_bytes(2, "little"))
        if not int.from_bytes(self.dma_read(queue.places[1], 2), "little") & 1:
            self.interrupt(queue.vector)

    def quiet(self, queue: int, on: bool) -> None:
        """Whether the device polls, and wants no notification."""
        self.dma_write(self.queues[queue].places[2], int(on).to_bytes(2, "little"))

    # --- the configuration

    def set_link(self, up: bool) -> None:
        self.config[6] = int(up)
        self.configuration_changed()

    def break_down(self) -> None:
        self.status |= 0x40
        self.configuration_changed()

    def configuration_changed(self) -> None:
        self.generation = self.generation + 1 & 0xFF
        self.interrupt(self.config_vector)

    # --- the bus

    def interrupt(self, vector: int) -> None:
        if vector != NO_VECTOR:
            address, data, control = struct.unpack("<QII", self.vectors[16 * vector : 16 * vector + 16])
            if not control & 1:
                self.machine.raise_message(address, data)

    def dma_read(self, address: int, length: int) -> bytes:
        return self.machine.memory.read(self._reach(address, Access.READ), length)

    def dma_write(self, address: int, data: bytes) -> None:
        self.machine.memory.write(self._reach(address, Access.WRITE), data)

    def _reach(self, address: int, access: Access) -> int:
        if not self.taken & ACCESS_PLATFORM:
            return address
        physical = self.machine.dma(address, access)
        assert physical is not None, f"the IOMMU blocks {access!r} of {address:#x}"
        return physical


def function(multiplier: int = 4, leave_out: Iterable[int] = (), bar: int = 4) -> FakeFunction:
    """Its configuration space; `leave_out`: structures of these types."""
    space = config_space.endpoint_header(0x1AF4, 0x1041, pci.ClassCode.ETHERNET, 1)
    space.add_bar(1, 0x1000)
    space.add_bar(4, 0x4000, is64=True, prefetch=True)
    config_space.add_msix(space, 1, 3, 0, 0x800)
    for kind, page in ((5, None), (1, 0), (3, 1), (4, 2), (2, 3)):
        if kind in leave_out:
            continue
        size = 20 if kind in (2, 5) else 16
        at = space.add_capability(0x09, size)
        space.define(at + 2, 2, size | kind << 8)
        space.define(at + 4, 1, bar)
        space.define(at + 8, 8, 0 if page is None else page * 0x1000 | 0x1000 << 32)
        if kind == 2:
            space.define(at + 16, 4, multiplier)
    config_space.add_express(space, pci.PortType.ENDPOINT, 256)
    return FakeFunction(space)


class _WithVirtio:
    """The device in slot 4 of bus 0 of a machine in one process."""

    unit: RemappingUnit | None
    memory: PhysicalMemory

    def put_in(self, own: FakeFunction | None, device: dict[str, Any]) -> None:
        self.function = own or function()
        self.device = VirtioDevice(self, **device)

    def raise_message(self, address: int, data: int) -> None:
        """A message of the device's."""
        raise NotImplementedError

    def dma(self, address: int, access: Access) -> int | None:
        """Where an access of the device within a page goes; None where it faults."""
        if self.unit is None:
            return address
        result = self.unit.translate(BDF, address, access)
        return result.address if result.reason is None else None

    def registers(self, address: int) -> tuple[int, int] | None:
        """(BAR, offset) of an address that the device decodes."""
        space = self.function.space
        if space.read(pci.COMMAND, 2) & pci.Command.MEMORY:
            for index, bar in space.bars.items():
                base = space.bar_address(index)
                if base <= address < base + bar.size:
                    return index, address - base
        return None

    def bus_master(self) -> bool:
        return bool(self.function.space.read(pci.COMMAND, 2) & pci.Command.BUS_MASTER)


class VirtioMachine(_WithVirtio, FakeMachine):
    """Nothing but the device. It works while the kernel waits, too."""

    def __init__(
        self,
        command_line: str = "intel_iommu=on",
        unit: UnitConfig | None = None,
        own: FakeFunction | None = None,
        **device: Any,
    ) -> None:
        self.put_in(own, device)
        #: what happens while the kernel waits, one thing after another
        self.meanwhile: deque[Callable[[], None]] = deque()
        super().__init__(command_line, unit, {BDF: self.function})

    def mmio_read(self, address: int, size: int) -> int:
        found = self.registers(address)
        return super().mmio_read(address, size) if found is None else self.device.read(*found, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        found = self.registers(address)
        if found is None:
            super().mmio_write(address, size, value)
        else:
            self.device.write(*found, size, value)

    def wait_for_interrupt(self, timeout: float) -> bool:
        if self.meanwhile:
            self.meanwhile.popleft()()
        self.device.work()
        return super().wait_for_interrupt(timeout)

    def raise_message(self, address: int, data: int) -> None:
        if self.unit is None:
            self.vectors.append(data & 0xFF)
        else:
            assert self.interrupt(BDF, address, data) is None


class VirtioRig(_WithVirtio, Rig):
    """A whole machine with endpoints, and the device beside them. It works whenever messages are delivered."""

    def __init__(self, devices: Mapping[int, Factory], cmdline: str, **options: Any) -> None:
        self.put_in(None, {})
        super().__init__(devices, cmdline, **options)

    def mmio_read(self, address: int, size: int) -> int:
        found = self.registers(address)
        if found is not None:
            return self.device.read(*found, size)
        own = address - platform.ECAM_BASE - (BDF << 12)
        return self.function.space.read(own, size) if 0 <= own < 0x1000 else super().mmio_read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        found = self.registers(address)
        own = address - platform.ECAM_BASE - (BDF << 12)
        if found is not None:
            self.device.write(*found, size, value)
        elif 0 <= own < 0x1000:
            self.function.space.write(own, size, value)
        else:
            super().mmio_write(address, size, value)

    def pump(self) -> None:
        self.device.work()
        super().pump()

    def raise_message(self, address: int, data: int) -> None:
        assert self._interrupt(BDF, address, data) is None
