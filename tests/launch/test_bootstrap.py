"""The launch bootstrap: when an environment is ready, what is done when it is not."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
WANTED = frozenset(["ui"])


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as it would be in a project of its own."""
    folder = tmp_path / "project" / "launch"
    shutil.copytree(LAUNCH, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "project" / "pyproject.toml").write_text("[project]\n")
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module("_bootstrap")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def finished(bootstrap: ModuleType, extras: frozenset[str] = WANTED) -> object:
    """An environment as a launch leaves it, with this interpreter for its own."""
    environment = bootstrap.Environment(bootstrap.ROOT)
    os.makedirs(os.path.dirname(environment.python), exist_ok=True)
    if not os.path.exists(environment.python):
        os.symlink(sys.executable, environment.python)
    environment.write_stamp(environment.wanted(extras).text())
    return environment


def test_ready_until_something_changes(bootstrap: ModuleType) -> None:
    environment = finished(bootstrap)
    assert environment.is_ready(WANTED)
    assert environment.is_ready(["ui"])
    assert not environment.is_ready(WANTED | {"test"})
    assert environment.is_sound()
    Path(bootstrap.ROOT, "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert not environment.is_ready(WANTED)
    assert environment.is_sound()


def test_an_interpreter_that_went_away_makes_it_unsound(bootstrap: ModuleType) -> None:
    environment = finished(bootstrap)
    os.unlink(environment.python)
    assert not environment.is_ready(WANTED)
    assert not environment.is_sound()
    os.symlink(shutil.which("env") or "/usr/bin/env", environment.python)
    assert not environment.is_sound()


def test_a_moved_project_is_not_ready(bootstrap: ModuleType, tmp_path: Path) -> None:
    finished(bootstrap)
    moved = tmp_path / "moved"
    os.rename(bootstrap.ROOT, moved)
    environment = bootstrap.Environment(str(moved))
    assert not environment.is_ready(WANTED)
    assert not environment.is_sound()


@pytest.mark.parametrize("text", ["", "half", "a\nb\nc"])
def test_an_unfinished_stamp_counts_for_nothing(bootstrap: ModuleType, text: str) -> None:
    environment = finished(bootstrap)
    environment.write_stamp(text)
    assert environment.stamp() is None
    assert not environment.is_ready(WANTED)


class Recorder:
    """Stands for the installer."""

    def __init__(self, environment: object, fails: Exception | None = None) -> None:
        self.environment = environment
        self.fails = fails
        self.done: list[object] = []

    def make(self) -> None:
        self.done.append("make")
        python = self.environment.python  # type: ignore[attr-defined]
        os.makedirs(os.path.dirname(python), exist_ok=True)
        os.symlink(sys.executable, python)

    def install(self, extras: frozenset[str]) -> None:
        self.done.append(extras)
        assert self.environment.stamp() is None, "a kill now must not leave a finished stamp"  # type: ignore[attr-defined]
        if self.fails:
            raise self.fails


def run_install(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: frozenset[str] = WANTED, fails: bool = False
) -> Recorder:
    install = importlib.import_module("_install")
    environment = bootstrap.Environment(bootstrap.ROOT)
    recorder = Recorder(environment, bootstrap.Unable("no network") if fails else None)
    monkeypatch.setattr(install, "Installer", lambda *_: recorder)
    install.install(environment, wanted, 0)
    return recorder


def test_made_where_there_is_none(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_install(bootstrap, monkeypatch).done == ["make", WANTED]
    assert bootstrap.Environment(bootstrap.ROOT).is_ready(WANTED)


def test_a_half_made_one_is_made_anew(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = finished(bootstrap)
    environment.write_stamp("")
    rest = Path(environment.path, "lib", "rest")
    rest.parent.mkdir()
    rest.write_text("of an interrupted installation")
    assert run_install(bootstrap, monkeypatch).done == ["make", WANTED]
    assert not rest.exists()


def test_an_extra_is_added_and_the_others_stay(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(bootstrap)
    recorder = run_install(bootstrap, monkeypatch, WANTED | {"test"})
    assert recorder.done == [WANTED | {"test"}]
    Path(bootstrap.ROOT, "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert run_install(bootstrap, monkeypatch).done == [WANTED | {"test"}]


def test_offline_a_changed_project_goes_on_with_what_it_has(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = finished(bootstrap)
    Path(bootstrap.ROOT, "pyproject.toml").write_text("[project]\nname = 'x'\n")
    run_install(bootstrap, monkeypatch, fails=True)
    assert capsys.readouterr().err == "viommu-actors: going on with .venv as it was: no network\n"
    assert environment.is_sound()
    with pytest.raises(bootstrap.Unable):
        run_install(bootstrap, monkeypatch, WANTED | {"test"}, fails=True)
    assert environment.is_sound()


def test_someone_elses_environment_is_used_not_removed(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = finished(bootstrap)
    os.unlink(environment.stamp_path)
    assert run_install(bootstrap, monkeypatch).done == [WANTED]
    assert "using the .venv that is there" in capsys.readouterr().err


def test_an_optional_extra_that_fails_is_left_out(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install = importlib.import_module("_install")
    installer = install.Installer(bootstrap.Environment(bootstrap.ROOT), 0)
    monkeypatch.setattr(
        installer, "_install", lambda extras: "error: no colours here" if "ui" in extras else None
    )
    installer.install(WANTED | {"test"})
    assert capsys.readouterr().err == "viommu-actors: going on without the extra ui: error: no colours here\n"


def test_no_index_is_one_clear_line(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    install = importlib.import_module("_install")
    installer = install.Installer(bootstrap.Environment(bootstrap.ROOT), 0)
    reason = "ERROR: No matching distribution found for flit_core<4,>=3.9"
    monkeypatch.setattr(installer, "_install", lambda extras: reason)
    with pytest.raises(bootstrap.Unable, match="connect once, then launches work offline") as unable:
        installer.install(WANTED)
    assert "\n" not in str(unable.value)


def test_the_reason_is_the_error_that_counts(bootstrap: ModuleType) -> None:
    install = importlib.import_module("_install")
    output = "Collecting x\nERROR: no x\n  error: subprocess-exited-with-error\nnote: not a problem with pip\n"
    assert install._reason(output) == "ERROR: no x"
    assert install._reason("only this\n\n") == "only this"
    assert install._reason("") == ""


def test_the_second_launch_waits_for_the_first(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the first ends while the second waits, and leaves it nothing to do."""
    environment = bootstrap.Environment(bootstrap.ROOT)
    real = fcntl.flock

    def flock(lock: int, operation: int) -> None:
        if operation & fcntl.LOCK_NB:
            raise BlockingIOError
        finished(bootstrap)
        real(lock, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    bootstrap._prepare(environment, WANTED)
    assert capsys.readouterr().err == "viommu-actors: waiting for another launch that makes .venv\n"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(bootstrap: ModuleType) -> None:
    os.chmod(bootstrap.ROOT, 0o555)
    with pytest.raises(bootstrap.Unable, match="copy the project to a folder of your own"):
        bootstrap._prepare(bootstrap.Environment(bootstrap.ROOT), WANTED)


def test_an_old_python_is_told_off_in_one_line(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 99))
    monkeypatch.setattr(bootstrap, "NEWER", [])
    with pytest.raises(bootstrap.Unable, match=r"Python 3\.99 or later is needed; python3 is 3\."):
        bootstrap._use_new_python()


def test_a_ready_launch_becomes_the_environments_python(bootstrap: ModuleType, tmp_path: Path) -> None:
    """From another directory, by a link, and with its arguments untouched."""
    finished(bootstrap)
    package = Path(bootstrap.ROOT, "viommu_actors")
    package.mkdir()
    (package / "__main__.py").write_text("import sys, os\nprint(sys.argv[1:], os.getcwd())\n")
    link = tmp_path / "link"
    link.symlink_to(Path(bootstrap.ROOT, "launch", "topology"))
    run = subprocess.run(
        [sys.executable, link, "a b", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": bootstrap.ROOT},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{['topology', 'a b', '--json']} {tmp_path}\n"


def test_every_command_is_executable() -> None:
    for name in ("topology", "tests", "viommu"):
        assert os.access(LAUNCH / name, os.X_OK)
        assert (LAUNCH / name).read_text().startswith("#!/usr/bin/env python3\n")
