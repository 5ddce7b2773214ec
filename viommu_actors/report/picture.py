"""The topology as a picture: processes as boxes, DMA as arrows from the devices up.

An arrow is `safe` or `UNSAFE` by what was observed in the run, never by what was configured.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from viommu_actors.attacks.catalogue import Target
from viommu_actors.report.canvas import Canvas, fit
from viommu_actors.report.results import Results
from viommu_actors.report.text import Line, Span, Style, line
from viommu_actors.topology.resolve import ResolvedDevice, ResolvedTopology, ResolvedVm

#: A device's column: its arrow stands at ARROW, what is said of it from WORDS on.
COLUMN = 30
ARROW = 3
WORDS = 5
_ROOM = COLUMN - WORDS - 2
_HARM = ("leaked", "corrupted", "delivered")
_LABELS: dict[Style, str] = {"safe": "safe", "unsafe": "UNSAFE", "unknown": "not observed"}

# Rows of a band. A guest's box holds its arrows' heads, its vIOMMU and the device as the guest sees it.
_MEMORY, _TABLES, _VIOMMU, _SEEN, _HYPERVISOR, _GUEST_ROWS = 1, 2, 3, 6, 9, 12
_HOST = _GUEST_ROWS
_HOST_MEMORY, _HOST_TABLES, _OTHER, _INTERRUPTS, _IOMMU, _PORT, _HOST_ROWS = 1, 2, 3, 4, 5, 8, 10
_DEVICE = _HOST + _HOST_ROWS
_DEVICE_ROWS = 5

_INTERRUPT_TARGETS = (Target.HOST_VECTOR, Target.OTHER_DEVICE, Target.BEYOND_TABLE, Target.ABSENT_ENTRY)


def picture(topology: ResolvedTopology, results: Results, width: int = 100) -> list[Line]:
    """Wider topologies than `width` come in several bands, each with the host below it."""
    columns = _columns(topology)
    fits = max(1, (width - 2) // COLUMN)
    drawn: list[Line] = []
    for start in range(0, len(columns), fits):
        drawn += [*_Band(topology, results, columns[start : start + fits]).draw(), ()]
    return drawn + _legend()


_Column = tuple[ResolvedVm | None, ResolvedDevice | None]


def _columns(topology: ResolvedTopology) -> list[_Column]:
    """One for each device beside its VM, one for each VM without any."""
    columns: list[_Column] = []
    for vm in topology.vms:
        columns += [(vm, topology.device(assign.device)) for assign in vm.assign] or [(vm, None)]
    return columns + [(None, device) for device in topology.devices if device.vm is None]


def _legend() -> list[Line]:
    return [
        line("arrows are DMA and interrupts, as observed:"),
        line("  ", Span("safe", "safe"), ": all that the device tried beyond its mappings was stopped"),
        line("  ", Span("UNSAFE", "unsafe"), ": it got at memory, or raised an interrupt, that nobody had given to it"),
        line("  ", Span("not observed", "unknown"), ": nothing was tried, or not all of the proof is there"),
    ]


class _Band:
    """As many columns as fit beside each other."""

    def __init__(self, topology: ResolvedTopology, results: Results, columns: list[_Column]) -> None:
        self._topology = topology
        self._results = results
        self._columns = columns
        self._canvas = Canvas()

    def draw(self) -> list[Line]:
        placed = list(enumerate(self._columns))
        for vm, group in groupby(placed, key=lambda item: item[1][0]):
            members = list(group)
            if vm is not None:
                self._guest(vm, members[0][0] * COLUMN, len(members) * COLUMN)
        self._host(len(placed) * COLUMN)
        for index, (vm, device) in placed:
            if device is not None:
                self._device(vm, device, index * COLUMN)
        if all(vm is None for vm, _ in self._columns):
            return self._canvas.lines()[_HOST:]
        return self._canvas.lines()

    def _guest(self, vm: ResolvedVm, x: int, width: int) -> None:
        canvas = self._canvas
        canvas.box(x, 0, width, _GUEST_ROWS, self._titled(f"{vm.name}: guest", f"{vm.name}.guest"))
        if vm.viommu is not None:
            canvas.box(x + 1, _VIOMMU, width - 2, 3, "vIOMMU")
            canvas.put(x + WORDS, _VIOMMU + 1, self._viommu_mode(vm))
        elif vm.assign:
            canvas.put(x + WORDS, _VIOMMU + 1, "no vIOMMU")
        else:
            self._victim(vm, x)
        canvas.put(x, _HYPERVISOR, "├" + "─" * (width - 2) + "┤")
        canvas.put(x + 4, _HYPERVISOR, f" {self._titled('hypervisor', f'{vm.name}.hypervisor')} ", "title")
        if vm.assign:
            in_use = vm.viommu is not None and self._topology.setting(vm.assign[0].device) == "strict"
            canvas.put(x + WORDS, _HYPERVISOR + 1, "shadow tables, by VFIO" if in_use else "maps all RAM, by VFIO")

    def _victim(self, vm: ResolvedVm, x: int) -> None:
        """In a guest without devices: how it fared against those of the only other one."""
        self._canvas.put(x + ARROW, _MEMORY, "memory")
        if len(self._topology.vms) != 2:
            return
        rogues = [each for each in self._topology.devices if self._tried(each, Target.OTHER_GUEST)]
        for row, device in enumerate(rogues[: _HYPERVISOR - _TABLES]):
            state = self._state(device, Target.OTHER_GUEST)
            words = fit(f"from {device.name}: {_LABELS[state]}", _ROOM)
            self._canvas.put(x + WORDS, _TABLES + row, words, state)

    def _viommu_mode(self, vm: ResolvedVm) -> str:
        if not vm.assign:
            return "no device behind it"
        mode = self._topology.setting(vm.assign[0].device)
        return {"none": "left off", "strict": "translates, strict", "passthrough": "lets devices pass"}[mode]

    def _host(self, width: int) -> None:
        canvas = self._canvas
        canvas.box(0, _HOST, width, _HOST_ROWS, self._titled("host", "host"))
        canvas.box(1, _HOST + _IOMMU, width - 2, 3, "IOMMU")
        remaps = self._topology.host.iommu.intremap
        canvas.put(WORDS, _HOST + _IOMMU + 1, "remaps interrupts too" if remaps else "remaps no interrupts")

    def _device(self, vm: ResolvedVm | None, device: ResolvedDevice, x: int) -> None:
        canvas = self._canvas
        own = Target.HOST_MEMORY if vm is None else Target.GUEST_MEMORY
        state = self._state(device, own)
        self._box_of(device, x)
        if vm is not None:
            address = next(assign.bdf for assign in vm.assign if assign.device == device.name)
            canvas.box(x + 1, _SEEN, COLUMN - 2, 3, dashed=True)
            canvas.put(x + WORDS, _SEEN + 1, fit(f"{address} {device.name}", _ROOM))
        top = _MEMORY if vm is not None else _HOST + _HOST_MEMORY
        canvas.vertical(x + ARROW, top, _DEVICE - 1, state)
        canvas.put(x + ARROW, _DEVICE, "┴", state)
        self._head(x, top, "memory" if vm is not None else "host memory", state)
        in_guest = vm is not None and self._topology.setting(device.name) != "none"
        self._branch(device, "page tables", (Target.PAGE_TABLES,), x, _TABLES if in_guest else _HOST + _HOST_TABLES)
        if vm is not None:
            self._branch(device, "host memory", (Target.HOST_MEMORY,), x, _HOST + _HOST_MEMORY)
        self._branch(device, "other guest", (Target.OTHER_GUEST,), x, _HOST + _OTHER)
        self._branch(device, "interrupts", _INTERRUPT_TARGETS, x, _HOST + _INTERRUPTS)
        canvas.put(x + WORDS, _HOST + _PORT, f"root port {device.slot}")

    def _box_of(self, device: ResolvedDevice, x: int) -> None:
        canvas = self._canvas
        canvas.box(x + 1, _DEVICE, COLUMN - 2, _DEVICE_ROWS)
        said = (
            fit(f"{device.name}: {device.model} at {device.bdf}", COLUMN - 6),
            self._titled("device", device.name),
            fit("rogue: " + " ".join(device.rogue), COLUMN - 6) if device.rogue else "honest",
        )
        for row, words in enumerate(said, start=1):
            canvas.put(x + ARROW, _DEVICE + row, words, "title" if row == 1 else "")

    def _head(self, x: int, y: int, what: str, state: Style) -> None:
        self._canvas.put(x + ARROW, y, f"▲ {what}: {_LABELS[state]}", state)

    def _branch(self, device: ResolvedDevice, what: str, targets: tuple[Target, ...], x: int, y: int) -> None:
        if self._tried(device, *targets):
            state = self._state(device, *targets)
            self._canvas.put(x + ARROW, y, f"├▶ {what}: {_LABELS[state]}", state)

    def _tried(self, device: ResolvedDevice, *targets: Target) -> bool:
        return any(True for _ in self._observed(device, targets))

    def _state(self, device: ResolvedDevice, *targets: Target) -> Style:
        observed = set(self._observed(device, targets))
        if observed & set(_HARM):
            return "unsafe"
        return "safe" if observed and observed <= {"blocked", "redirected"} else "unknown"

    def _observed(self, device: ResolvedDevice, targets: tuple[Target, ...]) -> Iterable[str]:
        return (
            verdict.observed
            for verdict in self._results.verdicts
            if verdict.device == device.name and verdict.target in targets
        )

    def _titled(self, title: str, actor: str) -> str:
        pid = next((process.pid for process in self._results.processes if process.name == actor), None)
        return title if pid is None else f"{title}, pid {pid}"
