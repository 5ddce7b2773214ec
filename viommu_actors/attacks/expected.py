"""The expected verdict of each attack on each target under each setting, from `expected.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from viommu_actors.attacks.catalogue import Target

Driver = Literal["host", "guest"]
Setting = Literal["none", "strict", "passthrough"]
Outcome = Literal["blocked", "leaked", "corrupted", "redirected"]


class Cell(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Either a `verdict`, or None where the combination does not exist; why; and who says so."""

    verdict: Outcome | None = None
    reason: str
    source: str


class Row(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One attack on one target, by a device that this kernel drives."""

    attack: str
    driver: Driver
    target: Target
    none: Cell
    strict: Cell
    passthrough: Cell


class Key(NamedTuple):
    attack: str
    driver: Driver
    target: Target
    setting: Setting


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    expected: tuple[Row, ...]


@cache
def matrix() -> dict[Key, Cell]:
    """Every cell of the data file."""
    text = resources.files(__package__).joinpath("expected.toml").read_text(encoding="utf-8")
    cells: dict[Key, Cell] = {}
    for row in msgspec.convert(tomllib.loads(text), _File).expected:
        settings: tuple[tuple[Setting, Cell], ...] = (
            ("none", row.none),
            ("strict", row.strict),
            ("passthrough", row.passthrough),
        )
        for setting, cell in settings:
            key = Key(row.attack, row.driver, row.target, setting)
            if key in cells:
                raise ValueError(f"expected.toml says two things of {key}")
            cells[key] = cell
    return cells


def expected(attack: str, driver: Driver, target: str, setting: Setting) -> Cell:
    """The cell of one attack. Raises KeyError for what the file does not tell of."""
    return matrix()[Key(attack, driver, Target(target), setting)]
