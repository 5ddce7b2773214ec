"""A QEMU process under qtest: memory, MMIO and port accesses by text lines, trace events from its log.

No guest runs: the firmware halts, and -icount lets virtual time jump to the next timer.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PROGRAM: Final = "qemu-system-x86_64"
#: Seconds for QEMU to connect, and to answer one command.
PATIENCE: Final = 20.0
#: 64 KiB that end in the reset vector: cli, hlt, and back to the hlt.
_FIRMWARE_SIZE: Final = 0x1_0000
_RESET_VECTOR: Final = 0xFFF0
_HALT: Final = bytes.fromhex("faf4ebfd")
_TRACED: Final = (
    "vtd_dmar_translate",
    "vtd_dmar_fault",
    "vtd_fault_disabled",
    "vtd_irq_generate",
    "vtd_ir_remap",
    "apic_deliver_irq",
)


class QemuError(Exception):
    """QEMU could not be started, refused a command or died; the text says what it printed."""


def version() -> tuple[int, int, int] | None:
    """Of the installed QEMU; None without one."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=PATIENCE).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


class Qemu:
    """A context manager. `arguments` are the machine's devices and memory."""

    def __init__(self, arguments: list[str]) -> None:
        """Raises QemuError."""
        if shutil.which(PROGRAM) is None:
            raise QemuError(f"{PROGRAM} is missing: apt-get install qemu-system-x86")
        self._folder = tempfile.TemporaryDirectory(prefix="viommu-qtest-")
        folder = Path(self._folder.name)
        self._log = folder / "log"
        self._read = 0
        (folder / "firmware").write_bytes(_HALT.rjust(_RESET_VECTOR + len(_HALT), b"\0").ljust(_FIRMWARE_SIZE, b"\0"))
        self._errors = (folder / "errors").open("w+b")
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(folder / "qtest"))
            listener.listen(1)
            listener.settimeout(0.1)
            self._process = subprocess.Popen(
                [
                    *(PROGRAM, "-accel", "tcg", "-icount", "shift=0,sleep=off", "-nodefaults", "-display", "none"),
                    *("-bios", str(folder / "firmware"), "-D", str(self._log), "-qtest-log", "/dev/null"),
                    *("-qtest", f"unix:{folder / 'qtest'}"),
                    *(word for event in _TRACED for word in ("-trace", event)),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
            )
            self._socket = self._accept(listener)
        except BaseException:
            self._clean()
            raise
        finally:
            listener.close()
        self._socket.settimeout(PATIENCE)
        self._buffer = b""

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(int(PATIENCE / 0.1)):
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise QemuError(f"QEMU ended at once: {self._complaints()}") from None
        raise QemuError("QEMU did not connect to its qtest socket")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and removes what it left."""
        self._socket.close()
        self._clean()

    def _clean(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
        self._errors.close()
        self._folder.cleanup()

    def _complaints(self) -> str:
        self._errors.seek(0)
        return self._errors.read(2000).decode(errors="replace").strip() or "no message"

    # --- commands

    def command(self, text: str) -> str:
        """What follows OK. Raises QemuError."""
        try:
            self._socket.sendall(text.encode() + b"\n")
            while True:
                while b"\n" not in self._buffer:
                    received = self._socket.recv(1 << 16)
                    if not received:
                        raise ConnectionResetError("closed")
                    self._buffer += received
                line, _, self._buffer = self._buffer.partition(b"\n")
                if not line.startswith(b"IRQ"):
                    break
        except OSError as error:
            raise QemuError(f"{text[:60]}: {error}: {self._complaints()}") from None
        answer = line.decode()
        if not answer.startswith("OK"):
            raise QemuError(f"{text[:60]}: {answer}")
        return answer[2:].strip()

    def read(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.command(f"read {address:#x} {length:#x}")[2:])

    def write(self, address: int, data: bytes) -> None:
        self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def read_register(self, address: int, size: int) -> int:
        return int(self.command(f"read{_SUFFIX[size]} {address:#x}"), 16)

    def write_register(self, address: int, size: int, value: int) -> None:
        self.command(f"write{_SUFFIX[size]} {address:#x} {value:#x}")

    def port_in(self, port: int) -> int:
        """32 bits."""
        return int(self.command(f"inl {port:#x}"), 16)

    def port_out(self, port: int, value: int) -> None:
        """32 bits."""
        self.command(f"outl {port:#x} {value:#x}")

    def events(self) -> list[str]:
        """Trace lines since the last time."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()


_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}
