"""A machine with assigned devices: the vIOMMU and its shadows, a container at the other end of each.

With QEMU's shadow the messages are what counts. With the project's own it is what the container holds at every
`shadow` operation:

1. where an invalidation was due, what the guest's tables say;
2. elsewhere what it held before, or what the tables say;
3. what QEMU's container holds, but for what QEMU's own rules (its shadow, run beside) say that QEMU's would hold there.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode
from typing import Final

from msgspec import UNSET

from viommu_actors.hypervisor.qemu_shadow import QemuShadow
from viommu_actors.hypervisor.shadow import Ram, Shadow, ShadowPorts, Shadows
from viommu_actors.memory import Unclaimed
from viommu_actors.replay import transcript as t
from viommu_actors.replay.container import Container, Piece, apart, outside
from viommu_actors.replay.machine import Machine, Observed, pages
from viommu_actors.replay.truth import Due, Truth
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd import is_interrupt
from viommu_actors.vtd.deviations import Quirks

#: Firmware of the recorded machine: read-only for DMA.
ROM: Final = ((0xC_0000, 0xE_0000), (0xE_0000, 0x10_0000), (0xFFFC_0000, 0x1_0000_0000))
_ACCESS: Final = {Access.READ: "r", Access.WRITE: "w", Access.BOTH: "rw"}


def memory_map(ram: list[tuple[int, int]]) -> list[Ram]:
    """What DMA without translation reaches: RAM, and ROM in place of what it covers."""
    pieces = []
    for low, high in ram:
        for first, end in ROM:
            if low <= first and end <= high:
                if low < first:
                    pieces.append(Ram(low, first - low))
                low = end
        if low < high:
            pieces.append(Ram(low, high - low))
    return sorted(pieces + [Ram(first, end - first, Access.READ) for first, end in ROM])


class _Device(ShadowPorts):
    """One assigned device: the ports of its shadow, its container, QEMU's beside it, and what was said."""

    def __init__(self, strict: bool) -> None:
        self.container = Container(strict)
        self.recorded = Container()
        self.before: list[Piece] = []
        self.messages: list[t.Message] = []
        self.bus_master = True

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        target = None if any(first <= gpa < end for first, end in ROM) else gpa
        message = t.Message("map", hex(iova), hex(size), None if target is None else hex(target), _perm(access))
        self._say(message, lambda: self.container.map(Piece(iova, iova + size, target, _ACCESS[access])))

    def unmap(self, iova: int, size: int) -> None:
        self._say(t.Message("unmap", hex(iova), hex(size)), lambda: self.container.unmap(iova, iova + size))

    def _say(self, message: t.Message, act: Callable[[], None]) -> None:
        self.messages.append(message)
        try:
            act()
        except OSError as error:
            message.server_reply = errorcode[error.errno or 0]
            raise

    def record(self, message: t.Message) -> None:
        """Applies a recorded message to QEMU's container; one that the server refused did nothing."""
        if message.type == "device_reset" or message.server_reply is not UNSET:
            return
        first = int(message.iova, 16)
        end = first + int(message.size, 16)
        if message.type == "unmap":
            self.recorded.unmap(first, end)
        else:
            gpa = None if message.gpa is None else int(message.gpa, 16)
            access = "rw" if message.perm is UNSET else message.perm
            self.recorded.map(Piece(first, end, gpa, access))


