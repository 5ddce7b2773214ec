"""Outside programs that judge what the project makes."""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

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
    return _missing(f"{program} is missing: apt-get install {PACKAGES.get(program, program)}")


def require_module(name: str) -> ModuleType:
    """The same for one that is a Python package, or brings a library of the system to Python."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        return _missing(f"{name}: {error}")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("VIOMMU_REQUIRE_JUDGES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
