"""Claims C6, C7 and C9: applications in a guest as real processes, by VFIO, VFIO without an IOMMU, and UIO."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, Finished, launch, launched, write
from tests.topologies.rogue import attack

pytestmark = pytest.mark.topology

#: One nic, and an application that has it by one of three ways.
APP = """
name = "app"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 64
rogue = ["A54", "A2"]

[[vm]]
name = "vm0"
memory = "16M"
cmdline = "CMDLINE"

[vm.viommu]

[[vm.assign]]
device = "nic0"

[[vm.app]]
name = "testpmd"
hugepages = "2M"

[[vm.app.port]]
device = "nic0"
driver = "DRIVER"
"""


def _app(folder: Path, driver: str, cmdline: str = "intel_iommu=on", viommu: bool = True) -> Path:
    text = APP.replace("DRIVER", driver).replace("CMDLINE", cmdline)
    return write(folder, text if viommu else text.replace("[vm.viommu]", ""))


def _verdicts(results: dict[str, Any], target: str = "guest memory") -> dict[tuple[str, str, str], str]:
    rows = (row for row in results["verdicts"] if row["target"] == target)
    return {(row["device"], row["driver"], row["attack"]): row["observed"] for row in rows}


def _io(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["device"], row["driver"]): row for row in results["io"]}


def _memory_of(pid: int) -> set[str]:
    """Memory slots that a process has mapped, or could map."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return set(re.findall(r"memfd:(vm0-\S+)", "\n".join([maps, *links])))


