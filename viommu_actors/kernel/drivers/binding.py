"""What the drivers share: binding a DMA device, its buffers, waiting for it, and a page for a positive control."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from errno import ETIMEDOUT
from typing import TYPE_CHECKING

from viommu_actors.kernel import intx
from viommu_actors.kernel.dma import Direction, Dma
from viommu_actors.kernel.irq import has_messages
from viommu_actors.spec import pci

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice

PAGE = 4096
#: Seconds without any interrupt after which a device counts as stuck; a completion timeout of the fabric fits in.
_TIMEOUT = 5.0
#: Interrupts of others that a wait sits through before it gives up.
_WAKES = 100_000


class Buffers:
    """`count` pages for transfers one way: mapped once for all (static), or each as it is used (dynamic)."""

    def __init__(self, kernel: Kernel, dma: Dma, count: int, direction: Direction, static: bool) -> None:
        """Raises OSError where memory or addresses are used up."""
        self._kernel = kernel
        self._dma = dma
        self._direction = direction
        self._count = count
        self._paddr = kernel.pages.alloc(count)
        self._static: int | None = None
        if static:
            try:
                self._static = dma.map(self._paddr, count * PAGE, direction)
            except OSError:
                kernel.pages.free(self._paddr, count)
                raise

    def paddr(self, index: int) -> int:
        return self._paddr + index * PAGE

    def map(self, index: int) -> int:
        """The page's address for the device, until `unmap`."""
        if self._static is not None:
            return self._static + index * PAGE
        return self._dma.map(self.paddr(index), PAGE, self._direction)

    def unmap(self, iova: int) -> None:
        if self._static is None:
            self._dma.unmap(iova, PAGE, self._direction)

    def free(self) -> None:
        """Gives the pages back; dynamic mappings are gone by then."""
        if self._static is not None:
            self._dma.unmap(self._static, self._count * PAGE, self._direction)
        self._kernel.pages.free(self._paddr, self._count)


class Binding:
    """A device in the hands of a driver: bus master, interrupts, DMA."""

    def __init__(
        self,
        kernel: Kernel,
        device: PciDevice,
        handlers: Sequence[Callable[[], None]],
        dma_bits: int = 64,
        asks: Callable[[], bool] | None = None,
    ) -> None:
        """`handlers` one for each MSI-X vector; all run for the one MSI of a device without, or its INTx.

        `asks`, of a driver that can do with INTx: whether the device asks; what takes its wire down is done by then, or
        by the handlers. Raises OSError where the device cannot be taken into use.
        """
        self.kernel = kernel
        self.device = device
        self.memory = kernel.machine.memory
        self.dma = kernel.dma(device)
        self.dma.set_mask(dma_bits)
        if asks is not None and not has_messages(device):
            self._request_line(handlers, asks)
        else:
            kernel.irq.request_vectors(device, handlers)
        device.set_command(*[pci.Command.MEMORY | pci.Command.BUS_MASTER] * 2)
        self._control: tuple[int, int] | None = None

    def stop(self) -> None:
        """Ends the device's DMA and interrupts, before its buffers go."""
        self.device.set_bus_master(False)
        self.release_control()

    def release(self) -> None:
        """Gives the device and its vectors back."""
        self.device.set_bus_master(False)
        self.kernel.irq.free_device(self.device)
        if not has_messages(self.device):
            self.kernel.lines.free(self.device)
            intx.enable(self.device, False)

    def _request_line(self, handlers: Sequence[Callable[[], None]], asks: Callable[[], bool]) -> None:
        def handle() -> bool:
            asked = asks()
            if asked:
                for handler in handlers:
                    handler()
            return asked

        self.kernel.lines.request(self.device, handle)
        intx.enable(self.device, True)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Takes interrupts until `done()`. Raises TimeoutError (ETIMEDOUT) where the device does not answer."""
        for _ in range(_WAKES):
            if done():
                return
            if not self.kernel.machine.wait_for_interrupt(_TIMEOUT):
                break
        if not done():
            raise OSError(ETIMEDOUT, f"{self.device.name}: {what}: no answer in {_TIMEOUT:g} s")

    def control_mapping(self) -> tuple[int, int, int]:
        """(iova, paddr, size) of a page that the device may read and write until `release_control`."""
        if self._control is None:
            paddr = self.kernel.pages.alloc()
            try:
                self._control = self.dma.map(paddr, PAGE, Direction.BIDIRECTIONAL), paddr
            except OSError:
                self.kernel.pages.free(paddr)
                raise
        iova, paddr = self._control
        return iova, paddr, PAGE

    def release_control(self) -> None:
        """Takes the page of `control_mapping` back from the device."""
        if self._control is not None:
            iova, paddr = self._control
            self._control = None
            self.dma.unmap(iova, PAGE, Direction.BIDIRECTIONAL)
            self.kernel.pages.free(paddr)


class BoundDriver:
    """What every driver of a bound device does the same way; `_undo` takes back what its probe set up."""

    _binding: Binding
    _undo: ExitStack

    def remove(self) -> None:
        self._undo.close()

    def control_mapping(self) -> tuple[int, int, int]:
        return self._binding.control_mapping()

    def release_control(self) -> None:
        self._binding.release_control()


class NetDriver(BoundDriver, ABC):
    """A driver of a network device: what it has besides is a `netdev.Netdev`'s."""

    mac: bytes
    max_frame: int
    _static: bool

    @property
    def mapping(self) -> str:
        """ "static" where the pages are mapped once, else "dynamic"."""
        return "static" if self._static else "dynamic"

    @property
    @abstractmethod
    def link_up(self) -> bool: ...

    @abstractmethod
    def listen(self) -> None: ...

    @abstractmethod
    def send(self, frame: bytes) -> None: ...

    @abstractmethod
    def receive(self) -> bytes: ...


def is_static(kernel: Kernel, device: PciDevice, parameter: str) -> bool:
    """Whether a command line parameter such as `nic.static=00:04.0,00:05.0` names the device."""
    return any(_names(name, device) for name in kernel.cmdline.values(parameter))


def _names(text: str, device: PciDevice) -> bool:
    try:
        return pci.parse_bdf(text) == device.bdf
    except ValueError:
        return False
