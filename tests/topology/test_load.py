"""What stands at the end of the path must be a small regular file of UTF-8 text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import MAX_FILE, load, parse

GOOD = b'name = "t"\n[[device]]\nname = "nic0"\nmodel = "nic"\n'


def refused(path: Path) -> str:
    with pytest.raises(TopologyError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "topology.toml"
    path.write_bytes(data)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD)).device[0].name == "nic0"
    assert load(write(tmp_path, GOOD.replace(b"\n", b"\r\n"))).device[0].name == "nic0"


def test_missing(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.toml")


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refused(tmp_path)


def test_fifo_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refused(tmp_path / "fifo")


def test_endless_device() -> None:
    assert "is not a regular file" in refused(Path("/dev/zero"))


def test_unreadable_name(tmp_path: Path) -> None:
    assert "cannot be read: File name too long" in refused(tmp_path / ("n" * 300))


def test_huge(tmp_path: Path) -> None:
    assert "is larger than 64 KiB" in refused(write(tmp_path, GOOD + b"#" * MAX_FILE))
    assert load(write(tmp_path, GOOD + b"#\n" * ((MAX_FILE - len(GOOD)) // 2)))


def test_other_encoding(tmp_path: Path) -> None:
    assert "is not UTF-8 text (byte 26)" in refused(write(tmp_path, b'name = "t"\ndescription = "\xe4"\n'))


def test_binary(tmp_path: Path) -> None:
    assert "is not UTF-8 text" in refused(write(tmp_path, bytes(range(256))))


def test_cut_off_anywhere(tmp_path: Path) -> None:
    """A truncated file loads (where the cut leaves a whole topology) or is refused, never anything else."""
    for end in range(len(GOOD)):
        try:
            load(write(tmp_path, GOOD[:end]))
        except TopologyError as error:
            assert error.remedy


def test_dotted_keys_cannot_make_it_slow(tmp_path: Path) -> None:
    """Unbounded, tomllib takes minutes for these; the suite's timeout would tell."""
    refused(write(tmp_path, b"".join(b"a." * 2040 + b"b%d = 1\n" % i for i in range(15))))
    refused(write(tmp_path, b"a." * 30_000 + b"b = 1\n"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_loaded_or_refused(text: str) -> None:
    with pytest.raises(Refusal):
        parse(text)
    with pytest.raises(Refusal):
        parse(f'{GOOD.decode()}\nzzz = "{text}"')
