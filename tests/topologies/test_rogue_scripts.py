"""A user's own rogue: others judge what its script gets at, and whatever the script does, the topology goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.launcher import ROOT, Finished, Launch
from tests.topologies.rogue import attack, status, staying

pytestmark = pytest.mark.topology

HEAD = "from viommu_actors.rogue import Rogue\nclass Mine(Rogue):\n    def run(self):\n        "


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with staying(tmp_path_factory.mktemp("staying")) as launch:
        yield launch


@pytest.fixture
def run(running: Launch) -> Path:
    return running.folder


def _script(folder: Path, body: str, head: str = HEAD) -> Path:
    path = folder / "mine.py"
    path.write_text(head + body.replace("\n", "\n        ") + "\n")
    return path


def _observed(results: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(row["attack"], row["target"]): row["observed"] for row in results["verdicts"]}


def _played(run: Path, tmp_path: Path, device: str, body: str, *options: str) -> Finished:
    return attack(run, "--as", device, "--script", str(_script(tmp_path, body)), "--json", *options)


# --- the worked examples


@pytest.mark.long
def test_scan_and_patch_finds_all_of_its_guest_without_a_viommu(run: Path) -> None:
    finished = attack(run, "--as", "edu0", "--script", str(ROOT / "examples" / "scan_and_patch.py"), "--json")
    assert finished.status == 0, finished.stderr
    assert _observed(finished.results) == {
        ("script-read", "guest memory"): "leaked",
        ("script-write", "guest memory"): "corrupted",
    }
    assert finished.results["reports"] == ["16 places found and patched"]


def test_scan_and_patch_finds_nothing_behind_one(run: Path) -> None:
    finished = attack(run, "--as", "nic0", "--script", str(ROOT / "examples" / "scan_and_patch.py"), "--json")
    assert finished.status == 0, finished.stderr
    assert _observed(finished.results) == {("script-read", "guest memory"): "blocked"}
    assert finished.results["reports"] == ["0 places found and patched"]


def test_the_forger_is_stopped(run: Path) -> None:
    finished = attack(run, "--as", "nic1", "--script", str(ROOT / "examples" / "forger.py"), "--json")
    assert finished.status == 0, finished.stderr
    assert _observed(finished.results) == {
        ("script-write", "host memory"): "blocked",
        ("script-interrupt", "host's interrupts"): "blocked",
    }
    faults = {row["attack"]: row["evidence"]["fault"] for row in finished.results["verdicts"]}
    assert faults["script-write"]["kind"] == "acs" and faults["script-write"]["source"] == "01:00.0"
    assert faults["script-interrupt"]["reason"] == "0x25"


# --- what a rogue has at hand


def test_its_own_page_is_its_own_and_nothing_of_it_is_judged(run: Path, tmp_path: Path) -> None:
    body = (
        "page = self.targets.own_page\n"
        "self.dma_write(page + 100, b'mine' * 500)\n"
        "self.report(self.dma_read(page + 100, 2000) == b'mine' * 500)"
    )
    finished = _played(run, tmp_path, "nic0", body)
    assert finished.status == 0, finished.stderr
    assert finished.results["reports"] == ["True"] and finished.results["verdicts"] == []


def test_every_target_and_all_at_once(run: Path, tmp_path: Path) -> None:
    body = (
        "for pages in self.targets.canaries.values():\n"
        "    for page in pages:\n"
        "        self.dma_write(page, b'x')\n"
        "        self.dma_read(page, 8)"
    )
    finished = _played(run, tmp_path, "nic0", body)
    assert finished.status == 0, finished.stderr
    assert _observed(finished.results) == {
        (f"script-{way}", target): "blocked"
        for way in ("read", "write")
        for target in ("guest memory", "host memory", "other guest")
    }
    assert all(row["evidence"]["attempts"] == 16 for row in finished.results["verdicts"])


def test_a_translated_request_is_refused(run: Path, tmp_path: Path) -> None:
    body = "self.report(self.translated_read(self.targets.canaries['host memory'][0], 64))"
    finished = _played(run, tmp_path, "nic0", body)
    assert finished.status == 0 and finished.results["reports"] == ["None"]
    assert _observed(finished.results) == {("script-read", "host memory"): "blocked"}
    fault = finished.results["verdicts"][0]["evidence"]["fault"]
    assert (fault["kind"], fault["text"]) == ("acs", "acs translation blocking")


# --- scripts that are none, or do not end as they should


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def run(:\n", "mine.py, line 1: "),
        ("\0", "mine.py"),
        ("\udcff", "mine.py: 'utf-8' codec can't decode byte 0xff"),
        ("x = 1\n" * 20000, "longer than 65536 bytes"),
    ],
)
def test_what_is_no_python_attaches_nothing(run: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    finished = attack(run, "--as", "nic0", "--script", str(path))
    assert finished.status == 2 and said in finished.stderr and finished.stderr.count("\n") == 1


def test_a_script_that_is_not_there(run: Path, tmp_path: Path) -> None:
    finished = attack(run, "--as", "nic0", "--script", str(tmp_path / "none.py"))
    assert finished.status == 2 and "none.py: No such file" in finished.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "mine.py, line 4: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "mine.py, line 4: SystemExit: 3"),
        ("self.dma_read(-1, 4)", "mine.py, line 4: ValueError: no read of 4 bytes at -0x1"),
        ("self.dma_write(0, bytes(2 << 20))", "mine.py, line 4: ValueError: no write of 2097152 bytes"),
        ("self.run()", "mine.py, line 4: RecursionError"),
        ("bytearray(1 << 31)", "mine.py, line 4: MemoryError"),
        ("open('/etc/passwd')", "mine.py, line 4: PermissionError"),
        ("import os\nos.fork()", "mine.py, line 5: "),
    ],
)
def test_a_script_that_fails_tells_where(run: Path, tmp_path: Path, body: str, said: str) -> None:
    finished = _played(run, tmp_path, "nic0", body)
    assert finished.status == 1 and said in finished.stderr and finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert status(run)["attached"] == []


TWO = "from viommu_actors.rogue import Rogue\nclass A(Rogue): pass\nclass B(Rogue): pass\n"


@pytest.mark.parametrize("head", ["", TWO])
def test_a_script_defines_one_rogue(run: Path, tmp_path: Path, head: str) -> None:
    finished = attack(run, "--as", "nic0", "--script", str(_script(tmp_path, "x = 1", head)))
    assert finished.status == 1 and "a script defines one subclass" in finished.stderr


@pytest.mark.long
def test_an_endless_loop_is_ended(run: Path, tmp_path: Path) -> None:
    finished = _played(run, tmp_path, "nic0", "while True: pass", "--seconds", "0.5")
    assert finished.status == 1 and "mine.py did not end" in finished.stderr
    assert status(run)["attached"] == []
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0


@pytest.mark.long
def test_a_rogue_that_hands_over_nonsense(run: Path, tmp_path: Path) -> None:
    """What it says of the device is in its own hands; honest firmware goes on with what it was given then."""
    body = "self._port._turn.__self__._control._handlers['state'] = lambda: 'nonsense'\nself.report('done')"
    finished = _played(run, tmp_path, "nic0", body)
    assert finished.status == 0 and finished.results["reports"] == ["done"], finished.stderr
    assert attack(run, "--as", "edu0", "--attacks", "A24", "--json").status == 0
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0


def test_a_process_that_ends_itself(run: Path, tmp_path: Path) -> None:
    finished = _played(run, tmp_path, "nic0", "import os\nos._exit(7)")
    assert finished.status == 3 and "exited with 7" in finished.stderr
    assert attack(run, "--as", "nic0", "--attacks", "A2").status == 0
