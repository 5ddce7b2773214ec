"""Interrupt latency, device to guest: by irqfd, and through the hypervisor.

Two guests of one topology, each with an edu; the rounds of one and the other alternate. The time runs from the
guest's write that makes the device raise its interrupt to the interrupt's arrival in the guest.
Run: `.venv/bin/python benchmarks/interrupts.py`.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

ROUNDS, EACH = 40, 25
BDF = "00:03.0"
_VM = """
[[device]]
name = "edu{n}"
model = "edu"
operations = 2
[[vm]]
name = "vm{n}"
memory = "16M"
irqfd = {irqfd}
[vm.viommu]
[[vm.assign]]
device = "edu{n}"
"""
TOPOLOGY = 'name = "interrupts"\n' + _VM.format(n=0, irqfd="true") + _VM.format(n=1, irqfd="false")


def main() -> None:
    """Prints the table."""
    topology = resolve(parse(TOPOLOGY))
    with tempfile.TemporaryDirectory() as scratch:
        folder, plan = RunFolder(topology, Path(scratch) / "run"), make_plan(topology)
        with Supervisor(plan, folder) as supervisor:
            Scenario(topology, plan, supervisor, lambda text: print(text, file=sys.stderr)).run()
            samples: dict[str, list[int]] = {"irqfd": [], "through the hypervisor": []}
            ratios = []
            for _ in range(ROUNDS):
                medians = []
                for guest, path in (("vm0.guest", "irqfd"), ("vm1.guest", "through the hypervisor")):
                    taken = supervisor.command(guest, "interrupt_latency", bdf=BDF, count=EACH)
                    samples[path] += taken
                    medians.append(statistics.median(taken))
                ratios.append(medians[1] / medians[0])
        folder.close()
    print(f"interrupt latency, device to guest; {os.cpu_count()} CPUs, placement {topology.placement}, no idle gap")
    for path, taken in samples.items():
        ordered = sorted(taken)
        p50, p99 = ordered[len(ordered) // 2] / 1000, ordered[len(ordered) * 99 // 100] / 1000
        print(f"  {path:24} p50 {p50:8.1f} us   p99 {p99:8.1f} us   max {ordered[-1] / 1000:8.1f} us   n {len(taken)}")
    spread = statistics.quantiles(ratios, n=4)
    print(f"  slow / fast              {statistics.median(ratios):.2f} (quartiles {spread[0]:.2f} to {spread[2]:.2f})")


if __name__ == "__main__":
    main()
