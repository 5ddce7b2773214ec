"""Applications over the real kernel, IOMMU and nics: start, what is refused, forwarding, and what a packet costs."""

from __future__ import annotations

from errno import EINVAL, EIO, ENODEV, ENOENT, EPERM

import pytest
from hypothesis import given, settings
from hypothesis.strategies import DataObject, data, integers

from tests.app.local import FIRST, NOIOMMU, NONE, PASSTHROUGH, SECOND, STRICT, LocalSystem
from viommu_actors.app.application import Application
from viommu_actors.app.commands import AppCommands
from viommu_actors.app.iova import IovaMode
from viommu_actors.app.mempool import Mbuf
from viommu_actors.app.pci import UserDriver
from viommu_actors.app.system import HUGEPAGE
from viommu_actors.app.testpmd import Forwarding
from viommu_actors.spec import nic, pci
from viommu_actors.spec.privileges import Capability
from viommu_actors.spec.vtd import FaultReason

BOTH: dict[str, UserDriver] = {FIRST: "vfio", SECOND: "vfio"}


def started(system: LocalSystem, drivers: dict[str, UserDriver] | None = None) -> Application:
    return Application(system, BOTH if drivers is None else drivers, system.rig.lines.append)


def bus_master(system: LocalSystem, slot: int) -> bool:
    device = system.kernel.device(system.rig.bdf(slot))
    return bool(device.config_read(pci.COMMAND, 2) & pci.Command.BUS_MASTER)


# --- the start


@pytest.mark.parametrize(
    ("cmdline", "driver", "mode"),
    [
        (STRICT, "vfio", IovaMode.VA),
        (PASSTHROUGH, "vfio", IovaMode.VA),
        (PASSTHROUGH, "uio", IovaMode.PA),
        (NONE, "uio", IovaMode.PA),
        (f"{NONE} {NOIOMMU}", "noiommu", IovaMode.PA),
    ],
)
def test_packets_go_round_by_each_way_to_a_device(
    cmdline: str, driver: UserDriver, mode: IovaMode
) -> None:
    system = LocalSystem(cmdline)
    application = started(system, {FIRST: driver, SECOND: driver})
    assert (application.iova_mode, application.refused) == (mode, {})
    assert {port.function.driver for port in application.ports.values()} == {driver}
    done = Forwarding(system, list(application.ports.values())).run(300)
    assert (done.packets, done.bytes, done.verified) == (300, 300 * 4096, True)
    application.close()
    assert not bus_master(system, 1)
    assert not bus_master(system, 2)
    assert not system.process.files


def test_vfio_without_an_iommu_is_refused_at_probe() -> None:
    application = started(LocalSystem(NONE))
    assert [refused.errno for refused in application.refused.values()] == [EINVAL, EINVAL]
    assert not application.ports


@pytest.mark.parametrize("base", [STRICT, PASSTHROUGH])
def test_a_device_with_an_iommu_has_no_noiommu_group(base: str) -> None:
    application = started(LocalSystem(f"{base} {NOIOMMU}"), {FIRST: "noiommu"})
    assert {refused.errno for refused in application.refused.values()} == {ENOENT}


def test_the_unsafe_mode_changes_the_addresses_of_all() -> None:
    system = LocalSystem(f"{STRICT} {NOIOMMU}")
    application = started(system)
    assert application.iova_mode is IovaMode.PA
    assert Forwarding(system, list(application.ports.values())).run(8).verified


def test_a_noiommu_group_needs_a_capability() -> None:
    system = LocalSystem(f"{NONE} {NOIOMMU}", frozenset({Capability.DAC_OVERRIDE, Capability.SYS_ADMIN}))
    assert {refused.errno for refused in started(system, {FIRST: "noiommu"}).refused.values()} == {EPERM}


def test_physical_addresses_need_a_capability() -> None:
    system = LocalSystem(NONE, frozenset({Capability.DAC_OVERRIDE}))
    with pytest.raises(OSError, match="Cannot use IOVA as 'PA'") as caught:
        started(system, {FIRST: "uio"})
    assert caught.value.errno == EINVAL


def test_without_that_capability_vfio_works_by_user_addresses() -> None:
    system = LocalSystem(STRICT, frozenset({Capability.DAC_OVERRIDE}))
    application = started(system)
    assert application.iova_mode is IovaMode.VA
    assert Forwarding(system, list(application.ports.values())).run(2).verified


