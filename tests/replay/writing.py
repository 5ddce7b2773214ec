"""Transcripts made in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLATFORM = {"aw_bits": 48, "caching_mode": True, "intremap": True, "pt": True, "device_iotlb": False}


def header(**changes: Any) -> dict[str, Any]:
    """A header line; `platform` is merged."""
    platform = PLATFORM | changes.pop("platform", {})
    return {
        "op": "header",
        "format": "vtd-transcript/1",
        "scenario": "test",
        "class": "spec",
        "description": "",
        "ram": [["0x0", "0x2000000"]],
        "devices": ["00:03.0"],
        "platform": platform,
    } | changes


def write(path: Path, *operations: dict[str, Any] | str, head: dict[str, Any] | None = None) -> Path:
    """One line each; text as it is."""
    lines = [head or header(), *operations]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_register(offset: int, expect: int, size: int = 4, **more: Any) -> dict[str, Any]:
    return {"op": "reg_read", "offset": hex(offset), "size": size, "expect": hex(expect)} | more


def write_register(offset: int, value: int, size: int = 4, **more: Any) -> dict[str, Any]:
    return {"op": "reg_write", "offset": hex(offset), "size": size, "value": hex(value)} | more
