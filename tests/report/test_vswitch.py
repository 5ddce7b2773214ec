"""Frames over a virtual switch in the report: what each cost on each wire, and the switch between guests and host."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree

import msgspec
import pytest

from tests.report.samples import evidence, sample
from viommu_actors.attacks.verdict import Observed
from viommu_actors.report.picture import picture
from viommu_actors.report.report import uncoloured
from viommu_actors.report.results import Counts, Forwarded, Io, Process, Results, Verdict, Vswitch, VswitchPort, Wire
from viommu_actors.report.svg import topology_svg
from viommu_actors.report.text import plain
from viommu_actors.topology.resolved import ResolvedTopology


def frames(device: str, peer: str, driver: Literal["kernel", "vfio"], misses: int) -> Io:
    return Io(
        device=device,
        mapping="dynamic" if driver == "kernel" else "static",
        operations=64,
        bytes=64 * 4084,
        verified=True,
        traps=0,
        vfio_maps=0,
        vfio_unmaps=0,
        driver=driver,
        peer=peer,
        send_us=1443.2,
        wires=(
            Wire(wire="trap:vm0.guest", kinds={"TrapWrite": 128, "TrapDone": 128}),
            Wire(wire=f"vhost:{device}", kinds={"MemoryRead": 640, "IotlbMiss": misses}),
            Wire(wire=f"vhost:{peer}", kinds={"MemoryWrite": 192}),
        ),
    )


def with_switch() -> tuple[ResolvedTopology, Results]:
    """The shipped topology, with two rows of frames."""
    topology, results = sample("vswitch")
    [app] = results.apps
    forwarded = Forwarded(
        packets=128, verified=True, packets_per_second=None, counts=Counts(traps=22), ends=("vnet0", "nic1")
    )
    ports = tuple(VswitchPort(device=name, statistics={"rx_packets": 576}) for name in ("vnet0", "vnet1"))
    return topology, msgspec.structs.replace(
        results,
        io=(*results.io, frames("vnet0", "vnet1", "kernel", 64), frames("vnet1", "vnet0", "vfio", 0)),
        apps=(msgspec.structs.replace(app, forwarded=forwarded),),
        processes=(*results.processes, Process(role="app", name="ovs", pid=4321, sandbox="full")),
        vswitches=(Vswitch(name="ovs", ports=ports, restarts=2),),
    )


def attacked(observed: Observed) -> tuple[ResolvedTopology, Results]:
    """The guest's memory was read with this outcome, the host's not at all."""
    topology, results = with_switch()
    verdicts = []
    for target, outcome in (("guest memory", observed), ("host memory", "blocked")):
        told = evidence(outcome, "00:03.0", write=False)
        fault = told.fault and msgspec.structs.replace(told.fault, unit="vm0 viommu")
        verdicts.append(
            Verdict(
                device="vnet0",
                driver="guest",
                attack="A1",
                target=target,
                setting="strict",
                expected="blocked",
                observed=outcome,
                evidence=msgspec.structs.replace(told, fault=fault),
            )
        )
    return topology, msgspec.structs.replace(results, verdicts=tuple(verdicts))


def row(text: str, words: str) -> list[str]:
    [found] = [line for line in text.splitlines() if line.strip().startswith(words)]
    return found.strip().removeprefix(words).split()


def test_messages_for_each_frame_dynamic_beside_static() -> None:
    text = uncoloured(*with_switch(), 100).partition("Frames over a virtual switch")[2]
    assert row(text, "mapping of the sender") == ["dynamic", "static"]
    assert row(text, "messages on all wires") == ["18", "17"]
    assert row(text, "vhost wire of the sender") == ["11", "10"]
    assert row(text, "vhost wire of the receiver") == ["3", "3"]
    assert row(text, "trap:vm0.guest") == ["4", "4"]
    assert row(text, "until delivered, p50, µs") == ["1,443", "1,443"]
    assert text.index("IOTLB misses") < text.index("vhost wire of the receiver")
    assert "came twice" not in text


def test_what_the_switch_counted_and_what_was_forwarded() -> None:
    text = uncoloured(*with_switch(), 100)
    assert row(text, "ovs            2  vnet1")[0] == "576"
    assert "128 packets forwarded between vnet0 and nic1, both ways, all verified: 22 traps" in text
    assert "vnet0 to vnet1" in text and "Devices and switches: full sandbox" in text


@pytest.mark.parametrize("width", [70, 100, 200])
def test_the_switch_stands_between_its_guests_and_the_host(width: int) -> None:
    text = "\n".join(plain(line) for line in picture(*with_switch(), width))
    seen = ("00:03.0 vnet0", "00:04.0 vnet1", "emulates vnet0", "vnet1 by VFIO", "nic0 by VFIO")
    for words in (*seen, "port vnet1", "rogue: A1 A2"):
        assert words in text
    hypervisor, switch, host = (text.index(words) for words in ("emulates", "ovs: virtual switch", "─ host, pid"))
    assert hypervisor < switch < host
    assert "pid 4321" in text


@pytest.mark.parametrize(("observed", "words"), [("blocked", "memory: safe"), ("leaked", "memory: UNSAFE")])
def test_what_a_switch_got_at_is_told_at_its_arrow(observed: Observed, words: str) -> None:
    topology, results = attacked(observed)
    text = "\n".join(plain(line) for line in picture(topology, results, 100))
    for drawn in (f"▲ {words}", "├▶ beyond the guest: safe", "rogue: A1 A2 A12"):
        assert drawn in text
    [band] = topology_svg(topology, results)
    root = ElementTree.fromstring(band)
    groups = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("data-what")]
    arrows = {(g.get("data-device"), g.get("data-what")): (g.get("class") or "").split()[-1] for g in groups}
    assert {device for device, _ in arrows} == {"vnet0", "vnet1", "nic0", "nic1"}
    assert arrows["vnet0", "memory"] == ("safe" if observed == "blocked" else "unsafe")
    assert arrows["vnet0", "beyond the guest"] == "safe"
    text = " ".join(root.itertext())
    assert "vnet1, honest, emulated, port of ovs, taken by testpmd (vnet1 by VFIO): memory: not observed." in text
    assert "ovs: virtual switch, pid 4321" in text
