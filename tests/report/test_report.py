"""Tables and the closing line, plain and coloured."""

from __future__ import annotations

import io
import re
from pathlib import Path

import msgspec
import pytest

from tests.report.samples import sample, topology
from viommu_actors.attacks.evidence import Fault
from viommu_actors.report.report import coloured, render, render_rogue, uncoloured
from viommu_actors.report.results import (
    AppPort,
    Assignment,
    Counts,
    Difference,
    Forwarded,
    Machine,
    Results,
    RogueResults,
    as_expected,
    read_results,
    to_json,
)
from viommu_actors.report.tables import MAX_FAULTS, fault_table, proofs, summary
from viommu_actors.report.text import Table, line, plain

NAMES = ("host-driver", "assigned-no-viommu", "assigned-viommu", "dynamic-vs-static", "two-guests", "dpdk")


@pytest.mark.parametrize("name", NAMES)
def test_plain_and_coloured_say_the_same(name: str) -> None:
    pytest.importorskip("rich")
    topology, results = sample(name)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured(topology, results, 100))
    assert bare == uncoloured(topology, results, 100)


@pytest.mark.parametrize("name", NAMES)
def test_plain_lines_hold_nothing_but_text(name: str) -> None:
    for each in uncoloured(*sample(name), 100).splitlines():
        assert each.isprintable()
        assert each == each.rstrip()


def test_a_stream_that_is_no_terminal_gets_plain_text() -> None:
    assert "\x1b" not in render(*sample("assigned-viommu"), io.StringIO())


def test_a_stream_that_lacks_the_drawing_characters_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    text = render(*sample("assigned-viommu"), stream)
    assert text.isascii()
    assert "^ memory: safe" in text


def test_the_accesses_tried_with_outcome_and_evidence() -> None:
    text = uncoloured(*sample("assigned-no-viommu"), 100)
    assert "nic0: what it tried beyond what it was given (driven by the vm0 guest kernel, setting none)" in text
    assert re.search(r"A2 arbitrary write +guest memory +16 +corrupted, as expected", text)
    assert "host iommu: fault 0x5 (write permission), write of 0x7f000 by 01:00.0; canary unchanged" in text


def test_dynamic_and_static_side_by_side() -> None:
    text = uncoloured(*sample("dynamic-vs-static"), 100)
    assert re.search(r"mapping +dynamic +static", text)
    assert re.search(r"traps to the hypervisor +512 \(2\) +0 \(0\)", text)
    assert re.search(r"VFIO maps +256 \(1\) +0 \(0\)", text)


def test_what_the_host_drives_has_no_traps_whatever_it_writes() -> None:
    topology, results = sample("host-driver")
    row = msgspec.structs.replace(results.io[0], traps=0, queue_tail_writes=64)
    text = uncoloured(topology, msgspec.structs.replace(results, io=(row,)), 100)
    assert re.search(r"^traps to the hypervisor +0 \(0\)\nqueue tail writes +64 \(1\)$", text, re.MULTILINE)


def test_an_applications_packets_beside_those_of_the_kernels_driver() -> None:
    topology, results = sample("dpdk-noiommu")
    text = uncoloured(topology, results, 100)
    assert re.search(r"driven by +kernel +kernel +app, VFIO +app, VFIO no-iommu\n", text)
    assert re.search(r"packets a second, wall clock +4,321 +4,321\n", text)
    assert re.search(r"a packet: traps +4 +4 +0 +0\n", text)
    assert "bursts that an application polls for with one packet at a time" in " ".join(text.split())
    # What an application's start cost is told once, with the application.
    assert re.search(r"driver's set-up: traps to the hypervisor +12 +12\n", text)
    assert re.search(r"vm0.testpmd +nic0 +VFIO +granted, as expected +PA +U +26 +115 +2\n", text)
    assert re.search(r"vm0.testpmd +nic1 +VFIO no-iommu +granted, as expected +PA +U\n", text)
    assert "driven by testpmd in vm0, by VFIO no-iommu, setting none" in text
    assert "    512 packets forwarded between its devices, 3,835 a second, all verified: 0 traps, 0 VFIO maps" in text
    assert "; a packet: 0 traps, 0 VFIO maps, 0 system calls, 0 interrupts\n" in text


