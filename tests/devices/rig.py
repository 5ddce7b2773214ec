"""A whole host in one process: memory, VT-d unit, root complex, devices and a kernel, without a socket.

Messages wait in a queue for each link and direction, as on the wire, and are delivered when the CPU waits: for
a read, for an interrupt, or by `pump`. With a seed the links take turns at random, each staying in order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.firmware.boot import MachineDescription, install, remapping_unit
from viommu_actors.ioapic import IoApic
from viommu_actors.kernel.driver import Driver
from viommu_actors.kernel.drivers import DRIVERS
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.pci.component import BridgeConfig, SwitchConfig, behind
from viommu_actors.pci.root_complex import RootComplex
from viommu_actors.pci.root_port import PortConfig, slot_name
from viommu_actors.spec import ioapic, pci, platform
from viommu_actors.spec.vtd import FaultReason
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.interrupts import Blocked
from viommu_actors.vtd.unit import RemappingUnit

HIGH_BASE = 0x10_0000_0000
_ECAM_END = platform.ECAM_BASE + (platform.ECAM_BUSES << 20)

#: Makes an endpoint: (send, log) -> endpoint.
Factory = Callable[[Callable[[Any], None], Callable[[str], None]], Endpoint]


class Rig:
    """The host with one device for each slot, and components in others with their devices in order.

    It is the kernel's machine (`kernel.machine.Machine`).
    """

    def __init__(
        self,
        devices: Mapping[int, Factory],
        cmdline: str = "intel_iommu=on",
        *,
        acs: bool = True,
        max_payload: int = 4096,
        caching_mode: bool = False,
        intremap: bool = False,
        seed: int | None = None,
        boot: bool = True,
        components: Mapping[int, tuple[SwitchConfig | BridgeConfig, Sequence[Factory]]] | None = None,
        drivers: Sequence[type[Driver]] = DRIVERS,
        device_iotlb: bool = False,
    ) -> None:
        self.lines: list[str] = []
        self._vectors: deque[int] = deque()
        low, high = bytearray(16 << 20), bytearray(16 << 20)
        self.memory = PhysicalMemory([Slot("low", 0, memoryview(low)), Slot("high", HIGH_BASE, memoryview(high))])
        self.unit = RemappingUnit(
            UnitConfig(caching_mode=caching_mode, intremap=intremap, device_iotlb=device_iotlb),
            self.memory,
            lambda address, data: self._vectors.append(data & 0xFF),
            invalidate_device=lambda *request: self.root.invalidate_device(*request),
        )
        self.ioapic = IoApic(lambda address, data: self._interrupt(platform.IOAPIC_SOURCE_ID, address, data))
        self.root = RootComplex(
            self.memory,
            self.unit.translate,
            self._interrupt,
            [PortConfig(slot, acs, max_payload) for slot in devices]
            + [PortConfig(slot, acs, max_payload, below) for slot, (below, _) in (components or {}).items()],
            self.unit.translation_agent if device_iotlb else None,
            lambda line, asserted: self.ioapic.set_line(line, asserted),
        )
        self._handler: Callable[[int], None] = lambda vector: None
        self._random = None if seed is None else random.Random(seed)
        self._queues: list[tuple[deque[Any], Callable[[Any], None]]] = []
        #: Messages that crossed a link.
        self.delivered = 0
        #: By the slot of their root port, or by the name of their link behind a component.
        self.endpoints: dict[int | str, Endpoint] = {}
        for slot, factory in devices.items():
            self.endpoints[slot] = self.plug(slot_name(slot), factory)
        for below, factories in (components or {}).values():
            for number, factory in enumerate(factories):
                link = behind(below.name, number)
                self.endpoints[link] = self.plug(link, factory)
        install(
            self.memory,
            MachineDescription(
                ram=((0, len(low)), (HIGH_BASE, len(high))),
                command_line=cmdline,
                dmar=remapping_unit(48, interrupt_remapping=intremap),
            ),
        )
        self.kernel = Kernel(self, drivers)
        if boot:
            self.kernel.boot(platform.ZERO_PAGE)

    def plug(self, link: str, factory: Factory) -> Endpoint:
        """A device comes to stand at the end of a link; the kernel is not told."""
        up: deque[Any] = deque()
        down: deque[Any] = deque()
        endpoint = factory(up.append, self.log)
        self._queues.append((up, lambda message: self.root.receive(link, message)))
        self._queues.append((down, endpoint.receive))

        def send(message: Any) -> bool:
            down.append(message)
            return True

        self.root.attach(link, send)
        return endpoint

    def _interrupt(self, requester: int, address: int, data: int) -> FaultReason | None:
        outcome = self.unit.remap_interrupt(requester, address, data)
        if isinstance(outcome, Blocked):
            return outcome.reason
        self._vectors.append(outcome.interrupt.vector)
        return None

    def pump(self) -> None:
        """Delivers messages until none is on its way."""
        while ready := [each for each in self._queues if each[0]]:
            for queue, receive in [self._random.choice(ready)] if self._random else ready:
                self.delivered += 1
                receive(queue.popleft())

    def driver(self, slot: int) -> Any:
        """The driver of the device in a slot."""
        return self.kernel.drivers[self.bdf(slot)]

    def bdf(self, slot: int) -> int:
        return pci.bdf(self.root.ports[slot_name(slot)].first_bus, 0, 0)

    # --- kernel.machine.Machine

    def mmio_read(self, address: int, size: int) -> int:
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE:
            if self.unit.awaits_devices:
                self.pump()
                for number in self.unit.device_invalidations:
                    self.unit.expire_device_invalidation(number)
            return self.unit.read(offset, size)
        if 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            return self.ioapic.read(offset, size)
        answer: list[int] = []
        if platform.ECAM_BASE <= address < _ECAM_END:
            place = address - platform.ECAM_BASE
            self.root.config_read(place >> 12, place & 0xFFF, size, answer.append)
        else:
            self.root.mmio_read(address, size, answer.append)
        self._settle(answer)
        return answer[0]

    def mmio_write(self, address: int, size: int, value: int) -> None:
        offset = address - platform.REMAPPING_UNIT_BASE
        if 0 <= offset < platform.REMAPPING_UNIT_SIZE:
            self.unit.write(offset, size, value)
        elif 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            self.ioapic.write(offset, size, value)
        elif platform.ECAM_BASE <= address < _ECAM_END:
            place = address - platform.ECAM_BASE
            done: list[bool] = []
            self.root.config_write(place >> 12, place & 0xFFF, size, value, lambda: done.append(True))
            self._settle(done)
        else:
            self.root.mmio_write(address, size, value)

    def _settle(self, answer: Sequence[object]) -> None:
        """Delivers until the answer is there; a device that gives none is timed out."""
        self.pump()
        if not answer:
            for link, tag in self.root.outstanding:
                self.root.expire(link, tag)

    def wait_for_interrupt(self, timeout: float) -> bool:
        self.pump()
        taken = bool(self._vectors)
        # Those that a handler raises are for the next time: a line that is up would go on for ever.
        for _ in range(len(self._vectors)):
            self._handler(self._vectors.popleft())
        return taken

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def log(self, line: str) -> None:
        self.lines.append(line)
