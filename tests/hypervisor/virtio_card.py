"""An emulated network card whose registers a test writes itself, as a driver or as it likes."""

from __future__ import annotations

from typing import Any

from tests.hypervisor.virtio_guest import Cable, Guest, serve
from viommu_actors.pci.capabilities import capabilities
from viommu_actors.spec import pci, vhost, virtio_net, virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import Common
from viommu_actors.vtd.config import UnitConfig

BAR, TABLE = 0xC000_0000, 0xC010_0000
READY = Status.ACKNOWLEDGE | Status.DRIVER
ON = pci.Command.MEMORY | pci.Command.BUS_MASTER
#: Where a test's rings are.
DESCRIPTORS, AVAILABLE, USED = 0x20_0000, 0x20_1000, 0x20_2000
ALL = Feature.VERSION_1 | virtio_net.Feature.MAC | virtio_net.Feature.STATUS | virtio_net.Feature.MTU


class Card:
    """The card of a guest without a kernel, its BARs in place."""

    def __init__(self, viommu: UnitConfig | None = None) -> None:
        self.guest = Guest(viommu)
        self.configure(pci.BAR0 + 4 * virtio_pci.BAR, 4, BAR)
        self.configure(pci.BAR0 + 4 * virtio_pci.MSIX_BAR, 4, TABLE)
        self.configure(pci.COMMAND, 2, ON)
        for vector in range(len(virtio_net.Vector)):
            entry = TABLE + vector * pci.MSIX_ENTRY_SIZE
            self.guest.mmio_write(entry, 8, 0xFEE0_0000)
            self.guest.mmio_write(entry + 8, 8, 0x30 + vector)
        self.msix = self.capability(pci.CapabilityId.MSIX)
        self.configure(self.msix + pci.MSIX_CONTROL, 2, pci.MSIX_ENABLE)

    def connect(self) -> Cable:
        """A back end that does what it is asked."""
        cable = self.guest.connect()

        def port(message: Any) -> None:
            if isinstance(message, vhost.GetFeatures):
                cable.say(vhost.Features((1 << 64) - 1))
            elif isinstance(message, vhost.StopVring):
                cable.say(vhost.VringBase(message.queue, 0))
            elif isinstance(message, vhost.IotlbInvalidate):
                cable.say(vhost.IotlbInvalidated(message.sequence))

        cable.port = port
        self.serve()
        return cable

    def serve(self) -> None:
        while serve(self.guest.cables):
            pass

    def vectors(self) -> list[int]:
        taken = list(self.guest.beneath.vectors)
        self.guest.beneath.vectors.clear()
        return taken

    # --- accesses

    def configure(self, offset: int, size: int, value: int) -> None:
        self.guest.mmio_write(self.guest.config(offset), size, value)

    def config(self, offset: int, size: int) -> int:
        return self.guest.mmio_read(self.guest.config(offset), size)

    def put(self, register: int, size: int, value: int) -> None:
        self.guest.mmio_write(BAR + virtio_pci.COMMON + register, size, value)

    def get(self, register: int, size: int) -> int:
        return self.guest.mmio_read(BAR + virtio_pci.COMMON + register, size)

    def capability(self, wanted: int, kind: int | None = None) -> int:
        return next(
            at
            for identifier, at in capabilities(self.config)[0]
            if identifier == wanted and kind in (None, self.config(at + virtio_pci.CAP_TYPE, 1))
        )

    # --- a driver

    def accept(self, features: int) -> int:
        """Negotiates as far as FEATURES_OK; the status then."""
        self.put(Common.DEVICE_STATUS, 1, READY)
        for half in range(2):
            self.put(Common.DRIVER_FEATURE_SELECT, 4, half)
            self.put(Common.DRIVER_FEATURE, 4, features >> 32 * half & 0xFFFF_FFFF)
        self.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK)
        return self.get(Common.DEVICE_STATUS, 1)

    def set_queue(self, queue: int, size: int = 8) -> None:
        self.put(Common.QUEUE_SELECT, 2, queue)
        self.put(Common.QUEUE_SIZE, 2, size)
        self.put(Common.QUEUE_MSIX_VECTOR, 2, queue + 1)
        for register, address in (
            (Common.QUEUE_DESC, DESCRIPTORS),
            (Common.QUEUE_DRIVER, AVAILABLE),
            (Common.QUEUE_DEVICE, USED),
        ):
            self.put(register, 4, address + (queue << 16))
            self.put(register + 4, 4, 0)
        self.put(Common.QUEUE_ENABLE, 2, 1)

    def start(self) -> None:
        assert self.accept(ALL) == READY | Status.FEATURES_OK
        self.put(Common.CONFIG_MSIX_VECTOR, 2, 0)
        for queue in virtio_net.Queue:
            self.set_queue(queue)
        self.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK | Status.DRIVER_OK)
