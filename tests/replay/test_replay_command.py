"""`viommu replay`: what it prints, counts and returns; malformed files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.replay.writing import header, read_register, write, write_register
from viommu_actors.__main__ import main
from viommu_actors.cli.exits import Exit
from viommu_actors.spec.vtd import Command, Reg

GOOD = read_register(Reg.VER, 0x10)
BAD = read_register(Reg.VER, 0x11)
#: A descriptor in the middle of nowhere, IQE, and its clearing: QEMU does not fetch again.
QUEUE_ERROR = [
    write_register(Reg.IQA, 0x1000, 8),
    write_register(Reg.GCMD, Command.QIE),
    write_register(Reg.IQT, 0x10),
    read_register(Reg.FSTS, 0x10),
    write_register(Reg.FSTS, 0x10),
]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["replay", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def summary(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    status, out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return status, json.loads(out)


def test_a_file_that_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, GOOD)
    status, out, _ = run(capsys, path)
    assert status == Exit.AS_EXPECTED
    first, last = out.splitlines()
    assert first == f"{path}: ok"
    assert last.startswith("1 passed; 0 advisory; 2 operations in ")


def test_the_first_line_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, BAD, BAD)
    status, out, _ = run(capsys, tmp_path)
    assert status == Exit.DIFFERS
    assert out.splitlines()[0] == f"{path}: failed: line 3, reg_read: expect: expected '0x11', observed '0x10'"


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b.jsonl", BAD | {"impl": "why"})
    write(tmp_path / "c.jsonl", BAD)
    write(tmp_path / "d.jsonl", BAD, head=header(**{"class": "qemu"}))
    write(tmp_path / "e.jsonl", "{")
    (tmp_path / "deeper").mkdir()
    with gzip.open(tmp_path / "deeper" / "f.jsonl.gz", "wb") as file:
        file.write((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "other.txt").write_text("nothing")
    status, result = summary(capsys, tmp_path)
    assert status == Exit.REFUSED
    assert list(result) == ["passed", "failed", "malformed", "advisory", "operations", "seconds", "files"]
    assert (result["passed"], result["failed"], result["malformed"], result["advisory"]) == (3, 1, 1, 1)
    assert {Path(file["path"]).name: (file["class"], file["result"]) for file in result["files"]} == {
        "a.jsonl": ("spec", "passed"),
        "b.jsonl": ("spec", "passed"),
        "c.jsonl": ("spec", "failed"),
        "d.jsonl": ("qemu", "information"),
        "e.jsonl": ("spec", "malformed"),
        "f.jsonl.gz": ("spec", "passed"),
    }
    (differs,) = [file for file in result["files"] if file["result"] == "failed"]
    assert differs["difference"] == "line 2, reg_read: expect: expected '0x11', observed '0x10'"


def test_with_qemus_quirks_every_operation_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", BAD | {"impl": "why"})
    write(tmp_path / "b.jsonl", BAD, head=header(**{"class": "qemu"}))
    assert run(capsys, tmp_path)[0] == Exit.AS_EXPECTED
    status, result = summary(capsys, tmp_path, "--quirks", "qemu")
    assert (status, result["failed"]) == (Exit.DIFFERS, 2)


def test_a_listed_deviation_is_advisory_with_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", *QUEUE_ERROR, read_register(Reg.FSTS, 0), read_register(Reg.FSTS, 0))
    status, out, _ = run(capsys, path, "--advisory")
    assert status == Exit.AS_EXPECTED
    assert out.count("(queue-stays-stopped)") == 2
    assert run(capsys, path, "--quirks", "qemu")[0] == Exit.AS_EXPECTED


def test_what_no_listed_deviation_explains_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", *QUEUE_ERROR, read_register(Reg.FSTS, 0), read_register(Reg.FSTS, 1))
    status, out, _ = run(capsys, path)
    assert status == Exit.DIFFERS
    assert "line 8, reg_read: expect: expected '0x1', observed '0x10'" in out


def test_an_unlisted_deviation_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reserved bits of an interrupt-entry invalidation: QEMU 7.2 does not look, but that is on no list."""
    descriptor = (4 | 1 << 10).to_bytes(8, "little").hex() + "00" * 8
    path = write(
        tmp_path / "a.jsonl",
        {"op": "mem_write", "addr": "0x1000", "data": descriptor},
        *QUEUE_ERROR[:3],
        read_register(Reg.FSTS, 0),
    )
    assert run(capsys, path)[0] == Exit.DIFFERS
    assert run(capsys, path, "--quirks", "qemu")[0] == Exit.AS_EXPECTED


