"""A device process whose code is its attacker's: the product's own, and one more command that plays local attacks.

Started in place of `viommu_actors.actors`; whatever a device process does up to that command it does here too. The same
of a virtual switch.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from viommu_actors.actors import __main__ as entry
from viommu_actors.actors.device import DeviceActor
from viommu_actors.actors.vswitch import VswitchActor
from viommu_actors.confine import landlock, seccomp

#: "landlock", "seccomp" or both: what the kernel is to lack.
WITHOUT = "HOSTILE_DEVICE_WITHOUT"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_PTRACE_ATTACH, _PTRACE_DETACH, _PTRACE_PEEKDATA = 16, 17, 2
_CLONE_NEWUSER = 0x1000_0000
_PR_SET_PDEATHSIG = 1


class HostileDevice(DeviceActor):
    def __init__(self, configuration: dict[str, Any]) -> None:
        super().__init__(configuration)
        self._control.register({"misbehave": _misbehave, "import": _import})


class HostileSwitch(VswitchActor):
    def __init__(self, configuration: dict[str, Any]) -> None:
        super().__init__(configuration)
        self._control.register({"misbehave": _misbehave})


def _import(module: str) -> bool:
    """Whether it was new to this process."""
    known = module in sys.modules
    import_module(module)
    return not known


def _misbehave(attack: str, **aim: Any) -> dict[str, Any]:
    """What the attack got, or the error that it met."""
    try:
        return {"got": (LOCAL_ATTACKS | OTHER_ATTACKS)[attack](aim), "error": ""}
    except (OSError, RuntimeError) as error:
        return {"got": None, "error": f"{type(error).__name__}: {error}"}


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(number: int, *arguments: int) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def _open_shared_memory(aim: dict[str, Any]) -> bytes:
    return Path(aim["shared"]).read_bytes()


def _list_shared_memory(aim: dict[str, Any]) -> list[str]:
    return os.listdir("/dev/shm")


def _list_descriptors(aim: dict[str, Any]) -> list[str]:
    return os.listdir(f"/proc/{aim['guest']}/fd")


def _reopen_memory(aim: dict[str, Any]) -> bytes:
    """A memfd has no name, but a process that has it open shows a link to it."""
    with open(f"/proc/{aim['holder']}/fd/{aim['fd']}", "rb", buffering=0) as file:
        return os.pread(file.fileno(), 16, aim["offset"])


def _process_memory(aim: dict[str, Any]) -> bytes:
    with open(f"/proc/{aim['guest']}/mem", "rb", buffering=0) as file:
        return os.pread(file.fileno(), 16, aim["address"])


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _process_vm_readv(aim: dict[str, Any]) -> bytes:
    buffer = ctypes.create_string_buffer(16)
    mine, theirs = _Vector(ctypes.addressof(buffer), 16), _Vector(aim["address"], 16)
    _checked(_libc.process_vm_readv(aim["guest"], ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    return buffer.raw


def _pidfd_getfd(aim: dict[str, Any]) -> bytes:
    pidfd = os.pidfd_open(aim["holder"])
    try:
        fd = _call(438, pidfd, aim["fd"], 0)
    finally:
        os.close(pidfd)
    try:
        return os.pread(fd, 16, aim["offset"])
    finally:
        os.close(fd)


def _ptrace(aim: dict[str, Any]) -> bytes:
    guest = aim["guest"]
    _libc.ptrace.restype = ctypes.c_long
    _checked(_libc.ptrace(_PTRACE_ATTACH, guest, None, None))
    try:
        os.waitpid(guest, 0)
        places = (ctypes.c_void_p(aim["address"] + offset) for offset in (0, 8))
        return b"".join(ctypes.c_long(_libc.ptrace(_PTRACE_PEEKDATA, guest, place, None)) for place in places)
    finally:
        _libc.ptrace(_PTRACE_DETACH, guest, None, None)


def _kill(aim: dict[str, Any]) -> str:
    os.kill(aim["bystander"], signal.SIGCONT)
    return "sent"


def _connect(aim: dict[str, Any]) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(aim["inbox"])
    return "connected"


def _internet(aim: dict[str, Any]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", aim["port"]))
    return "connected"


def _fork(aim: dict[str, Any]) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def _exec(aim: dict[str, Any]) -> str:
    """In a child, where there can be one: this process would not be there any more to tell."""
    program, arguments = "/bin/sh", ["sh", "-c", "exit 0"]
    try:
        pid = os.fork()
    except OSError:
        os.execv(program, arguments)
    if pid == 0:
        try:
            os.execv(program, arguments)
        except OSError as error:
            os._exit(error.errno)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))
    return "executed"


def _write_file(aim: dict[str, Any]) -> str:
    Path(aim["file"]).write_text("was here")
    return "written"


#: Those of a process of the same user on the way to a guest's memory.
LOCAL_ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "open /dev/shm": _open_shared_memory,
    "list /dev/shm": _list_shared_memory,
    "list /proc/PID/fd": _list_descriptors,
    "open /proc/PID/fd": _reopen_memory,
    "/proc/PID/mem": _process_memory,
    "process_vm_readv": _process_vm_readv,
    "pidfd_getfd": _pidfd_getfd,
    "ptrace": _ptrace,
    "kill": _kill,
    "connect to another ipc path": _connect,
    "internet socket": _internet,
    "fork": _fork,
    "exec": _exec,
    "write a file": _write_file,
}


def _signal_by_descriptor(aim: dict[str, Any]) -> str:
    """F_SETOWN: from then on a descriptor sends signals to any process of the user, without kill."""
    fcntl.fcntl(2, fcntl.F_SETOWN, aim["bystander"])
    fcntl.fcntl(2, fcntl.F_SETOWN, 0)
    return "owned"


def _outlive(aim: dict[str, Any]) -> str:
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0))
    return "would outlive its launcher"


def _new_user_namespace(aim: dict[str, Any]) -> str:
    _checked(_libc.unshare(_CLONE_NEWUSER))
    return "is root of its own"


def _share_memory(aim: dict[str, Any]) -> str:
    """System V shared memory: what no file shows, another process of the user can attach."""
    _checked(_libc.shmget(0, 4096, 0o600))
    return "made"


def _queue_of_requests(aim: dict[str, Any]) -> str:
    """io_uring: calls that seccomp would not see."""
    parameters = ctypes.create_string_buffer(120)
    os.close(_call(425, 1, ctypes.addressof(parameters)))
    return "made"


#: What else leads out of a process.
OTHER_ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "signal by descriptor": _signal_by_descriptor,
    "outlive the launcher": _outlive,
    "new user namespace": _new_user_namespace,
    "System V shared memory": _share_memory,
    "io_uring": _queue_of_requests,
    "unix socket": lambda aim: socket.socket(socket.AF_UNIX).close() or "made",
    "memfd": lambda aim: os.close(os.memfd_create("own")) or "made",
    "thread": lambda aim: Thread(target=str).start() or "started",
    "more memory": lambda aim: len(mmap.mmap(-1, 1 << 30)),
    "own executable": lambda aim: os.open("/proc/self/exe", os.O_RDONLY),
    "home directory": lambda aim: os.listdir(Path.home()),
    "working directory": lambda aim: os.listdir("."),
}


def _lack(what: str) -> None:
    def refuse() -> Any:
        raise OSError(errno.ENOSYS, f"no {what} for this test")

    if what == "landlock":
        landlock.abi = refuse
    if what == "seccomp":
        seccomp.probe = refuse


if __name__ == "__main__":
    for what in os.environ.get(WITHOUT, "").split():
        _lack(what)
    entry._ACTORS["device"] = (__name__, HostileDevice.__name__)
    entry._ACTORS["vswitch"] = (__name__, HostileSwitch.__name__)
    entry.main()
