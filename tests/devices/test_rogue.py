"""A rogue: what it sends, and what it says about it."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256
from typing import Any

import pytest

from tests.devices.bench import FUNCTION, VECTOR, Bench
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.rogue import Rogue, StepResult, parse_plan
from viommu_actors.spec import pci, tlp


class BareLink:
    """What a rogue puts on its link beneath the messages."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.fuzzed: list[tuple[int, int]] = []
        self.written: list[tuple[bytes, int]] = []

    def send(self, *frames: bytes) -> bool:
        self.raw += frames
        return True

    def fuzz(self, seed: int, count: int) -> None:
        self.fuzzed.append((seed, count))

    def write(self, data: bytes, times: int) -> None:
        self.written.append((data, times))


class RogueBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.endpoint = Edu(self.send)
        self.link = BareLink()
        self.rogue = Rogue(self.endpoint, self.link)
        self.results: list[list[StepResult]] = []
        self.enable()
        self.memory[:] = bytes(it * 11 % 251 for it in range(len(self.memory)))

    def start(self, *steps: dict[str, Any]) -> None:
        self.rogue.play(parse_plan(steps), self.results.append)

    def play(self, *steps: dict[str, Any]) -> list[StepResult]:
        self.start(*steps)
        self.serve()
        return self.results.pop()


@pytest.fixture
def bench() -> RogueBench:
    return RogueBench()


def test_a_read_tells_what_it_saw(bench: RogueBench) -> None:
    [short, long] = bench.play(
        {"do": "read", "address": 0x1001, "length": 20}, {"do": "read", "address": 0x1001, "length": 9000}
    )
    seen = bytes(bench.memory[0x1001 : 0x1001 + 9000])
    assert short == StepResult(0, "read", "completed", 1, 1, 20, sha256(seen[:20]).hexdigest(), seen[:20])
    assert long == StepResult(1, "read", "completed", 1, 1, 9000, sha256(seen).hexdigest(), b"")


def test_a_refused_read_is_told(bench: RogueBench) -> None:
    bench.refused.add(1)
    [result] = bench.play({"do": "read", "address": 0x1000, "length": 4})
    assert (result.status, result.completed, result.data) == ("unsupported request", 0, b"")


def test_a_read_without_an_answer_times_out(bench: RogueBench) -> None:
    bench.start({"do": "read", "address": 0, "length": 4})
    bench.take()
    for tag in bench.endpoint.outstanding:
        bench.endpoint.expire(tag)
    assert [it.status for it in bench.results.pop()] == ["timeout"]


def test_an_acs_violation_is_a_completer_abort(bench: RogueBench) -> None:
    bench.start({"do": "read", "address": 0, "length": 4})
    [read] = bench.take()
    bench.endpoint.receive(tlp.Completion(read.tag, tlp.CompletionStatus.COMPLETER_ABORT, 0, b""))
    assert [it.status for it in bench.results.pop()] == ["completer abort"]


def test_it_needs_no_bus_master_and_takes_any_name(bench: RogueBench) -> None:
    bench.configure(pci.COMMAND, 2, 0)
    bench.start(
        {"do": "write", "address": 0x2000, "data": b"evil", "requester": 0x0300},
        {"do": "write", "address": 0x2000, "data": b"evil", "at": 2},
        {"do": "read", "address": 0x2000, "length": 4, "requester": 0x0300},
    )
    assert bench.take() == [
        tlp.MemWrite(0x0300, 0, 0x2000, 0xF, 0, b"evil"),
        tlp.MemWrite(FUNCTION, 2, 0x2000, 0xF, 0, b"evil"),
        tlp.MemRead(0x0300, 0, 0, 0x2000, 1, 0xF, 0),
    ]


def test_a_write_may_exceed_the_max_payload(bench: RogueBench) -> None:
    bench.enable(max_payload=128)
    bench.start({"do": "write", "address": 0, "data": bytes(512)})
    assert len(bench.take()) == 4
    bench.start({"do": "write", "address": 0, "data": bytes(512), "limit": 4096})
    assert len(bench.take()) == 1


def test_a_scan_counts_and_keeps_the_first_hits(bench: RogueBench) -> None:
    bench.refused.update({0, 3})
    [result] = bench.play({"do": "scan", "first": 0, "last": 0x7FFF, "length": 8})
    hits = (0x1000, 0x2000, 0x4000, 0x5000, 0x6000, 0x7000)
    seen = sha256(b"".join(bench.memory[it : it + 8] for it in hits)).hexdigest()
    assert result == StepResult(0, "scan", "unsupported request", 8, 6, 48, seen, b"", hits)


