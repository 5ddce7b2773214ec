"""Drivers that every kernel has."""

from __future__ import annotations

from viommu_actors.kernel.driver import Driver

DRIVERS: tuple[type[Driver], ...] = ()
