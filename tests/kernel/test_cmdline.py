"""Which words of a command line count."""

from __future__ import annotations

import pytest

from viommu_actors.kernel.cmdline import CommandLine


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("intel_iommu=on", True),
        ("intel_iommu=on,sp_off", True),
        ("intel_iommu=sp_off intel_iommu=on", True),
        ("intel_iommu=on intel_iommu=sp_off", True),
        ("intel_iommu=on intel_iommu=off", False),
        ("intel_iommu=sp_off", False),
        ("", False),
    ],
)
def test_the_last_on_or_off_of_intel_iommu_counts(text: str, on: bool) -> None:
    assert CommandLine(text).iommu is on