def test_packets_that_did_not_come_back_are_not_as_expected() -> None:
    topology, results = sample("dpdk")
    lost = Forwarded(packets=0, verified=False, packets_per_second=None, counts=Counts(), failed="no packet in 5 s")
    apps = tuple(msgspec.structs.replace(app, forwarded=lost) for app in results.apps)
    assert not as_expected(results.verdicts, results.io, apps=apps)
    text = uncoloured(topology, msgspec.structs.replace(results, apps=apps, ok=False), 100)
    assert "    forwarding between its devices: no packet in 5 s" in text
    assert "forwarding of vm0.testpmd not verified" in text.splitlines()[-1]


def test_who_is_told_of_faults_of_an_applications_device() -> None:
    told = "VFIO type1 reports none to guest or application"
    assert told in uncoloured(*sample("dpdk"), 100)
    assert told not in uncoloured(*sample("assigned-viommu"), 100)


def test_a_refusal_that_was_not_expected_is_told_with_its_reason() -> None:
    topology, results = sample("dpdk")
    [app] = results.apps
    refused = AppPort(device="nic1", asked="uio", granted=False, expected=True, errno="EACCES", reason="it is not root")
    apps = (msgspec.structs.replace(app, ports=(app.ports[0], refused)),)
    assert not as_expected(results.verdicts, results.io, apps=apps)
    text = uncoloured(topology, msgspec.structs.replace(results, apps=apps, ok=False), 100)
    assert "refused, EACCES, NOT as expected" in text and "    it is not root" in text
    assert "nic1 refused vm0.testpmd by uio" in text.splitlines()[-1]


def test_the_other_end_of_a_cable_is_told() -> None:
    topology, results = sample("two-guests")
    first, second = results.io
    first = msgspec.structs.replace(first, operations=20, receiver=Counts(traps=40, vfio_maps=20))
    text = uncoloured(topology, msgspec.structs.replace(results, io=(first, second)), 100)
    assert re.search(r"receiver: traps to the hypervisor +40 \(2\)\n *receiver: VFIO maps +20 \(1\)", text)


def test_what_each_vm_cost_before_its_devices_worked() -> None:
    topology, results = sample("assigned-no-viommu")
    machine = Machine(vm="vm0", build=Counts(vfio_maps=1), boot=Counts(traps=118))
    text = uncoloured(topology, msgspec.structs.replace(results, machines=(machine,)), 100)
    assert re.search(r"vm0 +built +0 +1 +0 +0 +0\nvm0 +booted +118 +0 +0 +0 +0", text)


def test_an_unexpected_verdict_is_told_in_the_row_and_at_the_end() -> None:
    topology, results = sample("assigned-viommu")
    first, *rest = results.verdicts
    wrong = msgspec.structs.replace(
        results, ok=False, verdicts=(msgspec.structs.replace(first, observed="leaked"), *rest)
    )
    assert not as_expected(wrong.verdicts, wrong.io)
    text = uncoloured(topology, wrong, 100)
    assert "leaked, EXPECTED blocked" in text
    assert text.endswith("NOT as expected: nic0 A1 on guest memory leaked, expected blocked.")


def test_an_unproven_verdict_tells_what_is_missing() -> None:
    topology, results = sample("assigned-viommu")
    first, *rest = results.verdicts
    evidence = msgspec.structs.replace(first.evidence, fault=None, control=False)
    unproven = msgspec.structs.replace(first, observed="unproven", evidence=evidence)
    text = uncoloured(topology, msgspec.structs.replace(results, ok=False, verdicts=(unproven, *rest)), 100)
    assert "no record of what blocked it; the positive control failed" in text


def assignment(second_open: str, why: str) -> Results:
    _, results = sample("assigned-viommu")
    differences = (
        Difference(offset="0x10", host="0xc0000000", guest="0xc0100000", why="BAR"),
        Difference(offset="0x14", host="0x0", guest="0x1", why="BAR"),
        Difference(offset="0x34", host="0x40", guest="0x48", why=why),
    )
    each = Assignment(
        device="nic0", vm="vm0", host="01:00.0", guest="00:03.0", second_open=second_open, differences=differences
    )
    return msgspec.structs.replace(results, ok=each.ok, assignments=(each,))


