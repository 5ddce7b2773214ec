"""A verdict follows from evidence alone, and "blocked" only from all of its proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viommu_actors.attacks.evidence import Evidence, Fault
from viommu_actors.attacks.verdict import missing_proofs, observe

ROGUE = "01:00.0"
FAULT = Fault(kind="remapping", unit="host iommu", source=ROGUE, address="0x1000", write=True, reason="0x5")
PROVEN = Evidence(
    source=ROGUE,
    aimed=8,
    tried=8,
    attempts=8,
    canary_before="c0ffee",
    canary_after="c0ffee",
    fault=FAULT,
    control=True,
    reached=0,
    refused=8,
)


def changed(**fields: Any) -> Evidence:
    return msgspec.structs.replace(PROVEN, **fields)


def test_blocked_with_all_three_proofs() -> None:
    assert observe("write", PROVEN) == "blocked"
    assert missing_proofs("write", PROVEN) == ()


@dataclass
class Lacking:
    evidence: Evidence
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Lacking(changed(attempts=0, refused=0), "no access arrived"),
        Lacking(changed(tried=7), "1 of 8 were never tried"),
        Lacking(changed(refused=7), "1 of 8 accesses are unaccounted for"),
        Lacking(changed(canary_before="", canary_after=""), "no canary was placed"),
        Lacking(changed(fault=None), "no record of what blocked it"),
        Lacking(changed(fault=msgspec.structs.replace(FAULT, source="02:00.0")), "the record names another source"),
        Lacking(changed(fault=msgspec.structs.replace(FAULT, write=False)), "the record is of the other direction"),
        Lacking(changed(control=False), "the positive control failed"),
    ],
    ids=lambda case: case.words,
)
def test_each_missing_proof_makes_it_unproven(case: Lacking) -> None:
    assert observe("write", case.evidence) == "unproven"
    assert case.words in missing_proofs("write", case.evidence)


def test_a_changed_canary_is_corrupted_whatever_else_is_said() -> None:
    assert observe("write", changed(canary_after="dead")) == "corrupted"
    assert observe("read", changed(canary_after="dead")) == "corrupted"


def test_what_reached_the_target_leaked_or_corrupted() -> None:
    let_through = changed(reached=1, refused=7)
    assert observe("read", let_through) == "leaked"
    assert observe("write", let_through) == "corrupted"


def test_what_landed_in_other_memory_is_redirected() -> None:
    assert observe("write", changed(elsewhere=3, refused=5)) == "redirected"
    assert observe("write", changed(elsewhere=8, refused=0, fault=None)) == "redirected"


faults = st.none() | st.builds(
    Fault,
    kind=st.just("remapping"),
    unit=st.just("host iommu"),
    source=st.sampled_from([ROGUE, "02:00.0"]),
    address=st.just("0x0"),
    write=st.booleans(),
)
small = st.integers(0, 3)
evidences = st.builds(
    Evidence,
    source=st.just(ROGUE),
    attempts=small,
    canary_before=st.sampled_from(["", "a"]),
    canary_after=st.sampled_from(["", "a", "b"]),
    fault=faults,
    control=st.booleans(),
    reached=small,
    elsewhere=small,
    refused=small,
)


@given(evidence=evidences, access=st.sampled_from(["read", "write"]))
def test_blocked_implies_every_proof(evidence: Evidence, access: Any) -> None:
    if observe(access, evidence) == "blocked":
        assert evidence.canary_before == evidence.canary_after != ""
        assert evidence.attempts == evidence.refused > 0
        assert evidence.fault is not None
        assert (evidence.fault.source, evidence.fault.write) == (ROGUE, access == "write")
        assert evidence.control
