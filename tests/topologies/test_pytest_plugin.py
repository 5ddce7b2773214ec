"""The fixtures for suites of one's own, and what docs/writing-a-rogue.md shows of them, each in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.topologies.launcher import ROOT, SMALL
from viommu_actors.devices.script import _rogue_of
from viommu_actors.running import to_toml
from viommu_actors.topology.load import parse

pytestmark = pytest.mark.topology

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing-a-rogue.md").read_text(), re.DOTALL)


def _pytest(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "viommu_actors.pytest_plugin", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=55,
    )


def test_the_guides_test_passes(tmp_path: Path) -> None:
    [example] = [block for block in BLOCKS if "viommu_topology" in block]
    finished = _pytest(tmp_path, example)
    assert finished.returncode == 0, finished.stdout


def test_the_guides_rogue_is_one() -> None:
    [example] = [block for block in BLOCKS if block.startswith("from viommu_actors.rogue")]
    assert type(_rogue_of(example, "mine.py")).__name__ == "Mine"


def test_what_goes_wrong_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    text = f"CONFIG = {SMALL!r}" + (
        "\n"
        "import pytest\n"
        "from viommu_actors.running import NotRunning\n"
        "from viommu_actors.supervise.client import JobFailed\n"
        "def test_refused(viommu_topology):\n"
        "    with pytest.raises(NotRunning, match='name'):\n"
        "        viommu_topology(CONFIG.replace('nic0', 'NIC0'))\n"
        "def test_no_such_device(viommu_topology, viommu_rogue):\n"
        "    topology = viommu_topology(CONFIG)\n"
        "    with pytest.raises(JobFailed, match='no device'):\n"
        "        viommu_rogue(topology, as_device='nic7')\n"
        "    with pytest.raises(JobFailed, match='ZeroDivisionError'):\n"
        "        viommu_rogue(topology, slot=2, script='from viommu_actors.rogue import Rogue\\n'\n"
        "            'class R(Rogue):\\n  def run(self): 1 / 0\\n')\n"
        "    assert topology.status()['attached'] == []\n"
        "    assert 'BAR 0' in topology.log('host')\n"
        "    print('pid', topology._process.pid)\n"
        "    assert False, 'a test that fails'\n"
    )
    finished = _pytest(tmp_path, text)
    assert finished.returncode == 1 and "1 failed, 1 passed" in finished.stdout, finished.stdout
    [pid] = re.findall(r"pid (\d+)", finished.stdout)
    assert not Path(f"/proc/{pid}").exists()


def test_it_costs_nothing_until_it_is_asked_for() -> None:
    code = "import viommu_actors.pytest_plugin, sys; print([name for name in sys.modules if name.startswith('viommu')])"
    finished = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert finished.stdout.strip() == "['viommu_actors', 'viommu_actors.pytest_plugin']"


def test_a_dict_is_a_topology() -> None:
    config = {
        "name": "mine",
        "host": {"memory": "32M", "acs": False},
        "device": [{"name": "nic0", "model": "nic", "rogue": ["A1"], "operations": 8}],
        "vm": [{"name": "vm0", "viommu": {}, "assign": ({"device": "nic0", "edit": [{"hide": "pm"}]},)}],
    }
    assert tomllib.loads(to_toml(config))["host"] == {"memory": "32M", "acs": False}
    assert parse(to_toml(config)).vm[0].assign[0].edit[0].hide == "pm"
    with pytest.raises(TypeError, match="no TOML"):
        to_toml({"name": None})
