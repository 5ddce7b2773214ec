"""The driver's end of virtio over PCI, modern (virtio 1.2 section 4.1), in the order of section 3.1.1.

The device is not trusted: what it says of its structures is checked, and no wait for it is without end.
"""

from __future__ import annotations

from errno import EIO, ENODEV
from typing import NamedTuple, Protocol

from viommu_actors.pci.capabilities import capabilities
from viommu_actors.spec import pci, virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import Common, ConfigType
from viommu_actors.virtio.virtqueue import Places

#: How often the status is read until a reset is over; the configuration until its generation stands still.
_PATIENCE = 1000
#: The structures that a driver needs, and the bytes of each at least.
_LEAST = {ConfigType.COMMON: virtio_pci.COMMON_BYTES, ConfigType.NOTIFY: 2, ConfigType.DEVICE: 1}
#: Of what a driver needs.
_ALIGNMENT = 4


class Registers(Protocol):
    """A PCI function as its driver reaches it. Methods raise OSError where there is no such register."""

    def config_read(self, offset: int, size: int) -> int: ...

    def read(self, bar: int, offset: int, size: int) -> int: ...

    def write(self, bar: int, offset: int, size: int, value: int) -> None: ...


class _Structure(NamedTuple):
    """Where a structure lies."""

    bar: int
    offset: int
    size: int


