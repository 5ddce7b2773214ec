"""Untrusted means untrusted: what a device process, or a virtual switch, can do on the machine that it runs on."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.topologies import hostile_device
from tests.topologies.launcher import ROOT, SMALL, write
from viommu_actors.__main__ import main
from viommu_actors.confine.sandbox import lacking
from viommu_actors.report.results import Results
from viommu_actors.supervise import process
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import make_plan
from viommu_actors.supervise.scenario import Scenario
from viommu_actors.supervise.supervisor import ActorDied, Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve

pytestmark = pytest.mark.topology

#: Where a guest keeps nothing: in the page of real mode's interrupt vectors.
_OFFSET = 0x800
_BY_PTRACE = frozenset(
    ["list /proc/PID/fd", "open /proc/PID/fd", "/proc/PID/mem", "process_vm_readv", "pidfd_getfd", "ptrace"]
)
#: The guest has a card of a virtual switch, too.
_SWITCHED = f"""
{SMALL}
[[vm.virtio_net]]
name = "vnet0"
vswitch = "ovs"
operations = 0

[[vswitch]]
name = "ovs"
"""


@dataclass
class Siege:
    """A running topology whose device turned hostile, or switch, and a canary in its guest's memory."""

    supervisor: Supervisor
    scenario: Scenario
    memory: int
    canary: bytes
    aim: dict[str, Any]

    def play(self, attacks: dict[str, Any], attacker: str = "nic0") -> dict[str, dict[str, Any]]:
        return {
            attack: self.supervisor.command(attacker, "misbehave", attack=attack, **self.aim) for attack in attacks
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
    folder: Path, monkeypatch: pytest.MonkeyPatch, sandbox: str = "auto", without: str = "", text: str = SMALL
) -> Iterator[Siege]:
    """The small topology, booted and worked, with a canary and what an attacker would give much to know."""
    monkeypatch.setattr(process, "PROGRAM", ("-m", hostile_device.__name__))
    monkeypatch.setenv(hostile_device.WITHOUT, without)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    topology = resolve(parse(f'sandbox = "{sandbox}"\n{text}'))
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


def test_nothing_else_leads_out_of_a_device_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full()
    with besieged(tmp_path, monkeypatch) as siege:
        answers = siege.play(hostile_device.OTHER_ATTACKS)
        assert _succeeded(answers) == set(), answers
        siege.assert_unharmed()


def test_a_confined_device_still_imports_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own, with shared objects and without, as the script of somebody's rogue may ask for them."""
    _full()
    with besieged(tmp_path, monkeypatch) as siege:
        for module in ("colorsys", "_lsprof", "statistics"):
            assert siege.supervisor.command("nic0", "import", module=module), module


@pytest.mark.parametrize(("without", "level"), [("landlock", "seccomp"), ("seccomp", "landlock")])
def test_the_half_that_is_there_keeps_the_guests_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, level: str
) -> None:
    _full()
    with besieged(tmp_path, monkeypatch, without=without) as siege:
        answers = siege.play(hostile_device.LOCAL_ATTACKS)
        assert siege.leaked(answers) == set()
        if level == "seccomp":
            assert _succeeded(answers) == set(), answers
        siege.assert_unharmed()
        [nic] = [each for each in siege.results().processes if each.role == "device"]
        assert nic.sandbox == level and f"no {without} for this test" in nic.sandbox_detail


def test_a_device_that_cannot_confine_itself_as_required_never_serves_its_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(ActorDied, match=r'nic0 .*Unconfined: sandbox = "require": no landlock for this test'),
        besieged(tmp_path, monkeypatch, "require", without="landlock"),
    ):
        pass


@pytest.mark.parametrize("command", ["topology", "latency"])
def test_what_the_kernel_cannot_give_is_refused_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("viommu_actors.supervise.confined.lacking", lambda: "this kernel has no Landlock")
    config = write(tmp_path, f'sandbox = "require"\n{SMALL}')
    assert main([command, str(config), "--run-dir", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    told = '"require" cannot be met: this kernel has no Landlock; take "auto", or a kernel that has it'
    assert (captured.out, captured.err) == ("", f"{config}: sandbox: {told}\n")
    assert not (tmp_path / "run").exists()


def test_what_a_device_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one thread is under the filter, without privileges; its descriptors are those that it serves."""
    _full()
    with besieged(tmp_path, monkeypatch) as siege:
        pid = siege.supervisor.actors["nic0"].pid
        [thread] = [*Path(f"/proc/{pid}/task").iterdir()]
        _assert_confined(thread)
        links = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert links.pop(0) == os.devnull
        assert links.pop(1) == links.pop(2) == str(tmp_path / "run" / "nic0.log")
        kinds = Counter(link.partition(":")[0] for link in links.values())
        assert kinds.pop("pipe") == 1, "the lifeline"
        assert kinds.keys() == {"socket", "anon_inode"}
        assert kinds["socket"] == 4, "two listeners, each with the one peer that it has"


def test_a_virtual_switch_is_confined_as_a_device_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full()
    with besieged(tmp_path, monkeypatch, "require", text=_SWITCHED) as siege:
        answers = siege.play(hostile_device.LOCAL_ATTACKS | hostile_device.OTHER_ATTACKS, "ovs")
        assert len(answers) == 26
        assert _succeeded(answers) == set(), answers
        siege.assert_unharmed()
        assert not (tmp_path / "written").exists()
        [switch] = [each for each in siege.results().processes if each.name == "ovs"]
        assert (switch.role, switch.sandbox) == ("app", "full")
        pid = switch.pid
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) == 3, "Python's, and ZeroMQ's reaper and I/O"
        for thread in threads:
            _assert_confined(thread)
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert not [link for link in links if "memfd" in link]
        assert sum(link.startswith("socket") for link in links) == 4, "inbox and port, each with the one peer it has"


def _assert_confined(thread: Path) -> None:
    """Under the filter, without privileges."""
    lines = (thread / "status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert {int(status[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert os.getuid() != 0 or int(status["CapBnd"], 16) == 0