DMA = {"bdf": "00:03.0", "addr": "0x0", "expect": "ok"}
MALFORMED = {
    "bad JSON": ("{", "line 2"),
    "no object": ("[]", "line 2"),
    "unknown op": ({"op": "jump"}, "line 2: Invalid value 'jump' - at `$.op`"),
    "second header": (header(), "line 2"),
    "field missing": ({"op": "mem_read", "addr": "0x0", "len": 4}, "line 2: Object missing required field `expect`"),
    "hex that is not": ({"op": "reg_write", "offset": "0x8", "size": 4, "value": "8z"}, "line 2"),
    "odd hex": (
        {"op": "mem_write", "addr": "0x0", "data": "012"},
        "line 2: mem_write: data is not hex digits in pairs",
    ),
    "spaced hex": ({"op": "mem_write", "addr": "0x0", "data": "01 02"}, "line 2: mem_write: data is not hex"),
    "register size": (read_register(0, 0, size=2), "line 2"),
    "register offset": (read_register(0xFFE, 0), "line 2: reg_read: offset 0xffe is beyond the register file"),
    "wide value": (write_register(0, 1 << 32), "line 2: reg_write: value 0x100000000 is wider than 4 bytes"),
    "no RAM": ({"op": "mem_write", "addr": "0x2000000", "data": "00"}, "line 2: mem_write: no memory at 0x2000000"),
    "past the end": ({"op": "mem_write", "addr": "0xffffffffffffffff", "data": "0000"}, "line 2: mem_write"),
    "fill length": ({"op": "mem_fill", "addr": "0x0", "len": 12, "word": "0x0"}, "line 2"),
    "huge fill": ({"op": "mem_fill", "addr": "0x0", "len": 1 << 40, "word": "0x0"}, "line 2"),
    "long DMA": (
        {"op": "dma_read", "bdf": "00:03.0", "addr": "0x0", "len": 4096, "expect": "ok"},
        "line 2: dma_read: 4096",
    ),
    "empty DMA": (
        {"op": "dma_write", "bdf": "00:03.0", "addr": "0x0", "data": "", "expect": "ok"},
        "line 2: dma_write: 0",
    ),
    "bdf": ({"op": "dma_read", "bdf": "00:3.0", "addr": "0x0", "len": 4, "expect": "ok"}, "line 2"),
    "long line": ('{"op":"comment","text":"' + "x" * (1 << 20) + '"}', "line 2: longer than 1048576 bytes"),
    "shadow op": ({"op": "system_reset"}, "line 2: system_reset: only with addendum 'shadow/1'"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_lines(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names file and line; the others still run."""
    line, expected = MALFORMED[what]
    path = write(tmp_path / "bad.jsonl", line)  # type: ignore[arg-type]
    other = write(tmp_path / "good.jsonl", GOOD)
    status, out, err = run(capsys, tmp_path)
    assert (status, err) == (Exit.REFUSED, "")
    first, second, last = out.splitlines()
    assert first.startswith(f"{path}: malformed: {expected}")
    assert second == f"{other}: ok"
    assert last.startswith("1 passed, 1 malformed")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\xff\xfe",
        b'{"op":"header"}',
        b"[" * 100_000,
        json.dumps(header(ram=[["0x0", "0x1001"]])).encode(),
        json.dumps(header(ram=[["0x0", "0x3000"], ["0x2000", "0x4000"]])).encode(),
        json.dumps(header(format="vtd-transcript/2")).encode(),
        json.dumps(header(platform={"aw_bits": 57})).encode(),
        json.dumps(header(platform={"eim": True, "intremap": False})).encode(),
    ],
)
def test_malformed_headers(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    status, out, _ = run(capsys, path)
    assert status == Exit.REFUSED
    assert out.startswith(f"{path}: malformed: line 1: ")


def test_truncated_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "whole.jsonl", GOOD, GOOD).read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(whole[:-20])
    packed = gzip.compress(whole * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b"not gzip at all")
    status, result = summary(capsys, tmp_path)
    assert (status, result["malformed"], result["passed"]) == (Exit.REFUSED, 3, 1)
    assert {file["difference"].partition(":")[0] for file in result["files"] if file["difference"]} <= {
        "line 1",
        "line 2",
        "line 3",
    }


def test_a_file_of_a_gigabyte_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as packed:
        packed.write(json.dumps(header()).encode() + b"\n")
        for _ in range(80):
            packed.write(b'{"op":"comment","text":"' + b"x" * 500_000 + b'"}\n')
    status, out, _ = run(capsys, tmp_path)
    assert status == Exit.REFUSED
    assert f"{path}: malformed: line 1: 1073741824 bytes; a transcript has at most" in out
    assert f"{bomb}: malformed: line " in out and "unpacked" in out


def test_memory_that_a_transcript_fills_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = header(ram=[["0x0", "0x40000000"]])
    fills = [{"op": "mem_fill", "addr": hex(at), "len": 8, "word": "0x1"} for at in range(0, 0x4000_0000, 0x1000)]
    status, out, _ = run(capsys, write(tmp_path / "b.jsonl", *fills[: (1 << 16) + 1], head=head))
    assert status == Exit.REFUSED
    assert "writes more than 65536 pages" in out


def test_a_message_may_ask_for_more_than_it_gets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vfio-user device's DMA_READ of more than 1 MiB is answered with E2BIG."""
    asked = {"op": "dma_read", "bdf": "00:03.0", "addr": "0x0", "len": (1 << 20) + 1, "expect": "blocked"}
    path = write(tmp_path / "a.jsonl", asked | {"errno": "E2BIG"}, head=header(addendum="shadow/1"))
    assert run(capsys, path)[0] == Exit.AS_EXPECTED
    assert run(capsys, path, "--quirks", "qemu")[0] == Exit.AS_EXPECTED


def test_nothing_to_do_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, tmp_path / "absent")
    assert (status, out) == (Exit.REFUSED, "")
    assert err == f"{tmp_path / 'absent'}: no such file or folder\n"
    assert run(capsys, tmp_path)[0] == Exit.REFUSED


def test_the_images_in_a_folder_are_no_transcripts(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[1] / "transcripts" / "linux"
    status, _, err = run(capsys, folder)
    assert status == Exit.REFUSED and "no *.jsonl" in err