class VirtioPci:
    """One device, from its reset to its next one."""

    def __init__(self, registers: Registers, name: str) -> None:
        """Finds the structures. Raises OSError(ENODEV) where one is missing, or too short."""
        self.name = name
        self._registers = registers
        self._multiplier = 0
        self._structures = self._find()
        for kind, least in _LEAST.items():
            if kind not in self._structures or self._structures[kind].size < least:
                raise OSError(ENODEV, f"{name}: no virtio device, its {kind.name.lower()} structure is missing")
        #: where each queue is notified
        self._doorbells: dict[int, int] = {}

    # --- from the reset to DRIVER_OK

    def reset(self) -> None:
        """The device gives up its queues, and has forgotten all. Raises OSError(EIO) where it does not come to that."""
        self._doorbells.clear()
        self._write(Common.DEVICE_STATUS, 1, 0)
        for _ in range(_PATIENCE):
            if not self._read(Common.DEVICE_STATUS, 1):
                return
        raise OSError(EIO, f"{self.name}: the device does not reset")

    def negotiate(self, wanted: int) -> int:
        """Acknowledges the device and takes those of its features that are wanted; which these are.

        Raises OSError(ENODEV) for a legacy device, and where it does not accept that.
        """
        self._set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        offered = 0
        for half in range(2):
            self._write(Common.DEVICE_FEATURE_SELECT, 4, half)
            offered |= self._read(Common.DEVICE_FEATURE, 4) << 32 * half
        taken = offered & wanted
        if not taken & Feature.VERSION_1:
            raise OSError(ENODEV, f"{self.name}: no device of virtio 1.0 or later")
        for half in range(2):
            self._write(Common.DRIVER_FEATURE_SELECT, 4, half)
            self._write(Common.DRIVER_FEATURE, 4, taken >> 32 * half & 0xFFFF_FFFF)
        self._set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        if not self.status & Status.FEATURES_OK:
            raise OSError(ENODEV, f"{self.name}: the device does not accept features {taken:#x}")
        return taken

    def set_config_vector(self, vector: int) -> None:
        """The MSI-X vector of configuration changes. Raises OSError(EIO) where the device has no room for it."""
        self._set_vector(Common.CONFIG_MSIX_VECTOR, vector)

    def set_queue(self, index: int, places: Places, vector: int) -> None:
        """Gives the device a queue, by its addresses for the device, and the MSI-X vector of its interrupts.

        Raises OSError: ENODEV where it has no such queue, or none of that size; EIO as `set_config_vector`.
        """
        self._write(Common.QUEUE_SELECT, 2, index)
        largest = self._read(Common.QUEUE_SIZE, 2)
        if places.size > largest:
            raise OSError(ENODEV, f"{self.name}: queue {index} has {largest} descriptors, fewer than {places.size}")
        self._write(Common.QUEUE_SIZE, 2, places.size)
        for register, address in (
            (Common.QUEUE_DESC, places.descriptors),
            (Common.QUEUE_DRIVER, places.available),
            (Common.QUEUE_DEVICE, places.used),
        ):
            self._write(register, 4, address & 0xFFFF_FFFF)
            self._write(register + 4, 4, address >> 32)
        self._set_vector(Common.QUEUE_MSIX_VECTOR, vector)
        doorbell = self._read(Common.QUEUE_NOTIFY_OFF, 2) * self._multiplier
        notify = self._structures[ConfigType.NOTIFY]
        if doorbell % 2 or doorbell + 2 > notify.size:
            raise OSError(ENODEV, f"{self.name}: queue {index} is notified at {doorbell:#x}, where nothing is")
        self._doorbells[index] = notify.offset + doorbell
        self._write(Common.QUEUE_ENABLE, 2, 1)

    def set_driver_ok(self) -> None:
        """The device works from here on."""
        self._set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)

    # --- at work

    @property
    def status(self) -> int:
        """Of the device; all-ones where it is gone."""
        return self._read(Common.DEVICE_STATUS, 1)

    @property
    def needs_reset(self) -> bool:
        """Whether the device can do nothing any more until its reset, or is gone."""
        return bool(self.status & Status.NEEDS_RESET)

    def notify(self, index: int) -> None:
        """Tells the device of buffers in a queue that was given to it."""
        self._registers.write(self._structures[ConfigType.NOTIFY].bar, self._doorbells[index], 2, index)

    def configuration(self, *fields: tuple[int, int]) -> tuple[int, ...]:
        """The fields (offset, bytes) of the device's configuration, all as of one moment (section 2.5.1).

        Raises OSError: ENODEV for a field that it does not have, EIO where it never stands still.
        """
        structure = self._structures[ConfigType.DEVICE]
        if any(offset + size > structure.size for offset, size in fields):
            raise OSError(ENODEV, f"{self.name}: the configuration has only {structure.size} bytes")
        for _ in range(_PATIENCE):
            before = self._read(Common.CONFIG_GENERATION, 1)
            values = tuple(self._registers.read(structure.bar, structure.offset + at, size) for at, size in fields)
            if self._read(Common.CONFIG_GENERATION, 1) == before:
                return values
        raise OSError(EIO, f"{self.name}: the configuration never stands still")

    # --- registers

    def _find(self) -> dict[int, _Structure]:
        """The first structure of each kind that lies, aligned, in a BAR that there may be (section 4.1.4)."""
        read = self._registers.config_read
        found: dict[int, _Structure] = {}
        for identifier, at in capabilities(read)[0]:
            bar = read(at + virtio_pci.CAP_BAR, 1) if identifier == pci.CapabilityId.VENDOR else pci.ENDPOINT_BARS
            kind = read(at + virtio_pci.CAP_TYPE, 1)
            offset, size = read(at + virtio_pci.CAP_OFFSET, 4), read(at + virtio_pci.CAP_SIZE, 4)
            if bar < pci.ENDPOINT_BARS and not offset % _ALIGNMENT and kind not in found:
                found[kind] = _Structure(bar, offset, size)
                if kind == ConfigType.NOTIFY:
                    self._multiplier = read(at + virtio_pci.CAP_NOTIFY_MULTIPLIER, 4)
        return found

    def _set_status(self, status: int) -> None:
        self._write(Common.DEVICE_STATUS, 1, status)

    def _set_vector(self, register: int, vector: int) -> None:
        self._write(register, 2, vector)
        if self._read(register, 2) != vector:
            raise OSError(EIO, f"{self.name}: the device has no room for MSI-X vector {vector}")

    def _read(self, register: int, size: int) -> int:
        common = self._structures[ConfigType.COMMON]
        return self._registers.read(common.bar, common.offset + register, size)

    def _write(self, register: int, size: int, value: int) -> None:
        common = self._structures[ConfigType.COMMON]
        self._registers.write(common.bar, common.offset + register, size, value)
