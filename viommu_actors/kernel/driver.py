"""What a kernel's device driver is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from viommu_actors.kernel.kernel import Kernel
    from viommu_actors.kernel.pci import PciDevice


class IoResult(NamedTuple):
    """What a run of honest I/O did. `mapping` is "dynamic" or "static"."""

    operations: int
    bytes: int
    verified: bool
    mapping: str


class Driver(Protocol):
    """A driver bound to one device; the class itself is what binds."""

    name: ClassVar[str]
    #: (vendor, device) of what the driver takes.
    ids: ClassVar[Collection[tuple[int, int]]]

    @classmethod
    def probe(cls, kernel: Kernel, device: PciDevice) -> Self:
        """Takes the device into use. Raises OSError where that fails; the device is then left as it was."""
        ...

    def remove(self) -> None:
        """Stops the device and gives everything back."""
        ...

    def control_mapping(self) -> tuple[int, int, int]:
        """(iova, paddr, size) of a page that stays mapped for the device, both ways, until `release_control`."""
        ...

    def release_control(self) -> None:
        """Ends what `control_mapping` began."""
        ...

    def run_io(self, operations: int) -> IoResult:
        """Does `operations` single-page transfers and verifies every byte."""
        ...
