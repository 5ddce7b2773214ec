"""Cost tables: what each step of a map or an unmap is charged on the modelled clock, each figure with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import convert, read_text
from viommu_actors.topology.values import Name

#: Those that come with the project.
SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "costs"
#: Whose kernel drives a device.
System = Literal["host", "guest"]
_ONES_THERE = "configs/costs/*.toml"
_START_FROM = "start from a copy of configs/costs/trap-and-emulate.toml"
_EXAMPLE = {"cost": 30645, "source": "vIOMMU, USENIX ATC 2011"}


class Figure(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One cost, and who says so."""

    cost: Annotated[int, Meta(ge=0, le=10**9, description="In the table's unit.", examples=[30645])]
    source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="Where the figure stands, and how it was derived if it does not stand there as it is.",
            examples=["vIOMMU, USENIX ATC 2011"],
        ),
    ]


class Steps(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is charged, by the count that it is charged for; a step that is absent is free."""

    trap: Annotated[Figure | None, Meta(description="An exit of the guest to its hypervisor.", examples=[_EXAMPLE])] = (
        None
    )
    invalidation: Annotated[
        Figure | None, Meta(description="An IOTLB invalidation that the driver's kernel asks for.", examples=[_EXAMPLE])
    ] = None
    vfio_map: Annotated[
        Figure | None, Meta(description="A map call of the hypervisor to the host's VFIO.", examples=[_EXAMPLE])
    ] = None
    vfio_unmap: Annotated[
        Figure | None, Meta(description="An unmap call of the hypervisor to the host's VFIO.", examples=[_EXAMPLE])
    ] = None
    pte_write: Annotated[
        Figure | None, Meta(description="An entry written in the driver's kernel's page tables.", examples=[_EXAMPLE])
    ] = None
    logic: Annotated[
        Figure | None,
        Meta(
            description="The rest of one map or unmap of the DMA API: IOVA allocation, bookkeeping.",
            examples=[_EXAMPLE],
        ),
    ] = None


class LineRate(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The model min(1, full / (io + what the steps of an I/O cost)); published as min(1, B / (A + 2c))."""

    of: Annotated[str, Meta(min_length=1, max_length=100, description="What 100 % is.", examples=["10 Gb/s"])]
    io: Annotated[Figure, Meta(description="A: an I/O without any map or unmap.", examples=[_EXAMPLE])]
    full: Annotated[Figure, Meta(description="B: what an I/O may cost at 100 %.", examples=[_EXAMPLE])]


class CostTable(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a (un)map costs on one system that somebody measured."""

    name: Annotated[
        Name,
        Meta(description="Name of the table: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["trap-and-emulate"]),
    ]
    description: Annotated[
        str,
        Meta(max_length=500, description="Which system was measured.", examples=["A vIOMMU that traps and emulates."]),
    ] = ""
    system: Annotated[
        System | None,
        Meta(
            description="Whose counts it is for: of devices that the host drives, or a guest; absent, for any.",
            examples=["guest"],
        ),
    ] = None
    unit: Annotated[
        str, Meta(min_length=1, max_length=100, description="What the costs are counted in.", examples=["cycles"])
    ] = "cycles"
    steps: Annotated[Steps, Meta(description="What is charged for.", examples=[{"trap": _EXAMPLE}])]
    line_rate: Annotated[
        LineRate,
        Meta(description="From costs to throughput.", examples=[{"of": "10 Gb/s", "io": _EXAMPLE, "full": _EXAMPLE}]),
    ]


def load_costs(path: str | Path) -> CostTable:
    """The cost table of a TOML file. Raises `TopologyError`, which tells file, key and remedy in one line."""
    try:
        return parse_costs(read_text(Path(path), _ONES_THERE))
    except Refusal as refusal:
        raise TopologyError(str(path), refusal) from None


def parse_costs(text: str) -> CostTable:
    """The cost table of a TOML text. Raises `Refusal`."""
    table = convert(text, CostTable, _START_FROM)
    if not table.line_rate.full.cost:
        raise Refusal("line_rate.full.cost", "must be at least 1", "an I/O at full rate takes some time")
    return table


def shipped(name: str) -> CostTable:
    """A table of `configs/costs`. Raises `TopologyError`."""
    return load_costs(SHIPPED / f"{name}.toml")
