"""The kernel's device drivers, in the order in which they are asked for a device."""

from __future__ import annotations

from collections.abc import Sequence

from viommu_actors.kernel.driver import Driver
from viommu_actors.kernel.drivers.edu import EduDriver
from viommu_actors.kernel.drivers.nic import NicDriver
from viommu_actors.kernel.drivers.virtio_net import VirtioNetDriver

DRIVERS: Sequence[type[Driver]] = (NicDriver, VirtioNetDriver, EduDriver)
