"""Outside programs that judge what the project makes."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "iasl": "acpica-tools",
    "lspci": "pciutils",
    "qemu-system-x86_64": "qemu-system-x86",
}


def require(program: str) -> str:
    """Path of an outside judge; without it the test is skipped, or fails under VIOMMU_REQUIRE_JUDGES=1."""
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is not None:
        return path
    reason = f"{program} is missing: apt-get install {PACKAGES.get(program, program)}"
    if os.environ.get("VIOMMU_REQUIRE_JUDGES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