def _shipped(name: str, folder: Path) -> Finished:
    finished = launch(CONFIGS / f"{name}.toml", folder / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    assert finished.results["ok"] is True
    return finished


def _assert_opposite(results: dict[str, Any], unsafe: str) -> None:
    """Device 1 safe and device 2 not, by a hostile device and by a buggy application; the host safe from both."""
    harm = {"A54": "corrupted", "A1": "leaked", "A2": "corrupted"}
    assert _verdicts(results) == {
        **{("nic0", "vfio", attack): "blocked" for attack in harm},
        **{("nic1", unsafe, attack): observed for attack, observed in harm.items()},
    }
    assert set(_verdicts(results, "host memory").values()) == {"blocked"}
    for row in results["verdicts"]:
        evidence = row["evidence"]
        assert evidence["control"] is True
        if row["observed"] == "blocked":
            assert evidence["fault"]["unit"] == "host iommu"
            assert evidence["canary_before"] == evidence["canary_after"] != ""
        elif row["observed"] == "corrupted":
            assert evidence["canary_before"] != evidence["canary_after"]


def _assert_static(row: dict[str, Any]) -> None:
    """C6: no trap, no VFIO call, no system call, no interrupt for any packet."""
    assert row["mapping"] == "static" and row["verified"] and row["operations"] == 256
    assert row["packets_per_second"] > 0
    nothing = ("traps", "vfio_maps", "vfio_unmaps", "pte_writes", "invalidations", "system_calls", "interrupts")
    assert {row[name] for name in nothing} == {0}
    assert set(row["per_packet"]) == {"traps", "vfio_maps", "vfio_unmaps", "interrupts", "system_calls"}
    assert set(row["per_packet"].values()) == {0}


def _assert_forwarded(app: dict[str, Any]) -> None:
    """C6, from one device to the other and back."""
    forwarded = app["forwarded"]
    assert (forwarded["packets"], forwarded["verified"], forwarded["failed"]) == (512, True, "")
    assert forwarded["packets_per_second"] > 0
    # Driver and device count the same: its loopback, a warm-up packet of it, and what was forwarded.
    for port in app["ports"]:
        told = port["statistics"]
        assert told["ipackets"] == told["hw_rx_packets"] >= 128 + 1
        # The pool has a buffer for each place in a receive ring, whatever is on its way.
        assert told.get("rx_nombuf", 0) == 0
        assert told["opackets"] == told["hw_tx_packets"] and told["hw_rx_dropped"] == told["hw_dma_errors"] == 0
    packets = [sum(port["statistics"][name] for port in app["ports"]) for name in ("ipackets", "opackets")]
    assert packets == [2 * (128 + 1) + 512 + 2] * 2
    counts = forwarded["counts"]
    assert set(counts.values()) == set(forwarded["per_packet"].values()) == {0}


def test_c7_c9_by_vfio_safe_by_uio_not_in_one_guest_with_iommu_pt(tmp_path: Path) -> None:
    results = _shipped("dpdk", tmp_path).results
    _assert_opposite(results, "uio")
    assert {row["setting"] for row in results["verdicts"]} == {"passthrough"}
    _assert_static(_io(results)["nic0", "vfio"])
    _assert_static(_io(results)["nic1", "uio"])
    [app] = results["apps"]
    _assert_forwarded(app)
    assert app["iova"] == "PA" and app["taints"] == [] and all(port["granted"] for port in app["ports"])
    assert [each["role"] for each in results["processes"]].count("app") == 1


@pytest.mark.long
def test_c7_c9_by_vfio_safe_without_an_iommu_not_in_one_guest(tmp_path: Path) -> None:
    finished = _shipped("dpdk-noiommu", tmp_path)
    results = finished.results
    _assert_opposite(results, "noiommu")
    _assert_static(_io(results)["nic0", "vfio"])
    _assert_static(_io(results)["nic1", "noiommu"])
    # The kernel's driver on the same nic, behind the vIOMMU: two traps an operation.
    kernels = _io(results)["nic0", "kernel"]
    assert kernels["traps"] == 512
    told = {name: kernels["per_packet"][name] for name in ("traps", "vfio_maps", "vfio_unmaps", "system_calls")}
    assert told == {"traps": 4, "vfio_maps": 2, "vfio_unmaps": 2, "system_calls": 0}
    [app] = results["apps"]
    _assert_forwarded(app)
    assert app["taints"] == ["U"]
    log = finished.log("vm0.guest")
    assert "Adding kernel taint for vfio-noiommu group on device" in log
    assert "vfio-noiommu device opened by user (vm0.testpmd)" in log
    # The host's kernel saw faults; type1 tells the guest's of none.
    assert "fault reason" in finished.log("host") and "fault reason" not in log


def test_an_application_of_vfio_alone_uses_its_own_addresses(tmp_path: Path) -> None:
    finished = launch(_app(tmp_path, "vfio"), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    results = finished.results
    assert results["apps"][0]["iova"] == "VA"
    assert _verdicts(results) == {("nic0", "vfio", "A54"): "blocked", ("nic0", "vfio", "A2"): "blocked"}
    setup = results["apps"][0]["setup"]
    # The pool is mapped once: a hugepage, in one piece.
    assert setup["vfio_maps"] >= 1 and setup["system_calls"] > 0


def test_uio_binds_behind_a_strict_viommu_and_all_its_dma_faults(tmp_path: Path) -> None:
    finished = launch(_app(tmp_path, "uio"), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    results = finished.results
    row = _io(results)["nic0", "uio"]
    assert (row["verified"], row["operations"], row["should_work"]) == (False, 0, False)
    assert "ring halted" in row["failed"]
    assert (row["fault"]["unit"], row["fault"]["source"]) == ("host iommu", "01:00.0")
    assert results["verdicts"] == [] and len(results["absent"]) == 4


#: Two applications with a device each, in a guest whose hugepages are above 4 GiB.
TWO = """
name = "two"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
rogue = ["A2"]

[[device]]
name = "nic1"
model = "nic"
rogue = ["A2"]

[[vm]]
name = "vm0"
memory = "2056M"
cmdline = "intel_iommu=on iommu=pt"

[vm.viommu]

[[vm.assign]]
device = "nic0"

[[vm.assign]]
device = "nic1"

[[vm.app]]
name = "safe"
hugepages = "4M"

[[vm.app.port]]
device = "nic0"

[[vm.app]]
name = "unsafe"
hugepages = "2M"

[[vm.app.port]]
device = "nic1"
driver = "uio"
"""


def test_two_applications_have_hugepages_and_kinds_of_addresses_of_their_own(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, TWO), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    results = finished.results
    assert {app["name"]: app["iova"] for app in results["apps"]} == {"vm0.safe": "VA", "vm0.unsafe": "PA"}
    assert _verdicts(results) == {("nic0", "vfio", "A2"): "blocked", ("nic1", "uio", "A2"): "corrupted"}
    assert all(row["verified"] for row in results["io"]) and len(results["io"]) == 4


@pytest.mark.parametrize(
    ("driver", "cmdline", "viommu", "errno", "reason"),
    [
        ("vfio", "", False, "EINVAL", "it has no IOMMU group"),
        ("noiommu", "intel_iommu=on vfio.enable_unsafe_noiommu_mode=1", True, "ENOENT", "/dev/vfio/noiommu-1"),
    ],
)
def test_what_the_kernel_refuses_it_refuses_as_linux_does(
    tmp_path: Path, driver: str, cmdline: str, viommu: bool, errno: str, reason: str
) -> None:
    finished = launch(_app(tmp_path, driver, cmdline, viommu), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    [port] = finished.results["apps"][0]["ports"]
    assert (port["granted"], port["expected"], port["errno"]) == (False, False, errno)
    assert reason in port["reason"]
    assert all(reason in row["reason"] for row in finished.results["absent"])


def test_nobody_but_root_gets_a_device(tmp_path: Path) -> None:
    config = _app(tmp_path, "uio")
    config.write_text(config.read_text().replace('hugepages = "2M"', 'hugepages = "2M"\nroot = false'))
    finished = launch(config, tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    [port] = finished.results["apps"][0]["ports"]
    assert (port["granted"], port["errno"]) == (False, "EACCES")


def test_an_application_has_its_own_memory_and_its_death_is_contained(tmp_path: Path) -> None:
    config = _app(tmp_path, "vfio")
    config.write_text(config.read_text().replace('name = "app"', 'name = "app"\non_death = "contain"'))
    with launched(config, tmp_path / "run", "--json", "--stay") as running:
        running.wait_for("up; Ctrl-C ends it")
        # Of the guest's memory it has its own slot, and nobody's else.
        assert _memory_of(running.pids()["vm0.testpmd"]) == {"vm0-hugepages-testpmd"}
        assert _memory_of(running.pids()["vm0.guest"]) == {"vm0-ram", "vm0-hugepages-testpmd"}
        assert _memory_of(running.pids()["nic0"]) == set()
        refused = attack(running.folder, "--as", "nic0")
        assert refused.status == 2 and 'application "testpmd" has "nic0"' in refused.stderr
        os.kill(running.pids()["vm0.testpmd"], signal.SIGKILL)
        running.wait_for('"died"')
        running.process.send_signal(signal.SIGINT)
        finished = running.finish()
    assert finished.status == 3
    died = [row["actor"] for row in finished.events() if row["event"] == "died"]
    assert died == ["vm0.testpmd"]
