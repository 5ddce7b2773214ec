"""A descriptor ring of the nic as its driver sees it."""

from __future__ import annotations

from viommu_actors.kernel.dma import Dma
from viommu_actors.memory import Memory
from viommu_actors.spec import nic

#: Descriptors in a ring; one page holds them.
SIZE = 64
_STRIDE = nic.DESCRIPTOR.size
_BYTES = SIZE * _STRIDE


class Ring:
    """Coherent memory for SIZE descriptors. At most SIZE - 1 may be posted at a time, which the caller sees to."""

    def __init__(self, memory: Memory, dma: Dma) -> None:
        """Raises OSError where memory or addresses are used up."""
        self._memory = memory
        self._dma = dma
        self._paddr, self.iova = dma.alloc_coherent(_BYTES)
        self.tail = 0

    def reset(self) -> None:
        """Empty again, as the controller's is after it was off."""
        self._memory.write(self._paddr, bytes(_BYTES))
        self.tail = 0

    def post(self, iova: int, length: int, flags: int) -> int:
        """Fills the descriptor at the tail; returns its index. The controller sees it by the doorbell."""
        index = self.tail
        self._memory.write(self._paddr + index * _STRIDE, nic.DESCRIPTOR.pack(iova, length, flags, 0, 0))
        self.tail = (index + 1) % SIZE
        return index

    def written_back(self, index: int) -> tuple[int, int]:
        """(received length, status) of a descriptor."""
        place = self._paddr + index * _STRIDE + nic.WRITE_BACK_OFFSET
        received, status = nic.WRITE_BACK.unpack(self._memory.read(place, nic.WRITE_BACK.size))
        return received, status

    def free(self) -> None:
        self._dma.free_coherent(_BYTES, self._paddr, self.iova)
