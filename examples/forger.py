"""Forges what a device is known by: interrupts that it was not given, and the name of another device.

    launch/topology --stay
    launch/rogue --as nic0 --script examples/forger.py

Interrupt remapping stops the first, source validation at the root port the second. While it is at work it also lies
to its driver, who reads a MAC address of the rogue's own choice.
"""

from viommu_actors.rogue import Rogue
from viommu_actors.spec.nic import Reg


class Forger(Rogue):
    def run(self):
        address, data = self.targets.interrupt
        for _ in range(8):
            self.msi(address, data)
        for victim in self.targets.requesters:
            with self.spoof(victim):
                for page in self.targets.canaries["host memory"]:
                    self.dma_write(page, b"not from whom you think")
        self.report(f"8 interrupts, and writes in the name of {', '.join(self.targets.requesters) or 'nobody'}")

    def on_mmio_read(self, bar, offset, size):
        return 0x0BADC0DE if (bar, offset, size) == (0, Reg.MAC_LOW, 4) else None
