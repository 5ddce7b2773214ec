"""Untrusted means untrusted: what a device process can do on the machine that it runs on."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.topologies import hostile_device
from tests.topologies.launcher import ROOT, SMALL
from viommu_actors.confine.sandbox import lacking
from viommu_actors.report.results import Results
from viommu_actors.supervise import process
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

#: Where a guest keeps nothing: in the page of real mode's interrupt vectors.
_OFFSET = 0x800
_BY_PTRACE = frozenset(
    ["list /proc/PID/fd", "open /proc/PID/fd", "/proc/PID/mem", "process_vm_readv", "pidfd_getfd", "ptrace"]
)


@dataclass
class Siege:
    """A running topology whose device turned hostile, and a canary in its guest's memory."""

    supervisor: Supervisor
    scenario: Scenario
    memory: int
    canary: bytes
    aim: dict[str, Any]

    def play(self, attacks: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            attack: self.supervisor.command("nic0", "misbehave", attack=attack, **self.aim) for attack in attacks
        }

    def results(self) -> Results:
        return self.scenario.results()

    def leaked(self, answers: dict[str, dict[str, Any]]) -> set[str]:
        """The attacks that brought the canary home."""
        return {attack for attack, answer in answers.items() if answer["got"] == self.canary}

    def assert_unharmed(self) -> None:
        """The guest's memory is as it was, its device still works, and both ends of every wire agree."""
        assert os.pread(self.memory, 16, _OFFSET) == self.canary
        assert self.supervisor.command("vm0.guest", "io", bdf="00:03.0", operations=4)["verified"]
        assert self.supervisor.reconcile() == []


@contextmanager
def besieged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sandbox: str = "auto", without: str = ""
) -> Iterator[Siege]:
    """The small topology, booted and worked, with a canary and what an attacker would give much to know."""
    monkeypatch.setattr(process, "PROGRAM", ("-m", hostile_device.__name__))
    monkeypatch.setenv(hostile_device.WITHOUT, without)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    topology = resolve(parse(f'sandbox = "{sandbox}"\n{SMALL}'))
    run, plan = RunFolder(topology, folder / "run"), make_plan(topology)
    [guest] = [actor for actor in plan.actors if actor.role == "guest"]
    [host] = [actor for actor in plan.actors if actor.role == "host"]
    memory = os.dup(guest.configuration["ram"][0]["fd"])
    shared = Path(f"/dev/shm/viommu-test-{secrets.token_hex(8)}")
    bystander = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with Supervisor(plan, run) as supervisor, socket.create_server(("127.0.0.1", 0)) as server:
            scenario = Scenario(topology, plan, supervisor, lambda _: None)
            scenario.run()
            canary = secrets.token_bytes(16)
            os.pwrite(memory, canary, _OFFSET)
            shared.write_bytes(canary)
            pid = supervisor.actors["vm0.guest"].pid
            aim = {
                "shared": str(shared),
                "guest": pid,
                "address": _address_of_memory(pid) + _OFFSET,
                "holder": os.getpid(),
                "fd": memory,
                "offset": _OFFSET,
                "bystander": bystander.pid,
                "inbox": "\0" + host.inbox.address.removeprefix("ipc://@"),
                "port": server.getsockname()[1],
                "file": str(folder / "written"),
            }
            yield Siege(supervisor, scenario, memory, canary, aim)
            assert bystander.poll() is None
    finally:
        run.close()
        os.close(memory)
        shared.unlink(missing_ok=True)
        bystander.communicate()


def _address_of_memory(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:vm0-ram" in line]
    return int(line.partition("-")[0], 16)


def _succeeded(answers: dict[str, dict[str, Any]]) -> set[str]:
    return {attack for attack, answer in answers.items() if answer["got"] is not None}


def _full() -> None:
    if reason := lacking():
        pytest.skip(f"no full sandbox here: {reason}")


def test_no_local_attack_of_a_device_gets_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full()
    with besieged(tmp_path, monkeypatch, "require") as siege:
        answers = siege.play(hostile_device.LOCAL_ATTACKS)
        assert len(answers) == 14
        assert _succeeded(answers) == set()
        assert {answer["error"].partition(":")[0] for answer in answers.values()} == {"PermissionError"}
        siege.assert_unharmed()
        assert not (tmp_path / "written").exists()
        [nic] = [each for each in siege.results().processes if each.role == "device"]
        assert nic.sandbox == "full"


def test_without_a_sandbox_all_of_them_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    with besieged(tmp_path, monkeypatch, "off") as siege:
        answers = siege.play(hostile_device.LOCAL_ATTACKS)
        expected = set(hostile_device.LOCAL_ATTACKS)
        yama = Path("/proc/sys/kernel/yama/ptrace_scope")
        if yama.exists() and yama.read_text().strip() != "0" and os.getuid() != 0:
            expected -= _BY_PTRACE
        assert _succeeded(answers) == expected, answers
        memory = {"open /dev/shm", "open /proc/PID/fd", "/proc/PID/mem", "process_vm_readv", "pidfd_getfd", "ptrace"}
        assert siege.leaked(answers) == memory & expected
        [nic] = [each for each in siege.results().processes if each.role == "device"]
        assert (nic.sandbox, nic.sandbox_detail) == ("none", 'sandbox = "off"')