class AssignedMachine(Machine):
    """`as_qemu` says which shadow, whatever the quirks of the unit."""

    def __init__(self, header: t.Header, quirks: Quirks, as_qemu: bool) -> None:
        self._shadows = Shadows()
        self._due = Due(header.devices)
        super().__init__(header, quirks, self._due)
        self._as_qemu = as_qemu
        ram = memory_map(header.ranges())
        self._rom = [piece for piece in ram if piece.access is Access.READ]
        self._truth = Truth(self.unit, self.memory, ram)
        self._devices: dict[str, _Device] = {}
        #: What QEMU's rules put into QEMU's containers, beside the project's own shadow.
        self._models: dict[str, _Device] = {}
        models = Shadows()
        for name in header.devices:
            device = self._devices[name] = _Device(header.platform.server == "strict")
            qemus = device
            if not as_qemu:
                self._shadows.add(Shadow(self.unit, t.bdf(name), device, self.memory, ram, _unheard))
                qemus = self._models[name] = _Device(header.platform.server == "strict")
            models.add(QemuShadow(self.unit, t.bdf(name), qemus, self.memory, ram, _unheard))
        self._due.listeners = [self._shadows, models]

    def run(self, operation: t.Operation) -> Observed:
        match operation:
            case t.Shadow():
                return self._shadow(operation)
            case t.BusMaster():
                self._devices[operation.bdf].bus_master = operation.on
                return {}
            case t.SystemReset():
                for device in self._devices.values():
                    device.messages.append(t.Message("device_reset"))
                    device.bus_master = False
                self.unit.reset()
                return {}
        return super().run(operation)

    def _shadow(self, operation: t.Shadow) -> Observed:
        device = self._devices[operation.bdf]
        said, device.messages = device.messages, []
        for message in operation.expect:
            device.record(message)
        if self._as_qemu:
            return {"messages": said}
        return {"container": self._astray(operation.bdf, device)}

    def _astray(self, name: str, device: _Device) -> tuple[object, object] | None:
        """Where the container is not as it must be: (expected, held) there, or None."""
        requester, container = t.bdf(name), device.container
        due = self._due.take(name, self.unit)
        for first, end in due:
            held, wanted = container.pieces(first, end), self._truth.pieces(requester, first, end)
            for at, stop in apart(wanted, held):
                return _said(wanted, at, stop), _said(held, at, stop)
        held, recorded = container.pieces(), device.recorded.pieces()
        before, device.before = device.before, held
        for first, end in outside(due, apart(before, held)):
            here, wanted = container.pieces(first, end), self._truth.pieces(requester, first, end)
            for at, stop in apart(wanted, here):
                return _said(wanted, at, stop), _said(here, at, stop)
        model = self._models[name].container
        for first, end in apart(recorded, [_announced(piece) for piece in held]):
            theirs, ours = device.recorded.pieces(first, end), container.pieces(first, end)
            if apart(theirs, model.pieces(first, end)):
                return _said(theirs, first, end), _said(ours, first, end)
            inside = any(low <= first and end <= high for low, high in due)
            if inside and not self._truth.confirms(requester, ours, first):
                return _said(theirs, first, end), _said(ours, first, end)
        return None

    # --- DMA by message

    def dma(self, operation: t.DmaRead | t.DmaWrite | t.Msi, length: int, data: bytes | None) -> Observed:
        """A message: each piece of it goes through the vIOMMU; any refusal is ENODEV, after the good part."""
        address = int(operation.addr, 16)
        requester, access = t.bdf(operation.bdf), Access.READ if data is None else Access.WRITE
        device = self._devices.get(operation.bdf)
        observed: Observed = {"expect": "ok", "reasons": [], "segments": []}
        if device is not None and self._as_qemu:
            held = device.container.at(address)
            observed["container"] = None if held is None else t.Held(_hex(held.gpa), _perm_text(held.access))
        if length > t.MESSAGE_LIMIT:
            return observed | {"expect": "blocked", "errno": "E2BIG"}
        got = b""
        known = True
        refused = device is not None and not device.bus_master
        for iova, count in pages(address, length) if not refused else ():
            piece = None if data is None else data[iova - address : iova - address + count]
            try:
                answer = self._access(requester, iova, count, access, piece)
            except _Board:
                answer, known = b"", False
            refused |= answer is None
            got += answer or b""
        if refused:
            return observed | {"expect": "blocked", "errno": "ENODEV"}
        if not known:
            return {}
        return observed if data is not None else observed | {"expect_data": got.hex()}

    def _access(self, requester: int, iova: int, count: int, access: Access, data: bytes | None) -> bytes | None:
        """What was read; None where it is refused. Raises _Board."""
        if is_interrupt(iova):
            return bytes(count)
        address, reason = self.unit.translate(requester, iova, access)
        if reason is not None:
            return None
        rom = any(piece.base <= address < piece.base + piece.size for piece in self._rom)
        if data is not None and rom:
            return None
        if rom or (not self.memory.claims(address, count) and _BOARD <= address < 1 << 32):
            raise _Board
        try:
            if data is None:
                return self.memory.read(address, count)
            self.memory.write(address, data)
        except Unclaimed:
            return None
        return b""


class _Board(Exception):
    """The target is the recorded board's firmware or one of its devices, of which a transcript says nothing."""


#: Firmware and devices of the board lie from here to 4 GiB.
_BOARD: Final = 0xC000_0000


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


def _perm(access: Access) -> t.Permission:
    return "r" if access is Access.READ else "rw"


def _unheard(line: str) -> None:
    """The log of a shadow: a transcript has none."""


def _announced(piece: Piece) -> Piece:
    """As QEMU announces it: what may be written may be read."""
    return piece._replace(access="rw") if piece.access == "w" else piece


def _perm_text(access: str) -> t.Permission:
    return "r" if access == "r" else "rw"


def _said(pieces: list[Piece], first: int, end: int) -> str:
    """What a container holds in first..end, for a report."""
    for piece in pieces:
        if piece.first < end and first < piece.end:
            part = piece.part(first, end)
            return f"{part.first:#x}-{part.end:#x} -> {_hex(part.gpa) or 'ROM'} {part.access}"
    return f"nothing at {first:#x}-{end:#x}"
