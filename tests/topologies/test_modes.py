"""What a topology file can ask for, each asked for in a run of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL, launch, write

pytestmark = pytest.mark.topology


def _observed(tmp_path: Path, text: str) -> tuple[dict[str, str], dict[str, int]]:
    """Verdict by target, and the counts of the only device's I/O."""
    finished = launch(write(tmp_path, text), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    [io] = finished.results["io"]
    return {row["target"]: row["observed"] for row in finished.results["verdicts"]}, io


def test_strict(tmp_path: Path) -> None:
    verdicts, io = _observed(tmp_path, SMALL)
    assert verdicts == {"guest memory": "blocked", "host memory": "blocked"}
    assert io["traps"] == 2 * io["operations"]


def test_passthrough_never_traps_and_protects_the_host_alone(tmp_path: Path) -> None:
    verdicts, io = _observed(tmp_path, SMALL.replace("intel_iommu=on", "intel_iommu=on iommu=pt"))
    assert verdicts == {"guest memory": "corrupted", "host memory": "blocked"}
    assert io["traps"] == io["vfio_maps"] == 0


def test_a_viommu_that_the_guest_leaves_off_protects_nothing_of_it(tmp_path: Path) -> None:
    verdicts, io = _observed(tmp_path, SMALL.replace("intel_iommu=on", "quiet"))
    assert verdicts == {"guest memory": "corrupted", "host memory": "blocked"}
    assert io["traps"] == 0


def test_lazy_with_caching_mode_goes_on_strict_and_says_so(tmp_path: Path) -> None:
    text = SMALL.replace("intel_iommu=on", "intel_iommu=on iommu.strict=0")
    verdicts, io = _observed(tmp_path, text)
    assert verdicts["guest memory"] == "blocked" and io["traps"] == 2 * io["operations"]
    log = (tmp_path / "run" / "vm0.guest.log").read_text()
    assert "IOMMU batching disallowed due to virtualization" in log


def test_a_viommu_with_qemus_quirks_protects_and_costs_the_same(tmp_path: Path) -> None:
    verdicts, io = _observed(tmp_path, SMALL.replace("[vm.viommu]", '[vm.viommu]\nquirks = "qemu"'))
    assert verdicts == {"guest memory": "blocked", "host memory": "blocked"}
    assert io["traps"] == 2 * io["operations"] and io["vfio_maps"] == io["operations"]


def test_three_level_tables(tmp_path: Path) -> None:
    verdicts, _ = _observed(tmp_path, SMALL.replace("[vm.viommu]", "[vm.viommu]\naw_bits = 39"))
    assert verdicts["guest memory"] == "blocked"


def test_no_pass_through_capability_maps_everything_for_iommu_pt(tmp_path: Path) -> None:
    text = SMALL.replace("[vm.viommu]", "[vm.viommu]\npt = false").replace("=on", "=on iommu=pt")
    verdicts, io = _observed(tmp_path, text)
    assert verdicts["guest memory"] == "corrupted" and io["traps"] == 0


def test_small_payloads(tmp_path: Path) -> None:
    _, io = _observed(tmp_path, SMALL.replace('model = "nic"', 'model = "nic"\nmax_payload = 128'))
    assert io["verified"]


def test_a_static_pool_stays_translated(tmp_path: Path) -> None:
    verdicts, io = _observed(tmp_path, SMALL.replace("intel_iommu=on", "intel_iommu=on nic.static=00:03.0"))
    assert (io["mapping"], io["traps"], io["pte_writes"]) == ("static", 0, 0)
    assert verdicts["guest memory"] == "blocked"


@pytest.mark.parametrize(("words", "mapping"), [("", "dynamic"), (" edu.static=00:03.0", "static")])
def test_an_edu_turns_rogue_too(tmp_path: Path, words: str, mapping: str) -> None:
    text = SMALL.replace('"nic"', '"edu"').replace('["A2"]', '["A1", "A2", "A31"]')
    verdicts, io = _observed(tmp_path, text.replace("intel_iommu=on", f"intel_iommu=on{words}"))
    assert set(verdicts.values()) == {"blocked"} and io["mapping"] == mapping


def test_more_than_two_gib_of_guest_memory_lies_above_four(tmp_path: Path) -> None:
    verdicts, _ = _observed(tmp_path, SMALL.replace('"16M"', '"3G"'))
    assert verdicts["guest memory"] == "blocked"


PAIR = """
name = "pair"

[[device]]
name = "nic0"
model = "nic"
peer = "nic1"
operations = 20

[[device]]
name = "nic1"
model = "nic"
peer = "nic0"
operations = 12

[[vm]]
name = "vm0"
memory = "16M"
[vm.viommu]
[[vm.assign]]
device = "nic0"
"""
SAME_GUEST = '[[vm.assign]]\ndevice = "nic1"\n'
OTHER_GUEST = '[[vm]]\nname = "vm1"\nmemory = "16M"\n[vm.viommu]\n' + SAME_GUEST


@pytest.mark.parametrize("second", [SAME_GUEST, OTHER_GUEST, ""], ids=["same guest", "other guest", "host"])
def test_two_nics_on_a_cable(tmp_path: Path, second: str) -> None:
    finished = launch(write(tmp_path, PAIR + second), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    there, back = finished.results["io"]
    assert (there["operations"], back["operations"]) == (20, 12)
    assert there["verified"] and back["verified"]
    assert there["traps"] == 40 and there["vfio_maps"] == 20
    assert back["traps"] == (24 if second else 0)
    assert back["receiver"]["traps"] == 24 and back["receiver"]["vfio_maps"] == 12
    assert there["receiver"]["traps"] == (40 if second else 0)


def test_the_run_folder_tells_what_the_run_saw(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, SMALL), tmp_path / "run", "--json")
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "topology.json",
        "events.jsonl",
        "results.json",
        "latency.json",
        "report.html",
        "host.log",
        "nic0.log",
        "vm0.guest.log",
        "vm0.hypervisor.log",
    }
    assert (finished.folder / "results.json").read_text().strip() == finished.stdout.strip()
    assert "DMAR-IR: Enabled IRQ remapping in xapic mode" in finished.log("host")


def test_the_report_for_a_person(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, SMALL), tmp_path / "run")
    assert finished.status == 0
    for words in ("vIOMMU", "IOMMU", "nic0", "blocked, as expected", "traps to the hypervisor", "As expected"):
        assert words in finished.stdout
    assert "guest kernels boot" in finished.stderr
    assert "\x1b" not in finished.stdout + finished.stderr


def test_an_edu_that_the_host_drives_is_read_by_its_interrupt_handler(tmp_path: Path) -> None:
    text = 'name = "edu"\n[host]\nmemory = "32M"\n[[device]]\nname = "edu0"\nmodel = "edu"\noperations = 8\n'
    verdicts, io = _observed(tmp_path, text)
    assert verdicts == {} and io["verified"] and io["interrupts"] == io["operations"] == 8
