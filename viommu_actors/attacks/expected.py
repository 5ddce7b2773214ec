"""The expected verdict of each attack on each target under each setting, from `expected.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from itertools import product
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct, field

from viommu_actors.attacks.catalogue import Setting, Target

Driver = Literal["host", "guest"]
Outcome = Literal["blocked", "leaked", "corrupted", "redirected", "delivered"]


class Cell(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Either a `verdict`, or None where the combination does not exist; why; and who says so."""

    verdict: Outcome | None = None
    reason: str
    source: str


class Row(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One attack on one target, by a device that one of these kernels drives.

    `ir` and `ir-nosid` tell of attacks on interrupts; whether DMA passes does not depend on them.
    """

    attack: str
    driver: Driver | Literal["any"]
    target: Target
    none: Cell
    strict: Cell
    passthrough: Cell
    ir: Cell | None = None
    ir_nosid: Cell | None = field(default=None, name="ir-nosid")


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
        settings: dict[Setting, Cell | None] = {
            "none": row.none,
            "strict": row.strict,
            "passthrough": row.passthrough,
            "ir": row.ir,
            "ir-nosid": row.ir_nosid,
        }
        drivers: tuple[Driver, ...] = ("host", "guest") if row.driver == "any" else (row.driver,)
        for driver, (setting, cell) in product(drivers, settings.items()):
            key = Key(row.attack, driver, row.target, setting)
            if key in cells:
                raise ValueError(f"expected.toml says two things of {key}")
            if cell is not None:
                cells[key] = cell
    return cells


def expected(attack: str, driver: Driver, target: str, setting: Setting) -> Cell:
    """The cell of one attack. Raises KeyError for what the file does not tell of."""
    return matrix()[Key(attack, driver, Target(target), setting)]