def test_a_long_scan_stays_small(bench: RogueBench) -> None:
    tracemalloc.start()
    [result] = bench.play({"do": "scan", "first": 0, "last": 0xF_FFFF, "stride": 64, "length": 64})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.attempts == result.completed == 1 << 14 and len(result.hits) == 64
    assert peak < 1 << 20


def test_atomics_interrupts_messages_and_raw_bytes(bench: RogueBench) -> None:
    bench.start(
        {"do": "interrupt", "address": 0xFEE0_1004, "data": 0x99, "times": 2},
        {"do": "message", "name": "Completion", "fields": (5, 0, 4, b"evil")},
        {"do": "raw", "data": b"\xc1"},
        {"do": "atomic", "kind": 0, "address": 0x10, "data": b"\1\0\0\0"},
    )
    interrupt = tlp.MemWrite(FUNCTION, 0, 0xFEE0_1004, 0xF, 0, b"\x99\0\0\0")
    *others, atomic = bench.take()
    assert others == [interrupt, interrupt, tlp.Completion(5, 0, 4, b"evil")]
    assert atomic == tlp.Atomic(FUNCTION, atomic.tag, 0, 0, 0x10, b"\1\0\0\0")
    assert bench.link.raw == [b"\xc1"]
    bench.endpoint.receive(tlp.Completion(atomic.tag, 0, 4, b"\7\0\0\0"))
    results = bench.results.pop()
    assert [it.status for it in results] == ["sent", "sent", "sent", "completed"]
    assert results[-1].data == b"\7\0\0\0"


@pytest.mark.parametrize(("refused", "status"), [(False, "completed"), (True, "refused")])
def test_the_control_is_an_honest_transfer(bench: RogueBench, refused: bool, status: str) -> None:
    if refused:
        bench.refused.add(5)
    [result] = bench.play({"do": "control", "iova": 0x5010, "data": b"I may do this"})
    assert result.status == status
    assert (bench.memory[0x5010:0x501D] == b"I may do this") is not refused


def test_the_control_needs_bus_master(bench: RogueBench) -> None:
    bench.configure(pci.COMMAND, 2, 0)
    [result] = bench.play({"do": "control", "iova": 0x5010, "data": b"1234"})
    assert result.status == "refused"


def test_the_device_stays_honest_meanwhile(bench: RogueBench) -> None:
    bench.start({"do": "scan", "first": 0, "last": 0xF_0000})
    assert bench.read(0) == 0x0100_00ED
    bench.write(0x60, 1)
    bench.serve()
    assert bench.vectors == [VECTOR] and len(bench.results) == 1


def test_a_reset_ends_the_plan_with_what_there_is(bench: RogueBench) -> None:
    bench.start({"do": "write", "address": 0, "data": b"1234"}, {"do": "read", "address": 0, "length": 4})
    bench.endpoint.receive(tlp.HotReset(0))
    assert [it.kind for it in bench.results.pop()] == ["write"]


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({}, "do is None"),
        ({"do": "melt"}, "do is 'melt'"),
        ({"do": ["read"]}, "do is"),
        ({"do": "read", "address": 0}, "length"),
        ({"do": "read", "address": 0, "length": 4, "colour": 1}, "colour"),
        ({"do": "read", "address": "0", "length": 4}, "'<='"),
        ({"do": "read", "address": 0, "length": 1 << 30}, "out of bounds"),
        ({"do": "read", "address": 1 << 64, "length": 4}, "64 bits"),
        ({"do": "read", "address": 0, "length": 4, "requester": 1 << 16}, "16"),
        ({"do": "read", "address": 0, "length": 4, "limit": 100}, "out of bounds"),
        ({"do": "write", "address": 0, "data": "text"}, "bytes-like"),
        ({"do": "scan", "first": 0, "last": 1 << 60, "stride": 1}, "out of bounds"),
        ({"do": "scan", "first": 0, "last": 10, "stride": 0}, "out of bounds"),
        ({"do": "atomic", "kind": 9, "address": 0, "data": b"1234"}, "out of bounds"),
        ({"do": "interrupt", "address": 2, "data": 0}, "out of bounds"),
        ({"do": "message", "name": "HotReset", "fields": (0,)}, "out of bounds"),
        ({"do": "message", "name": "MemRead", "fields": (0,)}, "out of bounds"),
        ({"do": "raw", "data": bytes(5000)}, "out of bounds"),
    ],
)
def test_a_bad_plan_is_refused_with_the_step_named(step: dict[str, Any], complaint: str) -> None:
    good = {"do": "read", "address": 0, "length": 4}
    with pytest.raises(ValueError, match="step 1") as raised:
        parse_plan([good, step])
    assert complaint in str(raised.value)


def test_a_plan_has_a_limit() -> None:
    with pytest.raises(ValueError, match="at most 1024 steps"):
        parse_plan([{"do": "read", "address": 0, "length": 4}] * 1025)
