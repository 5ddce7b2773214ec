"""Claim C11: a device handed on to a guest in a guest, as real processes."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import ENODEV, ENOSPC, EPERM
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, assert_gone, launch, launched, write
from viommu_actors.kernel.vfio.type1 import UNSAFE_INTERRUPTS
from viommu_actors.kernel.vfio.vfio import NO_GROUP
from viommu_actors.spec.pci import COMMAND, Command
from viommu_actors.spec.vfio import DMA_ENTRY_LIMIT
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.owner import owner_of
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.scripted import Scripted
from viommu_actors.supervise.stage import Stage
from viommu_actors.supervise.supervisor import CommandFailed, Supervisor
from viommu_actors.topology.load import convert, parse
from viommu_actors.topology.model import Topology
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology

pytestmark = pytest.mark.topology

#: What one dynamic map and unmap of a page cost at every level with a vIOMMU, times 64 operations.
CLIMBING = {
    "traps": 128,
    "vfio_maps": 64,
    "vfio_unmaps": 64,
    "pte_writes": 128,
    "invalidations": 128,
    "queue_tail_writes": 128,
    "interrupts": 32,
}
DRIVING = {"dma_maps": 64, "dma_unmaps": 64}


def _run(name: str, folder: Path) -> dict[str, Any]:
    finished = launch(CONFIGS / f"{name}.toml", folder / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    assert finished.results["ok"] is True
    return finished.results


def _levels(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    [row] = results["io"]
    assert row["verified"] and row["operations"] == 64
    return {level["vm"]: {key: n for key, n in level["counts"].items() if n} for level in row["levels"]}


def _verdicts(results: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    for row in results["verdicts"]:
        assert row["evidence"]["control"] is True
        if row["observed"] == "blocked":
            fault = row["evidence"]["fault"]
            # By the host's IOMMU, whatever the depth, and under the physical requester ID.
            assert fault["unit"] == "host iommu" and fault["source"] == "01:00.0"
            assert row["evidence"]["canary_before"] == row["evidence"]["canary_after"] != ""
    rows = results["verdicts"]
    return {(row["attack"], row["target"]): (row["observed"], row.get("withheld_by", "")) for row in rows}


def test_a_device_is_handed_on_to_l2(tmp_path: Path) -> None:
    results = _run("nested", tmp_path)
    # L1 takes each interrupt and passes it on; nothing traps, and nothing is mapped.
    assert _levels(results) == {"vm0": {"interrupts": 32}, "vm1": {**DRIVING, "interrupts": 32}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("corrupted", ""),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest"),
    }
    # Exclusive at each level, and the same device.
    assert [(row["host"], row["vm"], row["guest"], row["second_open"]) for row in results["assignments"]] == [
        ("01:00.0", "vm0", "00:03.0", "EBUSY"),
        ("vm0 00:03.0", "vm1", "00:03.0", "EBUSY"),
    ]


def test_with_a_viommu_in_l2_a_map_climbs_the_tower(tmp_path: Path) -> None:
    results = _run("nested-l2-viommu", tmp_path)
    assert _levels(results) == {"vm0": CLIMBING, "vm1": {**CLIMBING, **DRIVING}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("blocked", "vm1.guest"),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest"),
    }


@pytest.mark.long
def test_a_third_level_by_configuration_alone(tmp_path: Path) -> None:
    results = _run("nested-l3", tmp_path)
    assert _levels(results) == {"vm0": CLIMBING, "vm1": CLIMBING, "vm2": {**CLIMBING, **DRIVING}}
    assert _verdicts(results) == {
        ("A2", "guest memory"): ("blocked", "vm2.guest"),
        ("A2", "host memory"): ("blocked", "host"),
        ("A12", "other guest"): ("blocked", "vm0.guest, vm1.guest"),
    }


def test_a_script_in_l2_that_reads_its_own_rings_gets_at_no_other_guest(tmp_path: Path) -> None:
    """L1's memory holds L2's, and that is none of another guest's for a device in L2."""
    topology = resolve(parse((CONFIGS / "nested-l2-viommu.toml").read_text().replace('rogue = ["A2", "A12"]', "")))
    run, plan = RunFolder(topology, tmp_path / "run"), make_plan(topology)
    with closing(run), Supervisor(plan, run) as supervisor:
        Scenario(topology, plan, supervisor, lambda _: None).boot()
        device = topology.device("nic0")
        stage = Stage(topology, plan, supervisor, device, owner_of(topology, device))
        lines = ["def run(self):", *(f"    self.dma_read({iova}, 8)" for iova, _ in stage.mapped())]
        assert len(lines) > 1
        lines.append("    self.dma_read(self.targets.canaries['other guest'][0], 8)")
        script = "from viommu_actors.rogue import Rogue\nclass Mine(Rogue):\n" + "".join(f"    {x}\n" for x in lines)
        [verdict], said = Scripted(stage).play(script, "mine.py", 20)
        assert said["error"] == ""
        assert (verdict.target, verdict.observed, verdict.evidence.attempts) == ("other guest", "blocked", 1)


