"""The host bridge at 00:00.0 of the guest's bus: an identity and nothing else."""

from __future__ import annotations

from viommu_actors.spec import pci


class HostBridge:
    """Reads as a bridge without BARs or capabilities; ignores writes."""

    def __init__(self) -> None:
        config = bytearray(pci.CONVENTIONAL_SIZE)
        config[pci.VENDOR_ID : pci.VENDOR_ID + 2] = pci.VENDOR_REDHAT.to_bytes(2, "little")
        config[pci.DEVICE_ID : pci.DEVICE_ID + 2] = pci.DEVICE_HOST_BRIDGE.to_bytes(2, "little")
        config[pci.CLASS_DEVICE : pci.CLASS_DEVICE + 2] = pci.ClassCode.HOST_BRIDGE.to_bytes(2, "little")
        self._config = bytes(config)

    def config_read(self, offset: int, size: int) -> int:
        """Zero above the conventional header."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """Nothing here is writable."""
        return False
