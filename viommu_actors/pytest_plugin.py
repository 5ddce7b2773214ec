"""pytest fixtures for tests of protection in a suite of one's own; see docs/writing-a-rogue.md.

Loaded by pytest wherever the package is installed, so it imports nothing else of it until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from viommu_actors.report.results import RogueResults
    from viommu_actors.running import RunningTopology


@pytest.fixture
def viommu_topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningTopology]]:
    """Starts topologies: `viommu_topology(config)`, of a file's path, TOML text or a dict; each ends with the test.

    It returns once the topology's own verdicts are in. Raises `viommu_actors.running.NotRunning` where it does not get
    so far.
    """
    from viommu_actors.running import RunningTopology

    started: list[RunningTopology] = []

    def start(config: Any, *options: str) -> RunningTopology:
        running = RunningTopology(config, tmp_path_factory.mktemp("viommu"), *options)
        started.append(running)
        running.wait_until_up()
        return running

    try:
        yield start
    finally:
        for running in started:
            running.stop()


@pytest.fixture
def viommu_rogue() -> Callable[..., RogueResults]:
    """Lets a rogue loose: `viommu_rogue(topology, as_device="nic0", attacks=["A2"])`; see `RunningTopology.attack`."""

    def attack(topology: RunningTopology, **options: Any) -> RogueResults:
        return topology.attack(**options)

    return attack
