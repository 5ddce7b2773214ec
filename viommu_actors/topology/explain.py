"""msgspec's account of a value that does not fit its type, in the words of a TOML file."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.model import Topology

_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number with a point",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
    "datetime": "a date",
    "date": "a date",
    "time": "a time",
    "null": "nothing",
}
_PATTERNS = {
    "name": "use 1 to 32 of a-z, 0-9 and -, not - first",
    "vswitch": "use 1 to 32 of a-z, 0-9 and -, not - first",
    "peer": "use 1 to 32 of a-z, 0-9 and -, not - first",
    "parent": "use 1 to 32 of a-z, 0-9 and -, not - first",
    "device": "use 1 to 32 of a-z, 0-9 and -, not - first",
    "memory": 'write a size in K, M or G, such as "64M"',
    "cmdline": "use printable ASCII characters only",
}


def explain(error: msgspec.ValidationError, kind: type[msgspec.Struct] = Topology) -> Refusal:
    """The refusal that tells what msgspec found in a file of this type."""
    text, _, path = str(error).partition(" - at `")
    key = path.rstrip("`").removeprefix("$").removeprefix(".")
    field, described = _lookup(kind, key)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        return _unknown_key(key, unknown[1], described)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        inner = f"{key}.{missing[1]}" if key else missing[1]
        return Refusal(inner, "is missing", _example(missing[1], _lookup(kind, inner)[0]))
    if text.startswith("Invalid enum value"):
        return _not_one_of(key, text, described)
    name = re.sub(r"\[\d+\]$", "", key.rpartition(".")[2])
    return Refusal(key or "the file", _say(text), _remedy(text, key, name, field, described))


def _unknown_key(table: str, wrong: str, described: inspect.Type | None) -> Refusal:
    known = [field.name for field in described.fields] if isinstance(described, inspect.StructType) else []
    where = f"{table}.{wrong}" if table else wrong
    return Refusal(where, "unknown key", did_you_mean(wrong, known) or f"known here are {', '.join(known)}")


def _not_one_of(key: str, text: str, described: inspect.Type | None) -> Refusal:
    allowed = list(described.values) if isinstance(described, inspect.LiteralType) else []
    wrong = text.removeprefix("Invalid enum value ").strip("'")
    text_wrong = _toml(wrong if isinstance(allowed[0], str) else int(wrong))
    guess = did_you_mean(wrong, [value for value in allowed if isinstance(value, str)])
    return Refusal(key, f"{text_wrong} is not known here", guess or f"use {_or([_toml(value) for value in allowed])}")


def _say(text: str) -> str:
    """`Expected `str`, got `int`` as words."""
    if got := re.fullmatch(r"Expected `(.*)`, got `(.*)`", text):
        wanted = [_WORDS.get(name, name) for name in got[1].split(" | ") if name != "null"]
        return f"expected {' or '.join(wanted)}, got {_WORDS.get(got[2], got[2])}"
    if bound := re.fullmatch(r"Expected `int` (>=|<=) (-?\d+)", text):
        return f"must be {'at least' if bound[1] == '>=' else 'at most'} {bound[2]}"
    if length := re.fullmatch(r"Expected `(array|str)` of length <= (\d+)", text):
        return f"has more than {length[2]} {'entries' if length[1] == 'array' else 'characters'}"
    if "matching regex" in text:
        return "is not of the right form"
    return text[:1].lower() + text[1:]


def _remedy(text: str, key: str, name: str, field: inspect.Field | None, described: inspect.Type | None) -> str:
    if "matching regex" in text:
        return _PATTERNS[name]
    if "of length" in text:
        return "take some out"
    table = re.sub(r"\[\d+\]", "", key)
    if name in ("device", "vm", "assign") and not text.startswith("Expected `str`"):
        return f"write [[{table}]] with two brackets"
    if isinstance(described, inspect.StructType) and not key.endswith("]"):
        return f"write [{table}] and its keys below"
    return _example(name, field)


def _example(name: str, field: inspect.Field | None) -> str:
    described = field.type if field else None
    extra = described.extra_json_schema if isinstance(described, inspect.Metadata) else None
    if not extra or "examples" not in extra:
        return "see configs/topology.schema.json"
    return f"write, for example, {name} = {_toml(extra['examples'][0])}"


def _or(choices: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return str(value)


def _lookup(kind: type[msgspec.Struct], key: str) -> tuple[inspect.Field | None, inspect.Type | None]:
    """The field of the model that a key path names, and the type of what stands there."""
    field: inspect.Field | None = None
    described = inspect.type_info(kind)
    for name, index in re.findall(r"([a-z_]+)|\[(\d+)\]", key):
        described = _plain(described)
        if index:
            described = described.item_type if isinstance(described, inspect.VarTupleType) else described
            continue
        fields = described.fields if isinstance(described, inspect.StructType) else ()
        field = next((candidate for candidate in fields if candidate.encode_name == name), None)
        if field is None:
            return None, None
        described = field.type
    return field, _plain(described)


def _plain(described: inspect.Type) -> inspect.Type:
    """The type under its description and its `| None`."""
    while True:
        if isinstance(described, inspect.Metadata):
            described = described.type
        elif isinstance(described, inspect.UnionType):
            described = next(kind for kind in described.types if not isinstance(kind, inspect.NoneType))
        else:
            return described
