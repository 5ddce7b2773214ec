"""A virtio network card as a function of the guest's bus: structures in a BAR, capabilities that tell of them.

After QEMU's hw/virtio/virtio-pci.c and hw/net/virtio-net.c with a vhost back end. It has the express capability of an
endpoint of the root complex, for a function level reset; QEMU's has that only behind a port.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from viommu_actors.hypervisor.virtio.common import CommonConfig
from viommu_actors.hypervisor.virtio.front_end import FrontEnd
from viommu_actors.hypervisor.virtio.memory import FunctionMemory
from viommu_actors.pci import config_space
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.pci.function import Function, SendMessage
from viommu_actors.spec import pci, virtio, virtio_net, virtio_pci
from viommu_actors.spec.virtio_net import Feature
from viommu_actors.spec.virtio_pci import ConfigType, Isr
from viommu_actors.vtd.listener import Effort

_DWORD: Final = 4
_PAYLOAD: Final = 256
#: Lines logged of what drivers do wrong; all of it is counted.
_LOGGED: Final = 10
_NET_CONFIG: Final = struct.Struct("<6sHHH")
_STRUCTURES: Final = (
    (ConfigType.COMMON, virtio_pci.COMMON),
    (ConfigType.ISR, virtio_pci.ISR),
    (ConfigType.DEVICE, virtio_pci.DEVICE),
    (ConfigType.NOTIFY, virtio_pci.NOTIFY),
)


@dataclass(frozen=True)
class VirtioNet:
    """A network card of a guest: the name of its back end's port, its slot on bus 0, its MAC address (6 bytes)."""

    name: str
    slot: int
    mac: bytes

    @property
    def bdf(self) -> int:
        """Its address in the guest."""
        return pci.bdf(0, self.slot, 0)


class VirtioNetFunction(Function):
    """The card; `front_end` is its way to a back end. With `translated` it is behind a vIOMMU.

    `counters`: virtio_broken, how often it came to need a reset.
    """

    def __init__(
        self,
        card: VirtioNet,
        memory: FunctionMemory,
        translated: bool,
        send_message: SendMessage,
        counters: Counter[str],
        effort: Effort,
        log: Callable[[str], None],
    ) -> None:
        super().__init__(_config_space(), send_message)
        self.name = card.name
        self._mac = card.mac
        self._link_up = False
        self._isr = 0
        self._runs = False
        windows = [at for kind, at in self.config.capabilities() if kind == pci.CapabilityId.VENDOR]
        #: the capability through which the BAR can be accessed
        self._window = windows[-1]
        platform = virtio.Feature.ACCESS_PLATFORM if translated else 0
        offered = virtio.Feature.VERSION_1 | platform | Feature.MAC | Feature.STATUS | Feature.MTU
        sizes = [virtio_net.QUEUE_SIZE] * virtio_net.QUEUES
        self._common = CommonConfig(int(offered), sizes, len(virtio_net.Vector), self._settle, self.broken)
        self.front_end = FrontEnd(card.name, int(offered), card.bdf, memory, self, counters, effort, log)
        self._counters = counters
        self._log = log
        self._latch()

    @property
    def link_up(self) -> bool:
        """Whether a back end serves it."""
        return self._link_up

    # --- for its back end

    def link_changed(self, up: bool) -> None:
        """See `front_end.Device`."""
        if up != self._link_up:
            self._link_up = up
            self._configuration_changed()

    def used(self, queue: int) -> None:
        """See `front_end.Device`."""
        self._isr |= Isr.QUEUE
        self._raise(self._common.queues[queue].vector)

    def broken(self, why: str) -> None:
        """See `front_end.Device`."""
        self.ring_broken(why)
        self._settle()

    def ring_broken(self, why: str) -> None:
        """See `front_end.Device`. The driver is told once until it resets the device."""
        if self._common.needs_reset:
            return
        self._counters["virtio_broken"] += 1
        if self._counters["virtio_broken"] <= _LOGGED:
            self._log(f"{self.name}: needs a reset: {why}")
        self._common.need_reset()
        self._configuration_changed()

    # --- the guest's accesses

    def config_read(self, offset: int, size: int) -> int:
        """`size` 1, 2 or 4, within one dword."""
        if offset & ~3 == self._window + virtio_pci.CAP_PCI_DATA and (place := self._window_place()) is not None:
            value = self.bar_read(virtio_pci.BAR, *place)
            self.config.set(self._window + virtio_pci.CAP_PCI_DATA, place[1], value)
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """`size` 1, 2 or 4, within one dword. False: none of its BARs is memory of the guest's address map."""
        self.configure(offset, size, value)
        if offset & ~3 == self._window + virtio_pci.CAP_PCI_DATA and (place := self._window_place()) is not None:
            data = self.config.read(self._window + virtio_pci.CAP_PCI_DATA, place[1])
            self.bar_write(virtio_pci.BAR, *place, data)
        return False

    def _window_place(self) -> tuple[int, int] | None:
        """Where in the BAR the window of configuration space leads, (offset, size); None where nowhere."""
        read = self.config.read
        bar = read(self._window + virtio_pci.CAP_BAR, 1)
        offset, size = (read(self._window + at, 4) for at in (virtio_pci.CAP_OFFSET, virtio_pci.CAP_SIZE))
        if bar != virtio_pci.BAR or size not in (1, 2, 4):
            return None
        offset &= ~(size - 1)
        return (offset, size) if offset + size <= virtio_pci.BAR_SIZE else None

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        if bar != virtio_pci.BAR:
            return (1 << 8 * size) - 1
        if size > _DWORD:
            return self.bar_read(bar, offset, _DWORD) | self.bar_read(bar, offset + _DWORD, _DWORD) << 32
        start = offset & ~(virtio_pci.STRUCTURE_SIZE - 1)
        value = 0
        if start == virtio_pci.COMMON:
            value = self._common.read(offset)
        elif start == virtio_pci.ISR:
            value, self._isr = self._isr, 0
        elif start == virtio_pci.DEVICE:
            value = self._net_config(offset - start, size)
        return value & (1 << 8 * size) - 1

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar != virtio_pci.BAR:
            return
        if size > _DWORD:
            self.bar_write(bar, offset, _DWORD, value & 0xFFFF_FFFF)
            self.bar_write(bar, offset + _DWORD, _DWORD, value >> 32)
            return
        start = offset & ~(virtio_pci.STRUCTURE_SIZE - 1)
        if start == virtio_pci.COMMON:
            self._common.write(offset, value)
        elif start == virtio_pci.NOTIFY:
            queue = (offset - start) // virtio_pci.NOTIFY_MULTIPLIER
            if queue < virtio_net.QUEUES:
                self.front_end.kick(queue)

    def device_reset(self) -> None:
        self._common.reset()
        self._isr = 0

    def _latch(self) -> None:
        super()._latch()
        if not self._bus_master and self._common.status & virtio.Status.DRIVER_OK:
            self._common.take_driver_away()
        else:
            self._settle()

    # --- within

    def _settle(self) -> None:
        """The back end serves the queues as long as the driver wants that, and the function may do anything."""
        common = self._common
        runs = common.runs and self._bus_master
        if runs != self._runs:
            self._runs = runs
            if runs:
                self.front_end.start(common.features, common.vrings)
            else:
                self.front_end.stop()
        if not common.status:
            self._isr = 0

    def _configuration_changed(self) -> None:
        """Tells a driver that is there."""
        self._common.generation = (self._common.generation + 1) & 0xFF
        if self._common.status & virtio.Status.DRIVER_OK:
            self._isr |= Isr.QUEUE | Isr.CONFIGURATION
            self._raise(self._common.config_vector)

    def _raise(self, vector: int) -> None:
        if vector != virtio_pci.NO_VECTOR:
            self.interrupt(vector)

    def _net_config(self, offset: int, size: int) -> int:
        """All ones behind its end."""
        status = virtio_net.Status.LINK_UP if self._link_up else 0
        data = _NET_CONFIG.pack(self._mac, status, 1, virtio_net.MTU)
        if offset + size > len(data):
            return (1 << 8 * size) - 1
        return int.from_bytes(data[offset : offset + size], "little")


