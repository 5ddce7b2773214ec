"""Address translation services between real processes: honest work, and a device that completes no invalidation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from viommu_actors.report.results import Results
from viommu_actors.spec.tlp import AddressType
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

OPERATIONS = 16
TOPOLOGY = f"""
name = "ats"

[host]
memory = "32M"
[host.iommu]
device_iotlb = true

[[device]]
name = "nic0"
model = "nic"
ats = true
operations = {OPERATIONS}

[[device]]
name = "edu0"
model = "edu"
operations = {OPERATIONS}

[[device]]
name = "nic1"
model = "nic"
ats = true
operations = {OPERATIONS}

[[vm]]
name = "vm0"
memory = "16M"
[vm.viommu]
[[vm.assign]]
device = "nic1"
"""
NIC, EDU = "01:00.0", "02:00.0"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, Results]]:
    """The topology after its honest work."""
    path: Path = tmp_path_factory.mktemp("ats") / "run"
    topology = resolve(parse(TOPOLOGY))
    folder, plan = RunFolder(topology, path), make_plan(topology)
    with Supervisor(plan, folder) as supervisor:
        scenario = Scenario(topology, plan, supervisor, lambda _: None)
        scenario.run()
        yield supervisor, scenario.results()
    folder.close()


def counters(supervisor: Supervisor) -> dict[str, int]:
    found: dict[str, int] = supervisor.command("host", "counters")
    return found


def test_honest_work_is_verified_and_each_unmap_reaches_the_device(ran: tuple[Supervisor, Results]) -> None:
    supervisor, results = ran
    rows = {row.device: row for row in results.io}
    assert all(row.verified and row.operations == OPERATIONS for row in rows.values())
    assert rows["nic0"].device_tlb_invalidations == rows["nic0"].dma_unmaps == OPERATIONS
    assert rows["edu0"].device_tlb_invalidations == 0
    # A guest knows nothing of it: its unmap becomes an unmap of VFIO, and that one reaches the device.
    assert rows["nic1"].device_tlb_invalidations == rows["nic1"].vfio_unmaps == OPERATIONS
    seen = counters(supervisor)
    assert seen["iommu_translated_requests"] > 4 * OPERATIONS
    assert seen["iommu_device_tlb_invalidations"] == seen["device_tlb_invalidations"]
    assert seen.get("iommu_faults", 0) == seen.get("ats_timeouts", 0) == 0
    device: dict[str, int] = supervisor.command("nic0", "counters")
    assert device["invalidations"] and device["translation requests"]
    assert not supervisor.command("edu0", "counters").get("translation requests")


def test_a_device_that_completes_no_invalidation_is_blocked_and_the_others_go_on(
    ran: tuple[Supervisor, Results],
) -> None:
    supervisor, _ = ran

    def attack(**step: Any) -> str:
        (result,) = supervisor.command("nic0", "attack", steps=[step])
        status: str = result["status"]
        return status

    assert attack(do="invalidations", policy="ignore") == "completed"
    kept = supervisor.command("host", "hold", bdf=NIC, pages=1)
    assert attack(do="read", address=kept, length=4) == "completed"
    before = counters(supervisor)
    # The unmap waits for the device, and ends without it.
    supervisor.command("host", "release", bdf=NIC)
    after = counters(supervisor)
    assert after["ats_timeouts"] - before.get("ats_timeouts", 0) == 1
    assert after["iommu_invalidation_timeouts"] == 1
    work = supervisor.command("host", "io", bdf=EDU, operations=OPERATIONS)
    assert work["verified"] and work["operations"] == OPERATIONS
    guest = supervisor.command("vm0.guest", "io", bdf="00:03.0", operations=OPERATIONS)
    assert guest["verified"] and guest["operations"] == OPERATIONS
    for at in (AddressType.UNTRANSLATED, AddressType.TRANSLATED):
        assert attack(do="read", address=kept, length=4, at=int(at)) != "completed"
    assert counters(supervisor)["ats_timeouts"] == after["ats_timeouts"]
