"""`viommu topology --trace`: a file that a viewer of Chrome traces opens, and one that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launch, write

pytestmark = pytest.mark.topology


def test_a_trace_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    done = launch(write(tmp_path, SMALL), tmp_path / "run", "--json", "--trace", "/dev/full")
    assert done.status == 1 and done.results["ok"] is True
    assert "/dev/full: No space left on device" in done.stderr.splitlines() and "Traceback" not in done.stderr
    assert json.loads((done.folder / "results.json").read_text()) == done.results