def test_memory_that_l1_lent_to_l2_is_l1s_own_for_a_device_that_l1_keeps(tmp_path: Path) -> None:
    """By L1's own addresses the device gets at it, where L1 does not keep it from that."""
    kept = '[[device]]\nname = "edu0"\nmodel = "edu"\nrogue = ["A12"]\n\n[[vm]]'
    text = _sized("64M", "16M").replace("[[vm]]", kept, 1)
    text = text.replace("[[vm.assign]]", '[[vm.assign]]\ndevice = "edu0"\nbypass_iommu = true\n\n[[vm.assign]]', 1)
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0 and finished.results["verdicts"] == []
    [row] = finished.results["absent"]
    assert (row["device"], row["attack"], row["target"]) == ("edu0", "A12", "other guest")
    assert "their memory is a part of its own" in row["reason"]


@contextmanager
def _booted(text: str, folder: Path) -> Iterator[Supervisor]:
    with _booting(resolve(parse(text)), folder) as (supervisor, scenario):
        scenario.boot()
        yield supervisor


@contextmanager
def _booting(topology: ResolvedTopology, folder: Path) -> Iterator[tuple[Supervisor, Scenario]]:
    run, plan = RunFolder(topology, folder / "run"), make_plan(topology)
    with closing(run), Supervisor(plan, run, contain=topology.on_death == "contain") as supervisor:
        yield supervisor, Scenario(topology, plan, supervisor, lambda _: None)


def _sized(l1: str, l2: str) -> str:
    """A device in an L2 without a vIOMMU, of which all memory is mapped."""
    text = (CONFIGS / "nested.toml").read_text().replace('rogue = ["A2", "A12"]', "")
    return text.replace('memory = "64M"', f'memory = "{l1}"').replace('memory = "16M"', f'memory = "{l2}"')


def _leaves(supervisor: Supervisor) -> int:
    """Entries of the host's container that shadows L1's vIOMMU."""
    [book] = supervisor.command("vm0.hypervisor", "books")
    return int(book["live"])


@pytest.mark.long
@pytest.mark.parametrize(("l1", "l2", "entries"), [("64M", "16M", 8), ("320M", "256M", 128)])
def test_large_pages_are_used_at_every_level(tmp_path: Path, l1: str, l2: str, entries: int) -> None:
    with _booted(_sized(l1, l2), tmp_path) as supervisor:
        # L1's kernel maps L2's memory in 2 MiB pages, of which each is one entry for the host.
        assert _leaves(supervisor) == entries
        assert "Errno" not in (tmp_path / "run" / "vm0.hypervisor.log").read_text()


def test_l2s_processes_have_l2s_memory_and_nothing_else_of_l1s(tmp_path: Path) -> None:
    with _booted(_sized("64M", "16M"), tmp_path) as supervisor:
        memory = {name: _memory_of(actor.pid) for name, actor in supervisor.actors.items()}
    [own] = memory["vm1.guest"]
    assert memory["vm1.hypervisor"] == {own} and "vm1" in own
    assert memory["vm0.guest"] == memory["vm0.hypervisor"] > {own}
    assert memory["host"] >= memory["vm0.guest"] and memory["nic0"] == set()


def _memory_of(pid: int) -> set[str]:
    """Memory slots of VMs that a process has open or mapped."""
    names = [os.readlink(path).split()[0] for path in Path(f"/proc/{pid}/fd").iterdir()]
    names += Path(f"/proc/{pid}/maps").read_text().split()
    return {name for name in names if name.startswith("/memfd:vm")}