def test_a_device_that_is_not_there_is_refused_alone() -> None:
    application = started(LocalSystem(), {FIRST: "vfio", "0000:09:00.0": "vfio"})
    assert {name: refused.errno for name, refused in application.refused.items()} == {"0000:09:00.0": ENODEV}
    assert list(application.ports) == [FIRST]


def test_one_application_has_a_device_by_vfio_and_one_by_uio() -> None:
    system = LocalSystem(PASSTHROUGH)
    application = started(system, {FIRST: "vfio", SECOND: "uio"})
    assert [port.function.driver for port in application.ports.values()] == ["vfio", "uio"]
    assert application.iova_mode is IovaMode.PA
    assert Forwarding(system, list(application.ports.values())).run(100).verified


# --- the data path


def test_a_pool_is_mapped_once_and_no_packet_calls_the_kernel() -> None:
    system = LocalSystem(STRICT.replace("hugepages=1", "hugepages=2"))
    application = started(system)
    assert system.calls["map_dma"] == system.hugepage_bytes // HUGEPAGE == 2
    pmd = Forwarding(system, list(application.ports.values()))
    pmd.run(2)
    before, kernel = system.calls.copy(), system.kernel.counters.copy()
    pmd.run(500)
    assert system.calls == before
    assert system.kernel.counters == kernel
    assert system.calls["set_irqs"] == 0


def test_statistics_count_every_packet() -> None:
    system = LocalSystem()
    application = started(system)
    Forwarding(system, list(application.ports.values())).run(333)
    total = {name: sum(port.statistics[name] for port in application.ports.values()) for name in ("ipackets", "ibytes")}
    assert total == {"ipackets": 333, "ibytes": 333 * 4096}


@pytest.mark.parametrize("ports", [1, 2])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_receive_ring_is_never_short_of_buffers(ports: int, seed: int | None) -> None:
    system = LocalSystem(seed=seed)
    application = started(system, dict(list(BOTH.items())[:ports]))
    Forwarding(system, list(application.ports.values())).run(1000)
    assert [port.statistics["rx_nombuf"] for port in application.ports.values()] == [0] * ports


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_messages_arrive(seed: int) -> None:
    system = LocalSystem(seed=seed)
    application = started(system)
    assert Forwarding(system, list(application.ports.values())).run(100).verified


@pytest.mark.parametrize("packets", [1, 2, 31, 33, 64, 65])
def test_any_number_of_packets(packets: int) -> None:
    system = LocalSystem()
    port = started(system, {FIRST: "vfio"}).ports[FIRST]
    assert Forwarding(system, [port]).run(packets)[:3] == (packets, packets * 4096, True)


def test_no_buffer_is_lost() -> None:
    system = LocalSystem()
    application = started(system)
    pool = application.ports[FIRST].pool
    whole = pool.available
    for _ in range(3):
        Forwarding(system, list(application.ports.values())).run(70)
    assert pool.available == whole


def test_uio_behind_a_translating_iommu_binds_but_all_its_dma_faults() -> None:
    system = LocalSystem(STRICT)
    application = started(system, {FIRST: "uio"})
    assert not application.refused
    pool = application.ports[FIRST].pool
    whole = pool.available
    with pytest.raises(OSError, match="ring halted") as caught:
        Forwarding(system, [application.ports[FIRST]]).run(4)
    assert caught.value.errno == EIO
    assert pool.available == whole
    assert system.kernel.iommu is not None
    records, _ = system.kernel.iommu.take_faults()
    assert {(record.source, record.write) for record in records} == {(system.rig.bdf(1), False)}


# --- the commands, and the buggy application

PATTERN = b"\xde\xad\xbe\xef" * 16


