"""Fixtures of the fabric's tests."""

from __future__ import annotations

import pytest

from tests.pci.fabric import Fabric


@pytest.fixture
def fabric() -> Fabric:
    return Fabric()
