"""Device scopes: which functions a remapping unit is for (VT-d section 8.3.1)."""

from __future__ import annotations

from viommu_actors.kernel.pci import PciDevice
from viommu_actors.spec import pci
from viommu_actors.spec.acpi import DeviceScope, ScopeType


def in_scope(scope: DeviceScope, device: PciDevice) -> bool:
    """Whether the scope names the function, or a bridge above it."""
    chain = [device]
    while chain[0].parent is not None:
        chain.insert(0, chain[0].parent)
    steps = [divmod(member.bdf & 0xFF, pci.FUNCTIONS_PER_DEVICE) for member in chain if member.bus >= scope.start_bus]
    start = len(chain) - len(steps)
    if not steps or chain[start].bus != scope.start_bus or tuple(steps[: len(scope.path)]) != scope.path:
        return False
    return scope.kind == ScopeType.BRIDGE or (scope.kind == ScopeType.ENDPOINT and len(steps) == len(scope.path))
