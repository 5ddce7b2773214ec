"""What may be asked at the control door of a run: one JSON object a request, its fields typed and bounded.

`status`, `stop` and `cancel` are answered at once. The others are jobs: they are done one after another once the run's
own verdicts are in, tell of their progress as {"progress": text}, and end with {"result": object}, or with
{"error": text, "how": "refused" | "failed" | "died" | "interrupted"}.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

#: Bytes of a script.
MAX_SCRIPT = 1 << 16
#: Bytes of a request: a script, of which JSON makes six times as much at most.
MAX_REQUEST = 8 * MAX_SCRIPT
MAX_REPEAT = 1000
#: Seconds that a script may take.
MAX_SECONDS = 3600
_MOST_ATTACKS = 256

#: Of a device or an attack; that there is none of that name is said by whoever looks for it.
Name = Annotated[str, Meta(max_length=64)]
Place = Literal["slot", "as", "swap"]


class _Request(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="command"):
    """`id` comes back with every answer to it; one of 0 does not."""

    id: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0


class Status(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="status"):
    """The run's processes, what is attached, and where there is room."""


class Stop(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="stop"):
    """Ends the run."""


class Cancel(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="cancel"):
    """Gives up the asker's own jobs, those that wait and the one that is being done."""


class DeviceAdd(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="device_add"):
    """Attaches a rogue: in the place of a `device` ("as": it takes over the link, "swap": that one is pulled out), or
    in a free `slot` (None: the first). It is unplugged when the asker's connection ends, unless `detach`."""

    place: Place
    device: Name | None = None
    slot: Annotated[int, Meta(ge=1, le=31)] | None = None
    model: Literal["nic", "edu"] = "nic"
    detach: bool = False


class Attack(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="attack"):
    """Has an attached rogue play attacks of the catalogue, all that apply where none is named."""

    device: Name
    attacks: Annotated[tuple[Name, ...], Meta(max_length=_MOST_ATTACKS)] = ()
    repeat: Annotated[int, Meta(ge=1, le=MAX_REPEAT)] = 1


class Script(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="script"):
    """Has an attached rogue run a script: the text of a module that defines a `viommu_actors.rogue.Rogue`."""

    device: Name
    text: Annotated[str, Meta(max_length=MAX_SCRIPT)]
    name: Name = "script"
    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = 30.0
    repeat: Annotated[int, Meta(ge=1, le=MAX_REPEAT)] = 1


class DeviceDel(_Request, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="device_del"):
    """Unplugs an attached rogue."""

    device: Name


Job = DeviceAdd | Attack | Script | DeviceDel
Request = Status | Stop | Cancel | Job

_DECODER: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def read(frame: bytes) -> Request:
    """Raises ValueError, in one line, for what is no request."""
    try:
        return _DECODER.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f'{error}; a request is a JSON object like {{"command": "status"}}') from None
