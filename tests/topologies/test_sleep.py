"""Applications in a guest that sleep until their device's interrupt wakes them, as real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import CONFIGS, launch, write

pytestmark = pytest.mark.topology

#: One nic, and an application that sleeps on it.
ONE = """
name = "sleep"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 64

[[vm]]
name = "vm0"
memory = "16M"
cmdline = "intel_iommu=on"

[vm.viommu]

[[vm.assign]]
device = "nic0"

[[vm.app]]
name = "l3fwd-power"
hugepages = "2M"

[[vm.app.port]]
device = "nic0"
rx = "interrupt"
"""
#: The nic at the other end of a cable stays the host's.
PEER = """
[[device]]
name = "nic1"
model = "nic"
peer = "nic0"
"""
UIO = 'driver = "uio"\n'
NO_MSI = 'edit = [{ hide = "msi" }, { hide = "msix" }]\n'


def _rows(config: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Of the application's work, by the way to the device."""
    finished = launch(config, folder / "run", "--json")
    assert finished.status == 0, finished.stderr + finished.stdout[-2000:]
    return {row["driver"]: row for row in finished.results["io"] if row["driver"] != "kernel"}


def test_each_packet_wakes_the_application_by_msix_or_by_intx(tmp_path: Path) -> None:
    rows = _rows(CONFIGS / "dpdk-interrupts.toml", tmp_path)
    for row in rows.values():
        assert (row["operations"], row["verified"], row["mapping"]) == (64, True, "static")
        assert row["interrupts"] == row["wakes"] == 32
        assert row["vfio_maps"] == 0
    # To sleep, and to read the eventfd.
    assert rows["vfio"]["per_packet"]["system_calls"] == 2
    assert rows["vfio"]["interrupts_forwarded"] == rows["vfio"]["traps"] == 0
    # To sleep, to read the count, and to clear interrupt disable: read, write. It is armed once more at the start.
    assert rows["uio"]["system_calls"] == 4 * 32 + 2
    assert rows["uio"]["interrupts_forwarded"] == 32
    # The driver looks at the device and masks it, ends the interrupt; the application's two.
    assert rows["uio"]["traps"] == 5 * 32 + 2


@pytest.mark.parametrize("driver", ["vfio", "uio"])
def test_a_packet_from_the_host_wakes_an_application_in_a_guest(tmp_path: Path, driver: str) -> None:
    text = ONE.replace("operations = 64", 'operations = 8\npeer = "nic1"').replace("=on", "=on iommu=pt")
    row = _rows(write(tmp_path, text + (UIO if driver == "uio" else "") + PEER), tmp_path)[driver]
    assert (row["operations"], row["verified"]) == (8, True)
    assert row["interrupts"] == row["wakes"] == 8
    assert row["system_calls"] == 8 * (4 if driver == "uio" else 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new", "forwarded", "traps"),
    [
        ('memory = "16M"', 'memory = "16M"\nirqfd = false', 32, 0),
        ("[[vm.assign]]", '[[vm.assign]]\nedit = [{ hide = "msix" }]', 0, 0),
    ],
    ids=["through the hypervisor", "by MSI"],
)
def test_by_other_ways_of_the_interrupt(tmp_path: Path, old: str, new: str, forwarded: int, traps: int) -> None:
    row = _rows(write(tmp_path, ONE.replace(old, new)), tmp_path)["vfio"]
    assert row["interrupts"] == row["wakes"] == 32
    assert (row["interrupts_forwarded"], row["traps"]) == (forwarded, traps)


def test_where_no_device_has_msi_all_of_them_share_the_lines(tmp_path: Path) -> None:
    """The kernel's drivers and the application's by VFIO do with INTx, which the hypervisor presents."""
    rows = _rows(write(tmp_path, ONE.replace("[[vm.assign]]", "[[vm.assign]]\n" + NO_MSI)), tmp_path)
    row = rows["vfio"]
    assert row["verified"] and row["interrupts"] == row["wakes"] == row["interrupts_forwarded"] == 32
    # To sleep, to read the eventfd, and to unmask: once more at the start.
    assert row["system_calls"] == 3 * 32 + 1


@pytest.mark.long
def test_intx_where_interrupts_are_not_remapped(tmp_path: Path) -> None:
    """Without a vIOMMU, and with one that does not remap: by the compatibility format."""
    for number, viommu in enumerate(("", "[vm.viommu]\nintremap = false")):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = ONE.replace("[vm.viommu]", viommu).replace("=on", "=on iommu=pt") + UIO
        row = _rows(write(folder, text), folder)["uio"]
        assert row["verified"] and row["wakes"] == 32


#: A nic without MSI, handed on to a guest in a guest.
NESTED = """
name = "nested"

[host]
memory = "32M"

[[device]]
name = "nic0"
model = "nic"
operations = 8

[[vm]]
name = "l1"
memory = "64M"

[vm.viommu]

[[vm.assign]]
device = "nic0"
edit = [{ hide = "msi" }, { hide = "msix" }]

[[vm]]
name = "l2"
parent = "l1"
memory = "16M"

[vm.viommu]

[[vm.assign]]
device = "nic0"
"""


@pytest.mark.long
def test_intx_goes_up_the_tower_and_its_end_comes_down(tmp_path: Path) -> None:
    finished = launch(write(tmp_path, NESTED), tmp_path / "run", "--json")
    assert finished.status == 0, finished.stderr
    [row] = finished.results["io"]
    assert row["verified"] and row["interrupts"] == row["interrupts_forwarded"] == 4
    traps = {level["vm"]: level["counts"]["traps"] for level in row["levels"]}
    # Two for each map and unmap; for each interrupt, L2's end of it; in L1 VFIO masks (read, write), ends and unmasks.
    assert traps == {"l2": 2 * 8 + 4, "l1": 2 * 8 + 5 * 4}
