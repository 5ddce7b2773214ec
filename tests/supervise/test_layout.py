"""Processes that are placed where all so placed are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from viommu_actors.confine.calls import personality
from viommu_actors.spec.privileges import ADDR_NO_RANDOMIZE, PERSONALITY_ASK
from viommu_actors.supervise import layout
from viommu_actors.supervise.layout import can_fix_layout, fixed_layout

_PLACE = "import ctypes; print(ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value)"
_RANDOM = Path("/proc/sys/kernel/randomize_va_space")


def _place() -> str:
    return subprocess.run([sys.executable, "-c", _PLACE], capture_output=True, check=True, text=True).stdout


def test_processes_with_a_fixed_layout_have_the_same_and_others_one_of_their_own() -> None:
    if not can_fix_layout():
        pytest.skip("the system call is refused here")
    with fixed_layout():
        first, second = _place(), _place()
    assert first == second
    before = personality(PERSONALITY_ASK)
    if before & ADDR_NO_RANDOMIZE or _RANDOM.read_text().strip() == "0":
        pytest.skip("nothing is placed at random here")
    assert len({_place() for _ in range(4)} | {first}) > 1


def test_where_it_is_refused_the_layout_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(persona: int) -> int:
        raise PermissionError

    monkeypatch.setattr(layout, "personality", refused)
    assert not can_fix_layout()
    with fixed_layout():
        pass
    before = personality(PERSONALITY_ASK)
    monkeypatch.undo()
    assert personality(PERSONALITY_ASK) == before


def test_what_goes_wrong_meanwhile_changes_nothing_behind_it() -> None:
    before = personality(PERSONALITY_ASK)
    with pytest.raises(OSError, match="within"), fixed_layout():
        raise OSError("within")
    assert personality(PERSONALITY_ASK) == before
