"""BARs lent on: a guest kernel gives its own user processes and guests the channel that it was lent itself.

So they reach the device without a hop of this kernel's, at whatever depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from errno import EFAULT
from typing import NamedTuple, Protocol

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec.pci import COMMAND, Command


class Channel(NamedTuple):
    """A BAR's physical addresses, from `first` to before `end`, and the token that leads there.

    `emulated`: it leads to the hypervisor, which serves this kernel's user processes by it.
    """

    first: int
    end: int
    token: bytes
    emulated: bool = False


class Channels(Protocol):
    """What the kernel's own CPU was lent."""

    def channel(self, address: int) -> Channel:
        """The one that an address lies in. Raises OSError(EFAULT) where there is no BAR."""
        ...


def renew(device: PciDevice) -> None:
    """Ends every channel to a function: memory decoding goes off and on again, which makes the kernel beneath revoke
    them; this one asks for another."""
    command = device.config_read(COMMAND, 2)
    device.set_command(0, Command.MEMORY)
    device.config_write(COMMAND, 2, command)


class LendingOn:
    """The ports of a guest kernel's KVM (`kernel.kvm.KvmPorts`)."""

    def __init__(
        self, channels: Channels, devices: Callable[[], Iterable[PciDevice]], inject: Callable[[str, int], None]
    ) -> None:
        self._channels = channels
        self._devices = devices
        self.inject = inject
        self._lent: dict[bytes, PciDevice] = {}

    def lend_bar(self, physical_address: int, size: int) -> bytes:
        """Raises OSError(EFAULT) where the BAR is not lent to this kernel as a whole."""
        first, end, token, emulated = self._channels.channel(physical_address)
        if emulated or (first, end) != (physical_address, physical_address + size):
            raise OSError(EFAULT, f"{physical_address:#x}+{size:#x} is not a whole BAR of a device")
        bars = ((device, bar) for device in self._devices() for bar in device.bars.values())
        self._lent[token] = next(device for device, bar in bars if bar.address == first)
        return token

    def revoke(self, token: bytes) -> None:
        """Whoever knows the channel shall not reach the device by it any more."""
        device = self._lent.pop(token, None)
        if device is not None:
            renew(device)
