"""Results as runs of the shipped topologies bring them, made by hand."""

from __future__ import annotations

from pathlib import Path

from viommu_actors.attacks.catalogue import CATALOGUE, Target
from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.expected import expected
from viommu_actors.attacks.verdict import Observed
from viommu_actors.report.latency import AsOnTheHost, Comparison, Goal, Latencies, LatencyRow, Measured
from viommu_actors.report.results import (
    App,
    AppPort,
    Counts,
    Forwarded,
    Io,
    LevelCounts,
    PerPacket,
    Process,
    Results,
    Role,
    Verdict,
    as_expected,
)
from viommu_actors.report.soak import Book, Sample, Soak
from viommu_actors.topology.load import load, parse
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedApp, ResolvedDevice, ResolvedTopology, ResolvedVm

CONFIGS = Path(__file__).parents[2] / "configs"


def topology(name: str) -> ResolvedTopology:
    return resolve(load(CONFIGS / f"{name}.toml"))


def sample(name: str) -> tuple[ResolvedTopology, Results]:
    """A shipped topology and results in which all went as expected."""
    return run_of(topology(name))


def run_of(resolved: ResolvedTopology) -> tuple[ResolvedTopology, Results]:
    """Beside it, results in which all went as expected."""
    verdicts = tuple(v for device in resolved.devices for v in _verdicts(resolved, device))
    rows = tuple(_io(resolved, device) for device in resolved.devices)
    rows += tuple(_io_of_app(resolved, device) for device in resolved.devices if device.app is not None)
    return resolved, Results(
        topology=resolved.name,
        ok=as_expected(verdicts, rows),
        processes=_processes(resolved),
        verdicts=verdicts,
        io=rows,
        faults=tuple(v.evidence.fault for v in verdicts if v.evidence.fault),
        apps=tuple(_app(vm, app) for vm in resolved.vms for app in vm.apps),
    )


def _processes(resolved: ResolvedTopology) -> tuple[Process, ...]:
    named: list[tuple[Role, str]] = [("host", "host")]
    for vm in resolved.vms:
        named += [("hypervisor", f"{vm.name}.hypervisor"), ("guest", f"{vm.name}.guest")]
    named += [("device", device.name) for device in resolved.devices]
    named += [("app", f"{vm.name}.{app.name}") for vm in resolved.vms for app in vm.apps]
    return tuple(Process(role=role, name=name, pid=4242 + pid) for pid, (role, name) in enumerate(named))


def _verdicts(resolved: ResolvedTopology, device: ResolvedDevice) -> list[Verdict]:
    made = []
    for attack in (CATALOGUE[name] for name in device.rogue):
        for target in attack.targets:
            if (device.vm is None and target is Target.GUEST_MEMORY) or (
                target is Target.OTHER_GUEST and all(vm.name == device.vm for vm in resolved.vms)
            ):
                continue
            on_interrupts = attack.access == "interrupt"
            setting = resolved.interrupt_setting(device.name) if on_interrupts else resolved.setting(device.name)
            port = resolved.port(device.name)
            driver = port.driver if port is not None else "host" if device.vm is None else "guest"
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
        source=source,
        aimed=16,
        tried=16,
        attempts=16,
        canary_before="5be1a7",
        canary_after="0dd0ab" if observed == "corrupted" else "5be1a7",
        fault=fault if blocked else None,
        control=True,
        reached=0 if blocked else 16,
        refused=16 if blocked else 0,
    )


#: Two operations' maps and unmaps.
_A_PACKET = PerPacket(traps=4, vfio_maps=2, vfio_unmaps=2, interrupts=1, system_calls=0)

_NOTHING = PerPacket(traps=0, vfio_maps=0, vfio_unmaps=0, interrupts=0, system_calls=0)


def _io(resolved: ResolvedTopology, device: ResolvedDevice) -> Io:
    static = device.vm is not None and any(
        f"nic.static={assign.bdf}" in resolved.vm(device.vm).cmdline
        for assign in resolved.vm(device.vm).assign
        if assign.device == device.name
    )
    each = 0 if static else device.operations
    line = () if device.vm is None else resolved.line(device.vm)
    nested = any(vm.parent is not None for vm in resolved.vms)
    climbing = Counts(traps=2 * each, vfio_maps=each, vfio_unmaps=each)
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
        dma_maps=each,
        dma_unmaps=each,
        per_packet=_A_PACKET if device.model == "nic" and each else None,
        setup=Counts(traps=12, vfio_maps=6, vfio_unmaps=4),
        levels=tuple(LevelCounts(vm=vm.name, counts=climbing) for vm in line) if len(line) > 1 else (),
        map_unmap_us=250.0 * len(line) if nested else None,
    )