@pytest.mark.parametrize(
    ("cmdline", "driver", "harmed"),
    [
        (STRICT, "vfio", False),
        (PASSTHROUGH, "vfio", False),
        (PASSTHROUGH, "uio", True),
        (NONE, "uio", True),
        (f"{NONE} {NOIOMMU}", "noiommu", True),
    ],
)
def test_what_a_stray_address_comes_to(cmdline: str, driver: UserDriver, harmed: bool) -> None:
    system = LocalSystem(cmdline)
    commands = AppCommands(system, system.rig.log, lambda size: b"\x5a" * size)
    commands.start({"01:00.0": driver})
    page = system.kernel.pages.alloc()
    system.rig.memory.write(page, b"canary" * 20)
    commands.attack("01:00.0", [{"do": "write", "address": page, "data": PATTERN}])
    assert (system.rig.memory.read(page, len(PATTERN)) == PATTERN) is harmed
    written = faults(system)
    commands.attack("01:00.0", [{"do": "read", "address": page, "length": 64}])
    # No fault of what was programmed honestly: rings and buffers are within the pool.
    requester = system.rig.bdf(1)
    assert written == (set() if harmed else {(requester, page, True, FaultReason.WRITE_DENIED)})
    assert faults(system) == (set() if harmed else {(requester, page, False, FaultReason.READ_DENIED)})


def faults(system: LocalSystem) -> set[tuple[int, int, bool, FaultReason]]:
    if system.kernel.iommu is None:
        return set()
    records, _ = system.kernel.iommu.take_faults()
    return {(record.source, record.address, record.write, record.reason) for record in records}


def test_the_control_page_is_reached_by_a_lawful_packet() -> None:
    system = LocalSystem()
    commands = AppCommands(system, system.rig.log, lambda size: b"\x5a" * size)
    commands.start({"01:00.0": "vfio"})
    control = commands.offer_control("01:00.0")
    assert not commands.check_control("01:00.0")
    commands.attack("01:00.0", [{"do": "control", "iova": control["iova"], "data": control["data"]}])
    assert commands.check_control("01:00.0")
    commands.end_control("01:00.0")


def test_io_by_command() -> None:
    system = LocalSystem()
    commands = AppCommands(system, system.rig.log, lambda size: b"\x5a" * size)
    for command in (lambda: commands.io("01:00.0", 2), lambda: commands.check_control("01:00.0")):
        with pytest.raises(OSError, match="has not started"):
            command()
    assert commands.start({"01:00.0": "vfio", "02:00.0": "vfio"}) == {
        "iova": "VA",
        "ports": {"01:00.0": "vfio", "02:00.0": "vfio"},
        "refused": {},
    }
    told = commands.io("01:00.0", 9)
    assert {key: told[key] for key in ("operations", "packets", "bytes", "verified", "mapping", "failed")} == {
        "operations": 10,
        "packets": 5,
        "bytes": 10 * 4096,
        "verified": True,
        "mapping": "static",
        "failed": "",
    }
    assert commands.forward(40)["verified"]
    told = commands.statistics("01:00.0")
    assert told["ipackets"] == told["hw_rx_packets"] == told["opackets"] == told["hw_tx_packets"] > 5
    with pytest.raises(OSError, match="has started"):
        commands.start({"01:00.0": "vfio"})


def test_io_that_cannot_be_says_why() -> None:
    system = LocalSystem(STRICT)
    commands = AppCommands(system, system.rig.log, lambda size: b"\x5a" * size)
    commands.start({"01:00.0": "uio"})
    told = commands.io("01:00.0", 4)
    assert (told["operations"], told["verified"]) == (0, False)
    assert "ring halted" in told["failed"]


@given(data())
@settings(max_examples=25, deadline=None)
def test_a_hostile_controller_writes_what_it_likes_into_its_rings(choices: DataObject) -> None:
    """Lengths stay within buffers, and each buffer is in one place: the pool, a ring, or the application's hands."""
    system = LocalSystem()
    port = started(system, {FIRST: "vfio"}).ports[FIRST]
    whole = port.pool.available
    port.start()
    held: list[Mbuf] = []
    for _ in range(choices.draw(integers(1, 6))):
        word = nic.WRITE_BACK.pack(choices.draw(integers(0, 5000)), choices.draw(integers(0, 3)))
        # Receive ring and transmit ring, a page each, follow the pool.
        rings = system.kernel.hugepages[0] + whole * 4096
        for index in range(choices.draw(integers(0, 512))):
            system.rig.memory.write(rings + index * 16 + 12, word)
        held += port.rx_burst(choices.draw(integers(0, 40)))
        assert all(nic.MIN_FRAME <= mbuf.length <= 4096 for mbuf in held)
        del held[: port.tx_burst(held[: choices.draw(integers(0, 40))])]
    assert len({id(mbuf) for mbuf in held}) == len(held)
    for mbuf in held:
        mbuf.free()
    port.stop()
    assert port.pool.available == whole
