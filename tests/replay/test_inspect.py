"""`viommu inspect`: the tables of a real Linux guest (Debian's 6.1 kernel, caching mode, 48 bits)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from viommu_actors.__main__ import main
from viommu_actors.cli.exits import Exit
from viommu_actors.cli.inspect import load, parse_bdf
from viommu_actors.replay.boot import read_steps, replay_boot
from viommu_actors.spec.vtd import Access, Reg
from viommu_actors.vtd import Remapped

FOLDER = Path(__file__).parents[1] / "transcripts" / "linux"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_each_recorded_translation() -> None:
    """1,200 requests, by the walk and by the unit with its caches."""
    image = load(FOLDER)
    cases = json.loads((FOLDER / "translations.json").read_text())
    assert len(cases) == 1200
    for case in cases:
        requester, iova = parse_bdf(case["bdf"]), int(case["iova"], 16)
        access = Access.WRITE if case["write"] else Access.READ
        answer = image.translate(requester, iova, access)
        cached = image.unit.translate(requester, iova, access)
        if case["expect"] == "ok":
            gpa = int(case["gpa"], 16)
            assert answer == (gpa, case["level"], case["perm"], None), case
            assert cached == (gpa, None), case
        else:
            assert (answer.reason, cached.reason) == (case["reason"], case["reason"]), case


def test_registers_are_those_of_the_guest() -> None:
    image = load(FOLDER)
    for name in ("CAP", "ECAP", "RTADDR", "IRTA"):
        assert image.unit.read(getattr(Reg, name), 8) == image.state.value(name), name


def test_interrupt_entries() -> None:
    image = load(FOLDER)
    recorded = json.loads((FOLDER / "state.json").read_text())["irte"]
    entries = dict(image.interrupt_entries())
    assert list(entries) == [entry["index"] for entry in recorded]
    outcome = image.unit.remap_interrupt(parse_bdf("00:03.0"), 0xFEE00010 | 16 << 5, 0)
    assert isinstance(outcome, Remapped)
    assert (outcome.entry, outcome.interrupt.vector, outcome.interrupt.destination) == (16, 0x28, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (("00:05.0", "0x4031b853"), 0, "ok 0x1e4a853 level 1 rw\n"),
        (("0000:00:05.0", "4031b853", "--write"), 0, "ok 0x1e4a853 level 1 rw\n"),
        (("00:1f.3", "0xcd490a8dda8f", "--write"), 1, "fault 0x5\n"),
        (("00:1f.3", "0xcd490a8dda8f"), 1, "fault 0x6\n"),
        (("05:00.0", "0x1000"), 1, "fault 0x1\n"),
        (("00:05.0", "0xfee01000", "--write"), 0, "ok 0xfee01000 untranslated rw\n"),
    ],
)
def test_translate(arguments: tuple[str, ...], status: int, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    got, out, _ = run(capsys, FOLDER, "--translate", *arguments)
    assert (got, out) == (status, printed)


@pytest.mark.parametrize("arguments", [("00:05", "0x0"), ("00:05.0", "0xg"), ("00:05.0", "0x1" + "0" * 16)])
def test_bad_requests_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, FOLDER, "--translate", *arguments)
    assert (status, out) == (Exit.REFUSED, "")
    assert len(err.splitlines()) == 1


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, FOLDER)
    assert status == 0
    lines = out.splitlines()
    assert lines[:2] == ["unit    48 bits, caching mode; on: TES RTPS QIES IRES IRTPS", "root    0x601a000"]
    assert "00:05.0 domain 5, 4 levels at 0x1fe68000" in lines
    assert "        0x40000000-0x40000fff -> 0x29f8000 rw 4 KiB" in lines
    assert "        as 00:1f.0" in lines
    assert "interrupt remapping table 0x4a00000, 65536 entries, xAPIC ids" in lines
    assert "     16 vector 0x28 to logical 0x1, fixed, edge; from 00:03.0" in lines
    contexts = json.loads((FOLDER / "state.json").read_text())["contexts"]
    assert [line.split()[0] for line in lines if " domain " in line] == [entry["bdf"] for entry in contexts]
    assert len(run(capsys, FOLDER, "--all")[1]) > len(out)


def test_mapped_ranges_hold_every_leaf() -> None:
    image = load(FOLDER)
    leaves = {entry["bdf"]: entry["leaves"] for entry in json.loads((FOLDER / "state.json").read_text())["contexts"]}
    for name, count in leaves.items():
        ranges = list(image.ranges(image.unit.context(parse_bdf(name))))
        assert sum(mapped.pages[0] for mapped in ranges) == count
        assert sum(mapped.size for mapped in ranges) == count * 4096


def test_replay_boot(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, FOLDER, "--replay-boot")
    assert status == 0
    assert "  1126 descriptor wait\n" in out
    assert out.endswith("all registers at the end as recorded\n")


def test_a_boot_that_ends_otherwise() -> None:
    image = load(FOLDER)
    image.state.registers["IQT"].value = "0x10"
    boot = replay_boot(image, read_steps([(1, b'{"op":"reg_write","offset":"0x88","size":8,"value":"0x20"}')]))
    assert "IQT is 0x20 at the end; recorded is 0x10" in boot.problems


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"{}"),
        ("state.json", b'{"registers": {}, "pages": []}'),
        ("state.json", b"\xff"),
        ("pages.bin.gz", b"not gzip"),
        ("pages.bin.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
        ("state.json", None),
        ("pages.bin.gz", None),
    ],
)
def test_broken_images_are_refused(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    shutil.copytree(FOLDER, image)
    if content is None:
        (image / name).unlink()
    else:
        (image / name).write_bytes(content)
    status, out, err = run(capsys, image)
    assert (status, out) == (Exit.REFUSED, "")
    assert err.startswith(f"{image}: ") and len(err.splitlines()) == 1
