"""Hot-plug of the slots of PCI Express ports (Linux: drivers/pci/hotplug/pciehp_hpc.c, pciehp_ctrl.c).

What a slot's status says decides: a device that is there and unknown is enumerated, one that is known and gone is let
go. Removal is a surprise: the device is gone already, and all that is read of it are ones. What has changed since the
last look is latched, so that a device that went and another that came meanwhile are not taken for one.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.kernel.pci_bus import PciBus
from viommu_actors.spec import pci

_EVENTS = pci.SLTSTA_PRESENCE_CHANGED | pci.SLTSTA_LINK_CHANGED


class HotPlug:
    """The slots of one PCI hierarchy; `rescan` finds what was plugged in, `remove` lets go of a function."""

    def __init__(
        self,
        bus: PciBus,
        rescan: Callable[[], list[PciDevice]],
        remove: Callable[[int], None],
        log: Callable[[str], None],
    ) -> None:
        self._bus = bus
        self._rescan = rescan
        self._remove = remove
        self._log = log
        #: ports of slots whose device is gone, and still somebody's
        self._going: list[PciDevice] = []
        for port in self._ports():
            self._take_events(port)

    def settled(self, slot: int) -> bool:
        """Whether a device that is gone from this slot, if there is one, has been let go of."""
        return all(port.hotplug_slot != slot for port in self._going)

    def service(self) -> list[PciDevice]:
        """Does for each slot what its interrupt thread would, and tells what functions were found.

        No port interrupts here: to be called whenever a slot may have changed. Where somebody still has a device that
        is gone, it stays known, and nothing is looked for in its slot: to be called again.
        """
        came = False
        for port in self._ports():
            changed, present = self._take_events(port)
            known = self._behind(port)
            if known and (changed or not present) and port not in self._going:
                self._log(f"pcieport {port.name}: pciehp: Slot({port.hotplug_slot}): Link Down")
                self._going.append(port)
            if port in self._going and self._let_go(known):
                self._going.remove(port)
            if present and not self._behind(port):
                self._log(f"pcieport {port.name}: pciehp: Slot({port.hotplug_slot}): Card present")
                came = True
        return self._rescan() if came else []

    def _let_go(self, functions: list[PciDevice]) -> bool:
        """Whether nobody has any of these any more."""
        try:
            for function in reversed(functions):
                self._remove(function.bdf)
        except OSError as error:
            if error.errno != EBUSY:
                raise
            return False
        return True

    def _ports(self) -> list[PciDevice]:
        return [device for device in self._bus.devices if device.hotplug_slot is not None]

    def _take_events(self, port: PciDevice) -> tuple[bool, bool]:
        """Whether something has changed in a slot since the last call, and whether a device stands there now."""
        express = port.capability(pci.CapabilityId.PCI_EXPRESS)
        assert express is not None
        status = port.config_read(express + pci.EXP_SLOT_STATUS, 2)
        if events := status & _EVENTS:
            port.config_write(express + pci.EXP_SLOT_STATUS, 2, events)
        return bool(events), bool(status & pci.SLTSTA_PRESENT)

    def _behind(self, port: PciDevice) -> list[PciDevice]:
        """Every function behind a port, bridges before what is behind them."""
        found: list[PciDevice] = []
        for child in self._bus.children(port):
            found += [child, *self._behind(child)]
        return found
