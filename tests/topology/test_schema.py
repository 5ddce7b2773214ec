"""The editor's schema is that of the model, and every key in it is explained."""

from __future__ import annotations

import json
from pathlib import Path

from viommu_actors.topology.schema import schema

SHIPPED = Path(__file__).parents[2] / "configs" / "topology.schema.json"


def test_the_shipped_schema_is_current() -> None:
    assert json.loads(SHIPPED.read_text()) == json.loads(schema()), (
        "run: python -m viommu_actors.topology.schema > configs/topology.schema.json"
    )


def test_every_key_is_explained() -> None:
    for name, table in json.loads(schema())["$defs"].items():
        assert table["description"], name
        for key, described in table["properties"].items():
            assert described.get("description"), f"{name}.{key}"
