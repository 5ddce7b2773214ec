"""A PCI-to-PCI bridge's registers (type 1 header), as every port of the fabric has them.

PCI-to-PCI Bridge 1.2 chapter 3, PCI Express Base 5.0 section 7.5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.spec import pci


class BridgeFunction(ABC):
    """Which buses and addresses lie behind the bridge, kept at hand for each transaction.

    `express` and `acs` are the offsets of the capabilities in `config`; without ACS nothing is validated.
    """

    def __init__(self, config: ConfigSpace, express: int, acs: int | None) -> None:
        self.config = config
        self._express = express
        self._acs = acs
        self._latch()

    def config_write(self, offset: int, size: int, value: int) -> bool:
        """A configuration write to the port itself; True where it resets the bus behind (bridge control)."""
        held = self.config.read(pci.BRIDGE_CONTROL, 2)
        self.config.write(offset, size, value)
        self._latch()
        return bool(self.config.read(pci.BRIDGE_CONTROL, 2) & ~held & pci.SECONDARY_BUS_RESET)

    @abstractmethod
    def reset_behind(self) -> None:
        """The secondary bus reset: of all that is behind."""

    def reset(self) -> None:
        """Every register back to its reset value: the link above went through a hot reset."""
        self.config.reset()
        self._latch()

    def _latch(self) -> None:
        """Keeps what each transaction needs of the registers at hand."""
        read = self.config.read
        command = read(pci.COMMAND, 2)
        self.bus_master = bool(command & pci.Command.BUS_MASTER)
        self.first_bus = read(pci.SECONDARY_BUS, 1)
        self.last_bus = read(pci.SUBORDINATE_BUS, 1)
        control = read(self._express + pci.EXP_DEVICE_CONTROL, 2)
        code = (control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT
        self.max_payload = pci.payload_size(code)
        acs = read(self._acs + pci.ACS_CONTROL, 2) if self._acs is not None else 0
        self.source_validation = bool(acs & pci.Acs.SOURCE_VALIDATION)
        self.translation_blocking = bool(acs & pci.Acs.TRANSLATION_BLOCKING)
        self.request_redirect = bool(acs & pci.Acs.REQUEST_REDIRECT)
        self.upstream_forwarding = bool(acs & pci.Acs.UPSTREAM_FORWARDING)
        self._windows = self._decode_windows() if command & pci.Command.MEMORY else ()

    def _decode_windows(self) -> tuple[tuple[int, int], ...]:
        read = self.config.read
        mask = pci.WINDOW_MASK
        last = pci.WINDOW_GRANULARITY - 1
        memory = ((read(pci.MEMORY_BASE, 2) & mask) << 16, (read(pci.MEMORY_LIMIT, 2) & mask) << 16 | last)
        prefetch = (
            read(pci.PREFETCH_BASE_UPPER, 4) << 32 | (read(pci.PREFETCH_BASE, 2) & mask) << 16,
            read(pci.PREFETCH_LIMIT_UPPER, 4) << 32 | (read(pci.PREFETCH_LIMIT, 2) & mask) << 16 | last,
        )
        # A window at address zero is one that nobody has programmed yet.
        return tuple(window for window in (memory, prefetch) if 0 < window[0] <= window[1])

    def show_link(self, up: bool) -> None:
        """Shows in link status whether anything answers at the link's other end."""
        link = self._express + pci.EXP_LINK_STATUS
        active = self.config.read(link, 2) & ~pci.LNKSTA_DLL_ACTIVE
        self.config.set(link, 2, active | (pci.LNKSTA_DLL_ACTIVE if up else 0))

    def forwards_bus(self, bus: int) -> bool:
        """Whether requests by ID to that bus go down this port."""
        return 0 < self.first_bus <= bus <= self.last_bus

    def forwards_address(self, address: int) -> bool:
        """Whether memory requests to that address go down this port."""
        return any(first <= address <= last for first, last in self._windows)
