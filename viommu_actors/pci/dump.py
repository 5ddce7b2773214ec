"""Configuration space as text in the form of `lspci -xxxx`, which `lspci -F` and `pcilib` read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from viommu_actors.spec import pci

_LINE = 16


class Function(Protocol):
    """One function whose registers can be read."""

    @property
    def bdf(self) -> int: ...

    def config_read(self, offset: int, size: int) -> int: ...


def dump(functions: Iterable[Function]) -> str:
    """Every function with all of its 4096 bytes."""
    return "\n".join(dump_function(function.bdf, _bytes(function)) for function in functions)


def dump_function(bdf: int, space: bytes) -> str:
    """One function: its address, a name by its IDs, and its bytes, sixteen a line."""
    name = f"Class {_word(space, pci.CLASS_DEVICE)}: {_word(space, pci.VENDOR_ID)}:{_word(space, pci.DEVICE_ID)}"
    lines = [f"{pci.format_bdf(bdf)} {name}"]
    for offset in range(0, len(space), _LINE):
        lines.append(f"{offset:02x}: {space[offset : offset + _LINE].hex(' ')}")
    return "\n".join(lines) + "\n"


def _bytes(function: Function) -> bytes:
    words = (function.config_read(offset, 4) for offset in range(0, pci.CONFIG_SIZE, 4))
    return b"".join(word.to_bytes(4, "little") for word in words)


def _word(space: bytes, offset: int) -> str:
    return f"{int.from_bytes(space[offset : offset + 2], 'little'):04x}"
