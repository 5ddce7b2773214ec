"""A topology that runs as a process of its own, for programs and tests: started, attacked, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from viommu_actors.report.results import Results, RogueResults, read_results
from viommu_actors.supervise.client import DoorClient
from viommu_actors.supervise.requests import Attack, DeviceAdd, Script
from viommu_actors.supervise.runs import find_run
from viommu_actors.topology.resolved import ResolvedDevice

_ROOT = str(Path(__file__).resolve().parents[1])
#: Seconds that a topology may take until its verdicts are in, and until it has ended.
_UP = 120.0
_DOWN = 10.0


class NotRunning(Exception):
    """The topology was refused, or has ended; the text is what it said."""


class RunningTopology:
    """`launch/topology CONFIG --stay`. `config` is the path of a file, TOML text, or a dict of the same keys."""

    def __init__(self, config: str | Path | Mapping[str, Any], folder: Path, *options: str) -> None:
        """`folder` is where it keeps what it sees. Starts it; `wait_until_up` waits for it."""
        #: The run's folder: logs, events, results.
        self.folder = folder / "run"
        path = Path(config) if isinstance(config, Path) or (isinstance(config, str) and "\n" not in config) else None
        if path is None:
            path = folder / "topology.toml"
            path.write_text(config if isinstance(config, str) else to_toml(config), encoding="utf-8")  # type: ignore[arg-type]
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "viommu_actors", "topology", str(path), "--stay", "--json", *options]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            self._process = subprocess.Popen(
                [*command, "--run-dir", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        self._stderr = folder / "stderr"

    def wait_until_up(self) -> None:
        """Until its own verdicts are in. Raises NotRunning."""
        deadline = time.monotonic() + _UP
        while not (self.folder / "results.json").exists():
            if self._process.poll() is not None:
                raise NotRunning(self._stderr.read_text(errors="replace").strip())
            if time.monotonic() > deadline:
                raise NotRunning(f"no verdicts within {_UP:g} s")
            time.sleep(0.02)

    @property
    def results(self) -> Results:
        """Of the topology's own verdicts and I/O."""
        return read_results(self.folder / "results.json")

    def log(self, actor: str) -> str:
        """What an actor has logged: "host", "vm0.guest", "nic0"."""
        return (self.folder / f"{actor}.log").read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """Its processes, and the rogues that are attached. Raises JobFailed, supervise.runs.NoRun."""
        with DoorClient(find_run(self.folder)) as client:
            return client.status()

    def attack(
        self,
        *,
        as_device: str | None = None,
        swap: str | None = None,
        slot: int | None = None,
        model: Literal["nic", "edu"] = "nic",
        attacks: Sequence[str] = (),
        script: str | Path | None = None,
        seconds: float = 30.0,
        repeat: int = 1,
    ) -> RogueResults:
        """Attaches a rogue, has it attack, takes it away: what it got at, as `launch/rogue` tells it.

        It takes over the link of `as_device`, or is plugged in where `swap` stood, or in `slot`, the first free one
        where nothing is said. It plays these attacks, all that apply where none is named, or a script: the path of
        a file, or its text. Raises JobFailed, whose text says why.
        """
        place: Literal["as", "swap", "slot"] = "as" if as_device else "swap" if swap else "slot"
        with DoorClient(find_run(self.folder)) as client:
            added = client.do(DeviceAdd(place=place, device=as_device or swap, slot=slot, model=model))
            device = msgspec.convert(added["device"], ResolvedDevice).name
            try:
                if script is None:
                    result = client.do(Attack(device=device, attacks=tuple(attacks), repeat=repeat))
                else:
                    name, text = _script(script)
                    job = Script(device=device, text=text, name=name, seconds=seconds, repeat=repeat)
                    result = client.do(job)
            finally:
                client.remove(device)
        return msgspec.convert(result, RogueResults)

    def stop(self) -> None:
        """Ends it, as Ctrl-C does; nothing of it is left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_DOWN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def to_toml(config: Mapping[str, Any]) -> str:
    """A topology given as a dict, as a file has it."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in config.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value)  # a string, a number and a truth value are written the same way in both
    raise TypeError(f"no TOML for {value!r:.80}")


def _key(key: str) -> str:
    return json.dumps(str(key))


def _script(script: str | Path) -> tuple[str, str]:
    """(name, text)."""
    if isinstance(script, str) and "\n" in script:
        return "script", script
    path = Path(script)
    return path.name[:64], path.read_text(encoding="utf-8")
