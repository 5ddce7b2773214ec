"""pip's own wheel is found on an index of either kind, and taken only with the right sha256."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
PAGE = "https://index.example/simple/pip/"


@pytest.fixture
def pip_wheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(LAUNCH))
    before = set(sys.modules)
    yield importlib.import_module("_pip_wheel")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_json_page(pip_wheel: ModuleType) -> None:
    def entry(name: str, **more: object) -> dict[str, object]:
        return {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": "ab"}, **more}

    files = [
        entry("pip-9.0-py3-none-any.whl"),
        entry("pip-24.1-py3-none-any.whl", **{"requires-python": ">=3.8"}),
        entry("pip-25.0-py3-none-any.whl", **{"requires-python": ">=3.99"}),
        entry("pip-24.2-py3-none-any.whl", yanked="broken"),
        entry("pip-24.3rc1-py3-none-any.whl"),
        entry("pip-24.4.tar.gz"),
        entry("pip-24.5-py3-none-any.whl", hashes={}),
    ]
    wheels = pip_wheel.wheels_of_json(json.dumps({"files": files}).encode(), PAGE)
    assert max(wheels) == ((24, 1), "pip-24.1-py3-none-any.whl", f"{PAGE[:-11]}files/pip-24.1-py3-none-any.whl", "ab")
    assert [wheel.version for wheel in wheels] == [(9, 0), (24, 1)]


def test_html_page(pip_wheel: ModuleType) -> None:
    page = """<!DOCTYPE html><html><body>
    <a href="pip-24.1-py3-none-any.whl#sha256=ab" data-requires-python="&gt;=3.8">pip-24.1-py3-none-any.whl</a>
    <a href="pip-25.0-py3-none-any.whl#sha256=cd" data-requires-python="&gt;=3.99">pip-25.0</a>
    <a href="pip-24.2-py3-none-any.whl#sha256=ef" data-yanked="">pip-24.2</a>
    <a href="pip-24.3-py3-none-any.whl">no hash</a>
    </body></html>"""
    wheels = pip_wheel.wheels_of_html(page.encode(), PAGE)
    assert [(wheel.version, wheel.url, wheel.sha256) for wheel in wheels] == [
        ((24, 1), PAGE + "pip-24.1-py3-none-any.whl", "ab")
    ]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_wheel: ModuleType) -> Path:
    """An index of one wheel, as files; `urlopen` of a folder would list it, so its page is named."""
    (tmp_path / "pip-24.1-py3-none-any.whl").write_bytes(b"a wheel")
    real = pip_wheel._get
    monkeypatch.setattr(pip_wheel, "_get", lambda url: real(url + "index.html" if url.endswith("/") else url))
    monkeypatch.setenv("PIP_INDEX_URL", tmp_path.parent.as_uri())
    (tmp_path.parent / "pip").unlink(missing_ok=True)
    (tmp_path.parent / "pip").symlink_to(tmp_path)
    return tmp_path


def write_page(index: Path, sha256: str) -> None:
    (index / "index.html").write_text(f'<a href="pip-24.1-py3-none-any.whl#sha256={sha256}">pip</a>')


def test_fetched_from_the_users_index(
    index: Path, pip_wheel: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_page(index, hashlib.sha256(b"a wheel").hexdigest())
    folder = tmp_path_factory.mktemp("to")
    assert Path(pip_wheel.fetch_pip(str(folder))).read_bytes() == b"a wheel"


def test_another_sha256_is_refused(index: Path, pip_wheel: ModuleType, tmp_path: Path) -> None:
    write_page(index, "0" * 64)
    with pytest.raises(Exception, match="is not what the index says it is"):
        pip_wheel.fetch_pip(str(tmp_path))


def test_no_index_is_one_clear_line(pip_wheel: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "none").as_uri())
    with pytest.raises(Exception, match="connect once, then launches work offline") as unable:
        pip_wheel.fetch_pip(str(tmp_path))
    assert "\n" not in str(unable.value)


def test_settings_come_as_pip_reads_them(
    pip_wheel: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text("[global]\nindex-url = https://of.the/user\n")
    assert pip_wheel._setting("index-url") == "https://of.the/user"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "mine.conf"))
    (tmp_path / "mine.conf").write_text("[install]\nindex-url = https://named.in/environment\n")
    assert pip_wheel._setting("index-url") == "https://named.in/environment"
    monkeypatch.setenv("PIP_INDEX_URL", "https://first.of/all")
    assert pip_wheel._setting("index-url") == "https://first.of/all"