@pytest.mark.parametrize(
    ("l1", "l2", "entries"),
    [
        ("64M", "16M", 4096),
        pytest.param("320M", "256M", 65536, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_in_small_pages_l2_needs_one_entry_of_the_hosts_more_than_there_are(
    tmp_path: Path, l1: str, l2: str, entries: int
) -> None:
    """A page for each leaf of L1's tables; of 256 MiB that is one more than VFIO's default limit."""
    text = _sized(l1, l2).replace('cmdline = "intel_iommu=on"', 'cmdline = "intel_iommu=on,sp_off"')
    if entries - 1 != DMA_ENTRY_LIMIT:
        limit = f"vfio_iommu_type1.dma_entry_limit={entries - 1}"
        text = text.replace("[[device]]", f'[host]\ncmdline = "intel_iommu=on {limit}"\n[[device]]', 1)
    with _booted(text, tmp_path) as supervisor:
        assert _leaves(supervisor) == entries - 1
        # The hypervisor beneath logs it; L1 is not told, and has mapped all of it.
        assert f"+0x1000: [Errno {ENOSPC}]" in (tmp_path / "run" / "vm0.hypervisor.log").read_text()
        [mappings] = [book for book in supervisor.command("vm0.guest", "books") if book["level"] == "VFIO, mappings"]
        assert mappings["live"] == 1
        supervisor.command("host", "faults")
        last = entries * 4096 - 4096
        supervisor.command("nic0", "attack", steps=[{"do": "read", "address": last, "length": 4}])
        [record] = supervisor.command("host", "faults")["records"]
        assert (record["source"], record["place"], record["write"]) == ("01:00.0", f"{last:#x}", False)


def test_the_same_map_at_three_depths(tmp_path: Path) -> None:
    results = _run("nested-depths", tmp_path)
    rows = {row["device"]: row for row in results["io"]}
    found = {
        device: {level["vm"]: (level["counts"]["traps"], level["counts"]["vfio_maps"]) for level in row["levels"]}
        for device, row in rows.items()
    }
    assert found == {
        "nic1": {},
        "nic2": {"vm0": (128, 64), "vm1": (128, 64)},
        "nic3": {"vm0": (128, 64), "vm1": (128, 64), "vm2": (128, 64)},
    }
    assert {(row["traps"], row["vfio_maps"], row["vfio_unmaps"]) for row in rows.values()} == {(128, 64, 64)}
    assert all(row["verified"] and row["map_unmap_us"] > 0 for row in rows.values())


def test_without_a_viommu_in_l1_its_vfio_refuses(tmp_path: Path) -> None:
    text = (CONFIGS / "nested.toml").read_text()
    before, _, after = text.partition("[vm.viommu]\n")
    finished = launch(write(tmp_path, before + after.partition("\n")[2]), tmp_path / "run")
    assert finished.status == 2 and not finished.folder.exists()
    assert 'VFIO in "vm0" says: 0000:00:03.0 has no IOMMU group' in finished.stderr


@pytest.mark.parametrize(
    ("viommu", "code", "says"),
    [("[vm.viommu]\nintremap = false", EPERM, UNSAFE_INTERRUPTS), ("", ENODEV, f"0000:00:03.0 {NO_GROUP}")],
    ids=["no interrupt remapping", "no vIOMMU"],
)
def test_what_is_refused_before_a_start_l1s_own_kernel_refuses(
    tmp_path: Path, viommu: str, code: int, says: str
) -> None:
    """Of a topology that nobody checked, so that L1's hypervisor gets as far as to ask."""
    text = (CONFIGS / "nested.toml").read_text()
    text, found = re.subn(r"\n\[vm\.viommu\]\nintremap = true.*", f"\n{viommu}", text)
    assert found == 1
    with _booting(resolve(convert(text, Topology, "")), tmp_path) as (_, scenario):
        with pytest.raises(CommandFailed) as caught:
            scenario.boot()
        assert str(caught.value).startswith("vm1.hypervisor: build: ")
        assert str(caught.value).endswith(f"[Errno {code}] {says}")
    # Linux prints the one, on the level where it happens, and is silent about the other.
    logs = {name: (tmp_path / "run" / f"{name}.log").read_text() for name in ("host", "vm0.guest")}
    printed = {name: UNSAFE_INTERRUPTS in log for name, log in logs.items()}
    assert printed == {"host": False, "vm0.guest": code == EPERM}


def test_l1_may_accept_forged_interrupts(tmp_path: Path) -> None:
    text = _sized("64M", "16M").replace("intremap = true", "intremap = false")
    unsafe = 'cmdline = "intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1"'
    with _booted(text.replace('cmdline = "intel_iommu=on"', unsafe), tmp_path) as supervisor:
        assert _leaves(supervisor) == 8


@pytest.mark.parametrize("victim", ["vm1.hypervisor", "vm1.guest"])
def test_when_l2_dies_l1_has_its_device_again(tmp_path: Path, victim: str) -> None:
    text = (CONFIGS / "nested-l2-viommu.toml").read_text()
    text = text.replace('rogue = ["A2", "A12"]', "").replace("operations = 64", "operations = 1000000")
    text = text.replace("\n[[device]]", 'on_death = "contain"\n\n[[device]]', 1)
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        os.kill(pids[victim], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and f"{victim} (pid " in finished.stderr and "Traceback" not in finished.stderr
        assert "nic0: back with vm0.guest" in finished.stderr
        # By L1's own driver, and mapped by it alone.
        [row] = finished.results["io"]
        assert row["verified"] and row["operations"] == 8
        assert (row["traps"], row["vfio_maps"], row["vfio_unmaps"]) == (16, 8, 8)
        assert_gone(pids)


def test_what_a_dead_hypervisor_in_l1_held_is_unmapped_and_reset(tmp_path: Path) -> None:
    text = _sized("64M", "16M").replace("[[device]]", 'on_death = "contain"\n[[device]]', 1)
    with _booted(text, tmp_path) as supervisor:
        command = supervisor.command
        assert _leaves(supervisor) == 8
        assert _command_register(supervisor) & Command.BUS_MASTER
        os.kill(supervisor.actors["vm1.hypervisor"].pid, signal.SIGKILL)
        while not supervisor.lost:
            supervisor.poll(1)
        assert set(supervisor.lost) == {"vm1.hypervisor", "vm1.guest"}
        live = {book["level"]: book["live"] for book in command("vm0.guest", "books")}
        assert live.pop("VFIO, mappings", 0) == 0 and set(live.values()) == {0}
        assert _leaves(supervisor) == 0
        assert not _command_register(supervisor) & Command.BUS_MASTER
        # The group is L1's to give away again.
        command("vm0.guest", "reclaim", bdf="00:03.0")
        assert command("vm0.guest", "io", bdf="00:03.0", operations=4)["verified"]
        assert supervisor.reconcile() == []


@pytest.mark.long
@pytest.mark.parametrize("victims", [("vm0.hypervisor", "vm1.guest"), ("vm1.hypervisor", "vm0.guest")])
def test_both_levels_die_at_once_while_the_wires_are_counted(tmp_path: Path, victims: tuple[str, str]) -> None:
    text = _sized("64M", "16M").replace("[[device]]", 'on_death = "contain"\n[[device]]', 1)
    with _booted(text, tmp_path) as supervisor:
        vms = {name for name, actor in supervisor.actors.items() if actor.vms}
        for name in victims:
            os.kill(supervisor.actors[name].pid, signal.SIGKILL)
        for name in victims:
            assert select.select([supervisor.actors[name].pidfd], [], [], 10)[0]
        assert supervisor.reconcile() == []
        assert set(supervisor.lost) == vms and len(vms) == 4


def _command_register(supervisor: Supervisor) -> int:
    """Of the device itself, as the host reads it."""
    space = supervisor.command("host", "config_space", bdf="01:00.0")
    return int.from_bytes(space[COMMAND : COMMAND + 2], "little")


def test_when_l1_dies_all_in_it_ends(tmp_path: Path) -> None:
    text = (CONFIGS / "nested.toml").read_text()
    text = text.replace('rogue = ["A2", "A12"]', "").replace("operations = 64", "operations = 1000000")
    text = text.replace("\n[[device]]", 'on_death = "contain"\n\n[[device]]', 1)
    with launched(write(tmp_path, text), tmp_path / "run", "--json") as running:
        running.wait_for("1000000 operations")
        pids = running.pids()
        os.kill(pids["vm0.hypervisor"], signal.SIGKILL)
        finished = running.finish()
        assert finished.status == 3 and "Traceback" not in finished.stderr
        assert finished.results["io"] == []
        assert_gone(pids)