def test_an_assignment_is_exclusive_and_its_edits_are_told() -> None:
    text = uncoloured(topology("assigned-viommu"), assignment("EBUSY", "edited by the topology"), 100)
    assert re.search(r"nic0 +01:00\.0 +vm0 00:03\.0 +EBUSY, exclusive +3\n +BAR: 0x10 0x14; edited", text)


def test_an_assignment_that_is_shared_or_altered_is_not_as_expected() -> None:
    for results in (assignment("opened", "edited by the topology"), assignment("EBUSY", "")):
        text = uncoloured(topology("assigned-viommu"), results, 100)
        assert text.endswith("NOT as expected: assignment of nic0 not exclusive or not faithful.")
    assert "NOBODY DECIDED SO: 0x34" in text


def test_unverified_io_is_not_as_expected() -> None:
    _, results = sample("assigned-viommu")
    row = msgspec.structs.replace(results.io[0], verified=False)
    assert not as_expected(results.verdicts, (row,))
    bad = msgspec.structs.replace(results, ok=False, io=(row,))
    assert plain(summary(bad)) == "NOT as expected: I/O of nic0 not verified."


@pytest.mark.parametrize(
    ("judged", "ok", "told"),
    [
        (1, True, "As expected: 1 verdict, 64 operations verified."),
        (0, True, "Nothing was tried that is judged: no verdict, 64 operations verified."),
        (0, False, "NOT as expected: see the log of the run."),
    ],
)
def test_a_rogue_that_tried_nothing_is_not_told_to_be_as_expected(judged: int, ok: bool, told: str) -> None:
    resolved, results = sample("assigned-viommu")
    rogue = RogueResults(
        device="nic0",
        process=results.processes[-1],
        ok=ok,
        verdicts=results.verdicts[:judged],
        absent=(),
        io=tuple(row for row in results.io if row.device == "nic0")[:1],
        reports=(),
    )
    assert render_rogue(resolved, rogue, io.StringIO()).splitlines()[-1] == told


def test_a_verdict_without_canaries_tells_of_none() -> None:
    verdict = sample("assigned-viommu")[1].verdicts[0]
    evidence = msgspec.structs.replace(verdict.evidence, canary_before="", canary_after="", reached=1)
    bare = msgspec.structs.replace(verdict, observed="corrupted", evidence=evidence)
    assert "canary unchanged" in proofs(verdict) and "canary unchanged" not in proofs(bare)


def test_many_faults_are_cut_and_it_says_so() -> None:
    fault = Fault(kind="acs", unit="root port 1", source="02:00.0", address="0x0", write=True, text="bus not behind it")
    results = Results(topology="t", ok=True, processes=(), verdicts=(), io=(), faults=(fault,) * 40)
    table = fault_table(results)
    assert table is not None
    assert len(table.rows) == MAX_FAULTS
    assert table.title.endswith("(the first 16 of 40)")


def test_a_table_is_aligned() -> None:
    table = Table("T", ("a", "number"), ((line("long cell"), line("7")),), frozenset([1]), (line("why"),))
    assert [plain(each) for each in table.lines()] == [
        "T",
        "a          number",
        "─────────  ──────",
        "long cell       7",
        "    why",
    ]


def test_results_survive_their_file(tmp_path: Path) -> None:
    for name in NAMES:
        _, results = sample(name)
        path = tmp_path / "results.json"
        path.write_text(to_json(results))
        assert read_results(path) == results


def test_results_have_the_settled_keys() -> None:
    _, results = sample("assigned-viommu")
    built = msgspec.to_builtins(results)
    assert list(built)[:6] == ["topology", "ok", "processes", "verdicts", "io", "faults"]
    assert set(built["processes"][0]) == {"role", "name", "pid"}
    assert set(built["verdicts"][0]) == {
        *("device", "driver", "attack", "target", "setting", "expected", "observed", "evidence")
    }
    assert set(built["verdicts"][0]["evidence"]) >= {"attempts", "canary_before", "canary_after", "fault", "control"}
    assert set(built["io"][0]) >= {
        *("device", "mapping", "operations", "bytes", "verified", "traps", "vfio_maps", "vfio_unmaps", "setup")
    }
