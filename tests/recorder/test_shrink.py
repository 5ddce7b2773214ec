"""Shrinking and generating need no QEMU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from viommu_actors.__main__ import main
from viommu_actors.cli.exits import Exit
from viommu_actors.recorder.fuzz import shrink
from viommu_actors.recorder.generate import generate
from viommu_actors.replay import transcript as t
from viommu_actors.replay.machine import Machine


def comment(number: int) -> t.Operation:
    return t.Comment(str(number))


def test_only_what_is_needed_is_kept() -> None:
    needed = [comment(3), comment(17), comment(40)]

    def differs(operations: Sequence[t.Operation]) -> bool:
        return all(operation in operations for operation in needed)

    assert shrink([comment(number) for number in range(50)], differs) == needed


def test_shrinking_is_bounded() -> None:
    asked = 0

    def differs(operations: Sequence[t.Operation]) -> bool:
        nonlocal asked
        asked += 1
        return comment(5) in operations and comment(44) in operations

    shrink([comment(number) for number in range(50)], differs, limit=7)
    assert asked == 7


def test_the_same_seed_gives_the_same_transcript() -> None:
    assert generate(5) == generate(5)
    assert generate(5) != generate(6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_no_random_transcript_upsets_a_unit(seed: int, quirks: str) -> None:
    header, operations = generate(seed, steps=40)
    text = list(t.write(header, operations))
    assert t.read_header(text[0]) == header
    machine = Machine(header, quirks)  # type: ignore[arg-type]
    for _, operation in t.read_operations(header, enumerate(text[1:], 2)):
        machine.run(operation)


def test_without_qemu_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["record", "--random", "1"]) == Exit.REFUSED
    assert capsys.readouterr().err == "qemu-system-x86_64 is missing: apt-get install qemu-system-x86\n"
