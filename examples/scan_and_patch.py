"""Reads memory piece by piece, looks for a signature, and patches what it finds, as PCILeech does.

    launch/topology configs/assigned-no-viommu.toml --stay
    launch/rogue --as nic0 --script examples/scan_and_patch.py

Behind a vIOMMU it finds nothing: every read is refused.
"""

from viommu_actors.rogue import Rogue

PIECE = 64 << 10


class ScanAndPatch(Rogue):
    def run(self):
        patched = 0
        for base, size in self.targets.memory.get("guest memory") or self.targets.memory["host memory"]:
            for address in range(base, base + size, PIECE):
                data = self.dma_read(address, PIECE) or b""
                found = data.find(self.targets.signature)
                while found >= 0:
                    self.dma_write(address + found + 64, b"patched by a device".ljust(32, b"!"))
                    patched += 1
                    found = data.find(self.targets.signature, found + 1)
        self.report(f"{patched} places found and patched")