def _config_space() -> ConfigSpace:
    space = config_space.endpoint_header(
        virtio_pci.VENDOR_ID, virtio_net.DEVICE_ID, pci.ClassCode.ETHERNET, virtio_pci.REVISION
    )
    space.define(pci.SUBSYSTEM_ID, 2, virtio_pci.SUBSYSTEM_ID)
    space.add_bar(virtio_pci.MSIX_BAR, virtio_pci.MSIX_BAR_SIZE)
    space.add_bar(virtio_pci.BAR, virtio_pci.BAR_SIZE, is64=True, prefetch=True)
    config_space.add_express(space, pci.PortType.ROOT_COMPLEX_ENDPOINT, _PAYLOAD)
    for kind, offset in _STRUCTURES:
        notify = kind is ConfigType.NOTIFY
        at = _add_structure(space, kind, virtio_pci.CAP_NOTIFY_BYTES if notify else virtio_pci.CAP_BYTES)
        space.define(at + virtio_pci.CAP_BAR, 1, virtio_pci.BAR)
        space.define(at + virtio_pci.CAP_OFFSET, 4, offset)
        space.define(at + virtio_pci.CAP_SIZE, 4, virtio_pci.STRUCTURE_SIZE)
        if notify:
            space.define(at + virtio_pci.CAP_NOTIFY_MULTIPLIER, 4, virtio_pci.NOTIFY_MULTIPLIER)
    at = _add_structure(space, ConfigType.PCI, virtio_pci.CAP_PCI_BYTES)
    space.define(at + virtio_pci.CAP_BAR, 1, 0, writable=0xFF)
    for register in (virtio_pci.CAP_OFFSET, virtio_pci.CAP_SIZE, virtio_pci.CAP_PCI_DATA):
        space.define(at + register, 4, 0, writable=0xFFFF_FFFF)
    config_space.add_msix(
        space, virtio_pci.MSIX_BAR, len(virtio_net.Vector), virtio_pci.MSIX_TABLE, virtio_pci.MSIX_PBA
    )
    return space


def _add_structure(space: ConfigSpace, kind: ConfigType, size: int) -> int:
    at = space.add_capability(pci.CapabilityId.VENDOR, size)
    space.define(at + virtio_pci.CAP_LENGTH, 1, size)
    space.define(at + virtio_pci.CAP_TYPE, 1, kind)
    return at
