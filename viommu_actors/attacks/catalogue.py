"""The attacks that a rogue device can play: what each does, and what should stop it, from `catalogue.toml`."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct


class Target(StrEnum):
    """Whose memory, interrupts or service an attack aims at, as seen by who drives the rogue."""

    GUEST_MEMORY = "guest memory"
    HOST_MEMORY = "host memory"
    OTHER_GUEST = "other guest"
    #: Of the kernel that drives the device; the host's own where that kernel has no IOMMU.
    PAGE_TABLES = "page tables"
    #: Memory which the kernel that drives the device gave to it in some way: for a time, one way, in part.
    BUFFER = "driver's buffer"
    #: Memory that a kernel gave to another device.
    OTHER_BUFFER = "another device's buffer"
    OTHER_REGISTERS = "another device's registers"
    #: A vector of the host's CPU that is no device's.
    HOST_VECTOR = "host's interrupts"
    #: The vector of another device, by the handle that this one was given.
    OTHER_DEVICE = "another device's interrupts"
    BEYOND_TABLE = "an entry beyond the table"
    ABSENT_ENTRY = "an entry that is not present"
    #: What everybody else gets of the machine while the attack lasts.
    SERVICE = "service to others"


Access = Literal["read", "write", "interrupt", "service"]
#: What a user's script did, as verdicts name it.
SCRIPTED: dict[str, Access] = {"script-read": "read", "script-write": "write", "script-interrupt": "interrupt"}
#: Which part of the protection decides about an attack.
Axis = Literal["dma", "interrupts", "acs", "ats"]
#: What stands between a device and the memory of the kernel that drives it.
DmaSetting = Literal["none", "strict", "passthrough"]
#: Those; and, each on top of "strict", interrupt remapping, the same without its check of the source ID, ACS at the
#: ports off and on, and address translation services.
Setting = Literal[DmaSetting, "ir", "ir-nosid", "acs-off", "acs-on", "ats"]


class Attack(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One row of the catalogue; the fields are explained at the top of its file."""

    id: str
    name: str
    access: Access
    does: str
    stopped_by: str
    targets: tuple[Target, ...]
    axis: Axis = "dma"
    by: Literal["device", "application", "back end"] = "device"
    back_end: bool = False
    waits: str = ""


def _read() -> dict[str, Attack]:
    text = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    return {name: msgspec.convert({"id": name, **fields}, Attack) for name, fields in rows.items()}


#: Every attack by its id, in order.
CATALOGUE: dict[str, Attack] = _read()
#: Those that can be played.
PLAYABLE: dict[str, Attack] = {name: attack for name, attack in CATALOGUE.items() if not attack.waits}


def access_of(attack: str) -> Access:
    """Of an attack of the catalogue, or of a script. Raises KeyError for any other."""
    return SCRIPTED[attack] if attack in SCRIPTED else CATALOGUE[attack].access
