"""The JSON schema of a topology file, for completion and checks in an editor.

`python -m viommu_actors.topology.schema > configs/topology.schema.json` after a change of the model.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from viommu_actors.attacks.catalogue import PLAYABLE
from viommu_actors.topology.model import Topology


def schema() -> str:
    """The text of `configs/topology.schema.json`."""
    described: dict[str, Any] = msgspec.json.schema(Topology)
    rogue = described["$defs"]["Device"]["properties"]["rogue"]
    rogue["items"] = {
        "enum": list(PLAYABLE),
        "description": "; ".join(f"{attack.id}: {attack.name}" for attack in PLAYABLE.values()),
    }
    rogue["uniqueItems"] = True
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | described, indent=2, default=msgspec.to_builtins) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
