"""The expected verdict of each attack on each target under each setting, from `expected.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from itertools import product
from typing import Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import DmaSetting, Setting, Target

#: A kernel drives the device, or an application by one of its ways.
KernelDriver = Literal["host", "guest"]
#: The same of a virtio device whose back end is what attacks.
BackEndDriver = Literal["vhost", "vhost-vfio", "vhost-noiommu", "vhost-uio"]
Driver = Literal[KernelDriver, UserDriver, BackEndDriver]
#: By who drives the device in the guest.
BACK_ENDS: dict[Literal["guest", UserDriver], BackEndDriver] = {
    "guest": "vhost",
    "vfio": "vhost-vfio",
    "noiommu": "vhost-noiommu",
    "uio": "vhost-uio",
}
Outcome = Literal["blocked", "leaked", "corrupted", "redirected", "delivered", "degraded"]

BASE_SETTINGS: tuple[DmaSetting, ...] = ("none", "strict", "passthrough")
#: What is told of attacks that the file tells of for kernels only.
_UNTOLD = "what it comes to is told of devices that a kernel drives, not of those of applications"
#: Each of them alone on top of "strict".
ADDED_SETTINGS: tuple[Setting, ...] = ("ir", "ir-nosid", "acs-off", "acs-on", "ats")
SETTINGS = BASE_SETTINGS + ADDED_SETTINGS


class Cell(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Either a `verdict`, or None where the combination does not exist; why; and who says so."""

    verdict: Outcome | None = None
    reason: str
    source: str


class Row(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One attack on one target, by a device that one of these drives; "any" is either kernel.

    `all` is the cell of each setting that has none of its own; what stands on top of "strict" is as "strict" without.
    """

    attack: str
    driver: Driver | Literal["any"]
    target: Target
    all: Cell | None = None
    none: Cell | None = None
    strict: Cell | None = None
    passthrough: Cell | None = None
    ir: Cell | None = None
    ir_nosid: Cell | None = None
    acs_off: Cell | None = None
    acs_on: Cell | None = None
    ats: Cell | None = None

    def cell(self, setting: Setting) -> Cell:
        """The cell of a setting. Raises ValueError where the row says nothing of it."""
        own: Cell | None = getattr(self, setting.replace("-", "_"))
        if own is None and setting in ADDED_SETTINGS:
            own = self.strict
        found = own or self.all
        if found is None:
            raise ValueError(f"expected.toml says nothing of {self.attack} on {self.target} under {setting}")
        return found


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
        drivers: tuple[Driver, ...] = ("host", "guest") if row.driver == "any" else (row.driver,)
        for driver, setting in product(drivers, SETTINGS):
            key = Key(row.attack, driver, row.target, setting)
            if key in cells:
                raise ValueError(f"expected.toml says two things of {key}")
            cells[key] = row.cell(setting)
    return cells


def expected(attack: str, driver: Driver, target: str, setting: Setting) -> Cell:
    """The cell of one attack. Raises KeyError for what the file does not tell of, were a kernel the driver."""
    key = Key(attack, driver, Target(target), setting)
    if driver not in (*get_args(KernelDriver), BACK_ENDS["guest"]) and key not in matrix():
        return Cell(reason=_UNTOLD, source="")
    return matrix()[key]
