"""Reads a topology file, or says in one line why not."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.explain import explain
from viommu_actors.topology.model import Topology
from viommu_actors.topology.refusals import check

#: tomllib takes time quadratic in the parts of a dotted key: both bounds keep it under a second or so.
MAX_FILE = 64 << 10
MAX_LINE = 4096
_WHOLE_FILE = ""
_START_FROM = "start from a copy of configs/assigned-viommu.toml"
_ONES_THERE = "configs/*.toml"

_Typed = TypeVar("_Typed", bound=msgspec.Struct)


def load(path: str | Path) -> Topology:
    """The topology of a TOML file, checked. Raises `TopologyError`."""
    try:
        return parse(read_text(Path(path), _ONES_THERE))
    except Refusal as refusal:
        raise TopologyError(str(path), refusal) from None


def parse(text: str) -> Topology:
    """The topology of a TOML text, checked. Raises `Refusal`."""
    topology = convert(text, Topology, _START_FROM)
    check(topology)
    return topology


def convert(text: str, kind: type[_Typed], start_from: str) -> _Typed:
    """A TOML text as a value of this type; `start_from` is the remedy for what is no such file. Raises `Refusal`."""
    if not text.strip():
        raise Refusal(_WHOLE_FILE, "is empty", start_from)
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > MAX_LINE:
            raise Refusal(f"line {number}", f"is longer than {MAX_LINE} characters", "break it up")
    try:
        return msgspec.convert(tomllib.loads(text), kind)
    except msgspec.ValidationError as error:
        raise explain(error, kind) from None
    except RecursionError:
        raise Refusal(_WHOLE_FILE, "is nested too deeply", start_from) from None
    except ValueError as error:  # tomllib's own error, and int()'s of too many digits
        raise Refusal(_WHOLE_FILE, f"is not TOML: {error}", "mend it there, or see https://toml.io") from None


def read_text(path: Path, ones_there: str) -> str:
    """A file that a user named, bounded; `ones_there` are those that come with the project. Raises `Refusal`."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise Refusal(_WHOLE_FILE, "is a directory", "name a file in it")
        if not stat.S_ISREG(kind):  # reading a FIFO would wait for a writer
            raise Refusal(_WHOLE_FILE, "is not a regular file", "name a TOML file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise Refusal(_WHOLE_FILE, "there is no such file", f"name one of {ones_there}, or your own") from None
    except OSError as error:
        raise Refusal(_WHOLE_FILE, f"cannot be read: {error.strerror}", "name a readable file") from None
    if len(data) > MAX_FILE:
        raise Refusal(_WHOLE_FILE, f"is larger than {MAX_FILE >> 10} KiB", "name a TOML file of a few KiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(_WHOLE_FILE, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
