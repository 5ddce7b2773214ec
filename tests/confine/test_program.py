"""The seccomp program says what the policy says, whatever it is asked."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import termios
from types import ModuleType

import pytest

from tests.confine.bpf import run
from tests.judges import require_module
from viommu_actors.confine.policy import policy
from viommu_actors.confine.program import ARCHITECTURES, encode, program
from viommu_actors.spec import seccomp, syscalls
from viommu_actors.spec.privileges import PR_CAPBSET_DROP, PR_SET_NAME

PID, THREAD, STRANGER = 1000, 1001, 1
_ALLOWED = seccomp.RET_ALLOW
_EPERM = seccomp.RET_ERRNO | errno.EPERM
_ENOSYS = seccomp.RET_ERRNO | errno.ENOSYS

MACHINES = pytest.mark.parametrize("machine", sorted(ARCHITECTURES))


def _ask(machine: str, call: str | int, *arguments: int, files: bool = True) -> int:
    architecture = ARCHITECTURES[machine]
    made = program(policy([PID, THREAD], files), architecture)
    number = architecture.numbers[call] if isinstance(call, str) else call
    return run(made, architecture.audit, number, arguments)[0]


@MACHINES
def test_every_number_is_answered_as_the_policy_says(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    rules = policy([PID, THREAD], files=True)
    made = program(rules, architecture)
    assert set(rules) <= set(syscalls.X86_64), "which has every call that there is elsewhere"
    names = {number: name for name, number in architecture.numbers.items()}
    for number in range(syscalls.NEWEST + 200):
        answer, looked = run(made, architecture.audit, number)
        name = names.get(number)
        if name not in rules:
            assert answer == (_EPERM if number <= syscalls.NEWEST else _ENOSYS), number
        elif not rules[name]:
            assert answer == _ALLOWED, name
            # So the kernel keeps the answer, and the hot path does not run the program.
            assert looked == {seccomp.DATA_ARCH, seccomp.DATA_NUMBER}


@MACHINES
def test_what_leads_out_of_the_process_is_refused(machine: str) -> None:
    """By name, from the other side: these numbers are nobody's but the kernel's to know."""
    x86 = {"socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56, "fork": 57}
    x86 |= {"vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setuid": 105, "mount": 165, "tkill": 200}
    x86 |= {"unshare": 272, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "seccomp": 317}
    x86 |= {"memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323, "name_to_handle_at": 303}
    x86 |= {"open_by_handle_at": 304}
    arm = {"socket": 198, "connect": 203, "bind": 200, "listen": 201, "socketpair": 199, "clone": 220, "execve": 221}
    arm |= {"kill": 129, "ptrace": 117, "setuid": 146, "mount": 40, "tkill": 130, "unshare": 97, "setns": 268}
    arm |= {"process_vm_readv": 270, "process_vm_writev": 271, "seccomp": 277, "memfd_create": 279, "bpf": 280}
    arm |= {"execveat": 281, "userfaultfd": 282, "name_to_handle_at": 264, "open_by_handle_at": 265}
    both = {"pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "pidfd_open": 434, "clone3": 435}
    both |= {"openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442}
    for name, number in (both | (x86 if machine == "x86_64" else arm)).items():
        assert _ask(machine, number) == _EPERM, name


@MACHINES
def test_another_architectures_calls_are_refused(machine: str) -> None:
    made = program(policy([PID], files=True), ARCHITECTURES[machine])
    audit_arch_i386 = 0x4000_0003
    for number in range(500):
        assert run(made, audit_arch_i386, number)[0] == _EPERM
    x32 = 0x4000_0000
    assert run(made, ARCHITECTURES[machine].audit, x32 | 59)[0] == _ENOSYS


@MACHINES
def test_arguments_are_looked_at(machine: str) -> None:
    def allowed(call: str, *arguments: int) -> bool:
        return _ask(machine, call, *arguments) == _ALLOWED

    assert allowed("fcntl", 3, fcntl.F_SETFL, os.O_NONBLOCK)
    assert not allowed("fcntl", 3, fcntl.F_SETOWN, STRANGER)
    assert not allowed("fcntl", 3, fcntl.F_SETSIG, 9)
    assert not allowed("fcntl", 3, fcntl.F_NOTIFY)
    assert allowed("ioctl", 3, termios.FIONBIO)
    assert not allowed("ioctl", 3, termios.TIOCSTI)
    assert allowed("setsockopt", 3, socket.SOL_SOCKET) and not allowed("setsockopt", 3, socket.IPPROTO_IP)
    assert allowed("tgkill", PID, THREAD, 6) and not allowed("tgkill", STRANGER, STRANGER, 9)
    assert allowed("sched_setscheduler", THREAD)
    assert not allowed("sched_setscheduler", STRANGER) and not allowed("sched_setscheduler", PID)
    assert allowed("prctl", PR_SET_NAME) and not allowed("prctl", PR_CAPBSET_DROP)
    assert allowed("prlimit64", 0, 7, 0, 0x7FFF) and not allowed("prlimit64", STRANGER, 7, 0, 0x7FFF)
    assert not allowed("prlimit64", 0, 7, 0x7FFF, 0) and not allowed("prlimit64", 0, 7, 1 << 32, 0)
    # The kernel takes an int: what stands above its 32 bits is nothing.
    assert allowed("fcntl", 3, fcntl.F_GETFL | 1 << 32) and not allowed("fcntl", 3, fcntl.F_SETOWN | 1 << 32)


@MACHINES
def test_files_are_opened_for_reading_alone_and_only_under_landlock(machine: str) -> None:
    reading = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
    assert _ask(machine, "openat", -100, 0, reading) == _ALLOWED
    assert _ask(machine, "openat", -100, 0, reading, files=False) == _EPERM
    for more in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_PATH, os.O_TMPFILE):
        assert _ask(machine, "openat", -100, 0, reading | more) == _EPERM, more


@MACHINES
def test_the_kernel_would_take_it(machine: str) -> None:
    made = program(policy([PID, THREAD], files=True), ARCHITECTURES[machine])
    assert len(made) < seccomp.MAX_INSTRUCTIONS and len(encode(made)) == 8 * len(made)
    for at, each in enumerate(made):
        assert 0 <= each.if_true < 256 and 0 <= each.if_false < 256
        if each.code != seccomp.RETURN:
            assert at + 1 + max(each.if_true, each.if_false) < len(made)
    assert made[-1].code == seccomp.RETURN


@pytest.fixture
def libseccomp() -> ModuleType:
    return require_module("pyseccomp")


@MACHINES
def test_the_numbers_are_those_that_libseccomp_knows(machine: str, libseccomp: ModuleType) -> None:
    architecture = ARCHITECTURES[machine]
    for name, number in architecture.numbers.items():
        known = libseccomp.resolve_syscall(architecture.audit, name)
        if known != -1:  # newer than the library
            assert known == number, name
    for name in policy([PID], files=True):
        if libseccomp.resolve_syscall(architecture.audit, name) >= 0:
            assert name in architecture.numbers, name