def _io_of_app(resolved: ResolvedTopology, device: ResolvedDevice) -> Io:
    port = resolved.port(device.name)
    assert port is not None
    return Io(
        device=device.name,
        driver=port.driver,
        mapping="static",
        operations=device.operations,
        bytes=device.operations * 4096,
        verified=True,
        traps=0,
        vfio_maps=0,
        vfio_unmaps=0,
        packets_per_second=4321.4,
        per_packet=_NOTHING,
    )


def _app(vm: ResolvedVm, app: ResolvedApp) -> App:
    return App(
        name=f"{vm.name}.{app.name}",
        vm=vm.name,
        iova="PA",
        ports=tuple(AppPort(device=port.device, asked=port.driver, granted=True, expected=True) for port in app.ports),
        taints=("U",) if any(port.driver == "noiommu" for port in app.ports) else (),
        setup=Counts(traps=115, vfio_maps=2, system_calls=26),
        forwarded=Forwarded(
            packets=512, verified=True, packets_per_second=3835.4, counts=Counts(), per_packet=_NOTHING
        ),
    )


#: As a `latency.json` has them.
LATENCIES = Latencies(
    placement="pack",
    measured=Measured(vm="vm0", nic="nic0", edu="laboratory-edu", added=("laboratory-edu",)),
    cpus={"host": [0], "vm0.guest": None},
    cpus_available=2,
    device_layout="fixed",
    idle_gap_posted_us=100,
    versions={"libzmq": "4.3.5"},
    rounds=40,
    comparisons=(Comparison(name="io_strict / io_static", ratio=2.15, ratio_low=2.06, ratio_high=2.26),),
    trace_overhead={"hop": 1.24},
    as_on_the_host=AsOnTheHost(
        equal=True,
        link={"none": {"link MemRead from device": 3.0}, "host": {"link MemRead from device": 3.0}},
        beside={"none": {"inject Inject to guest": 1.0}, "host": {}},
        p50_us={"none": 482.6, "host": 483.3},
    ),
    rows=(
        LatencyRow(name="hop", n=2000, p50_us=14.2, p90_us=16.0, p99_us=31.5, max_us=220.0, floor_us=13.1, ratio=1.08),
        LatencyRow(
            name="map_strict",
            n=1000,
            p50_us=62.5,
            p99_us=140.0,
            floor_us=28.0,
            ratio=2.23,
            hops={"guest work": 9.5, "wire": 25.4, "hypervisor work": 15.1, "host work": 12.5},
        ),
        LatencyRow(name="dma_write_posted", clock="modelled", n=1000, p50_us=0.85, p99_us=3.1),
        LatencyRow(name="pipeline_4k_w64", n=5000, ratio=0.78),
    ),
    goals=(
        Goal(name="hop", ratio=1.08, limit=1.15, met=True),
        Goal(name="fan_in_16", ratio=0.7, limit=0.8, at_least=True, met=False),
    ),
)


#: As a `soak.json` has it.
SOAK = Soak(
    placement="pack",
    seconds=2.0,
    operations=150,
    samples=(
        Sample(seconds=1.0, operations=100, per_second=100.0, memory_kib={"host": 20_480, "vm0.guest": 10_240}),
        Sample(seconds=2.0, operations=150, per_second=50.0, memory_kib={"host": 30_720, "vm0.guest": 10_240}),
    ),
    grown={"host": 10_240},
    books=(
        Book(level="host: VFIO, mappings", mapped=152, unmapped=150, live=2, balanced=True),
        Book(level="vm0.guest: DMA API, buffers", mapped=152, unmapped=150, live=3, balanced=False),
    ),
)


def crowd() -> tuple[ResolvedTopology, Results]:
    """All that a topology may have: 16 devices, 8 VMs, long names, every third device a rogue."""
    names = [f"{'n' * 30 if number == 3 else 'nic'}{number}" for number in range(16)]
    text = 'name = "crowd"\n'
    for number, name in enumerate(names):
        rogue = '["A1", "A2", "A12", "A31", "A32"]' if number % 3 == 0 else "[]"
        text += f'[[device]]\nname = "{name}"\nmodel = "nic"\nrogue = {rogue}\n'
    free = iter(names)
    for number, devices in enumerate((3, 5, 1, 1, 0, 2, 1, 1)):
        viommu = 'cmdline = "intel_iommu=on"\n[vm.viommu]\n' if number % 2 else ""
        text += f'[[vm]]\nname = "{"v" * 31 if number == 1 else "vm"}{number}"\nmemory = "16M"\n{viommu}'
        text += "".join(f'[[vm.assign]]\ndevice = "{next(free)}"\n' for _ in range(devices))
    return run_of(resolve(parse(text)))
