"""A user's rogue on an endpoint: its script, its port, and what its driver sees of it."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from typing import Any

from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.rogue import Rogue, Targets

_LINES_LOGGED = 1000
_REPORTS = 64
_LONGEST = 200


class Script:
    """Runs scripts on an endpoint; `turn` is one wake of the device's loop, which goes on while a script waits."""

    def __init__(self, endpoint: Endpoint, turn: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._turn = turn
        self._running = False
        self._logged = 0
        self._reports: list[str] = []

    def run(self, text: str, name: str, targets: dict[str, Any], seed: int) -> dict[str, Any]:
        """Runs the one rogue that the script defines, to its end: what it reported, and the error that ended it.

        Raises ValueError while another runs.
        """
        if self._running:
            raise ValueError("a script is running already")
        self._running = True
        self._logged = 0
        self._reports = []
        error = ""
        try:
            rogue = _rogue_of(text, name)
            rogue._port = self
            rogue.targets = Targets(**targets)
            rogue.random = random.Random(seed)
            # From here on its driver sees what the rogue lets it see.
            self._endpoint.interposer = _Hooks(rogue, self.log)
            rogue.run()
        except BaseException as problem:  # whatever ends a script, it ends the script alone
            error = _words(problem, name)
        finally:
            self._running = False
        return {"reports": self._reports, "error": error}

    # --- the rogue's port

    @property
    def requester(self) -> int:
        return self._endpoint.requester

    def read(self, requester: int, address: int, length: int, at: int) -> bytes | None:
        transfer = self._endpoint.engine.read(requester, address, length, self._endpoint.max_read, at)
        while transfer.waiting:
            self._turn()
        return transfer.data

    def write(self, requester: int, address: int, data: bytes, at: int) -> None:
        self._endpoint.engine.write(requester, address, data, self._endpoint.max_payload, at)

    def log(self, text: str) -> None:
        self._logged += 1
        if self._logged <= _LINES_LOGGED:
            self._endpoint.log(f"script: {text[:_LONGEST]}")

    def report(self, text: str) -> None:
        if len(self._reports) < _REPORTS:
            self._reports.append(text[:_LONGEST])


class _Hooks:
    """The hooks of a rogue; where one fails, its driver sees the honest device."""

    def __init__(self, rogue: Rogue, log: Callable[[str], None]) -> None:
        self._rogue = rogue
        self._log = log

    def read(self, bar: int, offset: int, size: int) -> int | None:
        try:
            value = self._rogue.on_mmio_read(bar, offset, size)
        except Exception as problem:
            self._log(f"on_mmio_read: {problem!r}")
            return None
        return value if type(value) is int else None

    def write(self, bar: int, offset: int, size: int, value: int) -> bool:
        try:
            return bool(self._rogue.on_mmio_write(bar, offset, size, value))
        except Exception as problem:
            self._log(f"on_mmio_write: {problem!r}")
            return False


def _rogue_of(text: str, name: str) -> Rogue:
    """The one rogue that a script defines."""
    namespace: dict[str, Any] = {"__name__": "rogue_script", "__file__": name}
    exec(compile(text, name, "exec"), namespace)
    kinds = [each for each in namespace.values() if isinstance(each, type) and issubclass(each, Rogue)]
    own = [kind for kind in kinds if kind.__module__ == "rogue_script"]
    leaves = [kind for kind in own if not any(other is not kind and issubclass(other, kind) for other in own)]
    if len(leaves) != 1:
        raise TypeError(f"a script defines one subclass of viommu_actors.rogue.Rogue, this one {len(leaves)}")
    return leaves[0]()


def _words(problem: BaseException, name: str) -> str:
    """`my_rogue.py, line 3: ValueError: …`, where the script is to blame for it."""
    steps = traceback.walk_tb(problem.__traceback__)
    lines: list[int | None] = [line for frame, line in steps if frame.f_code.co_filename == name]
    if isinstance(problem, SyntaxError) and problem.filename == name:
        lines = [problem.lineno]
    try:
        said = f"{type(problem).__name__}: {problem}"
    except Exception:
        said = type(problem).__name__
    return f"{name}, line {lines[-1]}: {said}"[:1000] if lines else f"{name}: {said}"[:1000]
