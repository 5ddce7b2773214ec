"""Results as runs of the shipped topologies bring them, made by hand."""

from __future__ import annotations

from pathlib import Path

from viommu_actors.attacks.catalogue import CATALOGUE, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import expected
from viommu_actors.attacks.verdict import Observed
from viommu_actors.report.results import Counts, Io, Process, Results, Role, Verdict, as_expected
from viommu_actors.topology.load import load
from viommu_actors.topology.resolve import ResolvedDevice, ResolvedTopology, resolve

CONFIGS = Path(__file__).parents[2] / "configs"


def topology(name: str) -> ResolvedTopology:
    return resolve(load(CONFIGS / f"{name}.toml"))


def sample(name: str) -> tuple[ResolvedTopology, Results]:
    """A shipped topology and results in which all went as expected."""
    resolved = topology(name)
    verdicts = tuple(v for device in resolved.devices for v in _verdicts(resolved, device))
    rows = tuple(_io(resolved, device) for device in resolved.devices)
    return resolved, Results(
        topology=name,
        ok=as_expected(verdicts, rows),
        processes=_processes(resolved),
        verdicts=verdicts,
        io=rows,
        faults=tuple(v.evidence.fault for v in verdicts if v.evidence.fault),
    )


def _processes(resolved: ResolvedTopology) -> tuple[Process, ...]:
    named: list[tuple[Role, str]] = [("host", "host")]
    for vm in resolved.vms:
        named += [("hypervisor", f"{vm.name}.hypervisor"), ("guest", f"{vm.name}.guest")]
    named += [("device", device.name) for device in resolved.devices]
    return tuple(Process(role=role, name=name, pid=4242 + pid) for pid, (role, name) in enumerate(named))


def _verdicts(resolved: ResolvedTopology, device: ResolvedDevice) -> list[Verdict]:
    made = []
    for attack in (CATALOGUE[name] for name in device.rogue):
        for target in attack.targets:
            if (device.vm is None and target is Target.GUEST_MEMORY) or (
                target is Target.OTHER_GUEST and all(vm.name == device.vm for vm in resolved.vms)
            ):
                continue
            setting = resolved.setting(device.name)
            driver = "host" if device.vm is None else "guest"
            outcome = expected(attack.id, driver, target, setting).verdict  # type: ignore[arg-type]
            if outcome is not None:
                made.append(
                    Verdict(
                        device=device.name,
                        driver=driver,  # type: ignore[arg-type]
                        attack=attack.id,
                        target=target.value,
                        setting=setting,
                        expected=outcome,
                        observed=outcome,
                        evidence=evidence(outcome, device.bdf, attack.access == "write"),
                    )
                )
    return made


def evidence(observed: Observed, source: str, write: bool) -> Evidence:
    fault = Fault(
        kind="remapping",
        unit="host iommu",
        source=source,
        address="0x7f000",
        write=write,
        reason="0x5" if write else "0x6",
        text="write permission" if write else "read permission",
        count=16,
    )
    blocked = observed == "blocked"
    return Evidence(
        attempts=16,
        canary_before="5be1a7",
        canary_after="0dd0ab" if observed == "corrupted" else "5be1a7",
        fault=fault if blocked else None,
        control=True,
        reached=0 if blocked else 16,
        refused=16 if blocked else 0,
    )


def _io(resolved: ResolvedTopology, device: ResolvedDevice) -> Io:
    static = device.vm is not None and any(
        f"nic.static={assign.bdf}" in resolved.vm(device.vm).cmdline
        for assign in resolved.vm(device.vm).assign
        if assign.device == device.name
    )
    each = 0 if static else device.operations
    return Io(
        device=device.name,
        mapping="static" if static else "dynamic",
        operations=device.operations,
        bytes=device.operations * 4096,
        verified=True,
        traps=2 * each,
        vfio_maps=each,
        vfio_unmaps=each,
        pte_writes=2 * each,
        invalidations=2 * each,
        queue_tail_writes=2 * each,
        setup=Counts(traps=12, vfio_maps=6, vfio_unmaps=4),
    )
