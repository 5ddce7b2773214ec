"""The documents tell of every key, and what they show works as shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from viommu_actors.app.application import hugepages_for
from viommu_actors.app.system import HUGEPAGE
from viommu_actors.attacks.catalogue import CATALOGUE
from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import parse
from viommu_actors.topology.schema import schema

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "writing-a-topology.md").read_text()
TOP = 'name = "mine"\n[[device]]\nname = "nic0"\nmodel = "nic"\n'
VM = '[[vm]]\nname = "vm0"\n'
ASSIGN = '[[vm.assign]]\ndevice = "nic0"\n'


def test_every_key_is_in_the_guide() -> None:
    for name, table in json.loads(schema())["$defs"].items():
        for key in table["properties"]:
            assert re.search(rf"`{key}`|\b{key}\b =|\[{key}\]", GUIDE), f"{name}.{key}"


def test_hugepages_hold_as_many_devices_as_the_guide_says() -> None:
    assert hugepages_for(2) == HUGEPAGE < hugepages_for(3)
    assert "2M hold the pool of two devices" in GUIDE


def test_the_examples_load() -> None:
    examples = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        parse(example)


@pytest.mark.parametrize(
    "text",
    [
        TOP + VM + "[vm.viommu]\ncachingmode = true\n",
        TOP + VM + "[vm.viommu]\ncaching_mode = false\n" + ASSIGN,
        TOP + VM + ASSIGN + '[[vm]]\nname = "vm1"\n' + ASSIGN,
        TOP + VM + ASSIGN + '[[vm]]\nname = "vm1"\nparent = "vm0"\nmemory = "16M"\n' + ASSIGN,
        TOP + VM + 'memory = "4M"\n',
    ],
)
def test_the_refusals_read_as_shown(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(text)
    assert f"\n{TopologyError('mine.toml', refused.value)}\n" in GUIDE


def test_every_attack_is_in_the_docs() -> None:
    attacks = (ROOT / "docs" / "attacks.md").read_text()
    assert all(f"| {attack.id} | {attack.name} |" in attacks for attack in CATALOGUE.values())


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text()):
        assert (path.parent / target).exists(), target
