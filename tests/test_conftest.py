"""The leak check must see what it is there for. Each test here leaves something behind in a run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = {
    "process": ("import subprocess\nsubprocess.Popen(['sleep', '5'])", "sleep 5"),
    "zombie": ("import os\nos.fork() or os._exit(0)", "not waited for"),
    "descriptor": ("import os\nos.memfd_create('guest-ram')", "memfd:guest-ram"),
    "shared memory": ("open('/dev/shm/viommu-leak-test', 'w').close()", "/dev/shm/viommu-leak-test"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_fails_the_test_that_left_it(kind: str, tmp_path: Path) -> None:
    code, words = LEAKS[kind]
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (tmp_path / "test_leak.py").write_text(
        f"import conftest\nconftest.PATIENCE = 0.2\ndef test_clean(): pass\ndef test_leaks():\n{body}"
    )
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
        )
    finally:
        Path("/dev/shm/viommu-leak-test").unlink(missing_ok=True)
    assert run.returncode == 1, run.stdout
    assert "the test left behind:" in run.stdout
    assert words in run.stdout
    assert "2 passed, 1 error" in run.stdout
