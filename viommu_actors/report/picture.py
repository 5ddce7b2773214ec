"""The topology as a picture: processes as boxes, DMA as arrows from the devices up.

An arrow is `safe` or `UNSAFE` by what was observed in the run, never by what was configured.
"""

from __future__ import annotations

from itertools import groupby

from viommu_actors.report.canvas import Canvas, fit
from viommu_actors.report.results import Results
from viommu_actors.report.scene import (
    LABELS,
    LEGEND,
    Arrow,
    Column,
    Machine,
    Scene,
    What,
    component_title,
    manners,
    place_behind,
    seen_as,
)
from viommu_actors.report.text import Line, Span, line
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology, ResolvedVm

#: A device's column: its arrow stands at ARROW, what is said of it from WORDS on.
COLUMN = 30
ARROW = 3
WORDS = 5
_ROOM = COLUMN - WORDS - 2

# Rows of a band. A guest's box holds its arrows' heads, its vIOMMU and the device as the guest sees it.
_MEMORY, _TABLES, _VIOMMU, _SEEN, _HYPERVISOR, _GUEST_ROWS = 1, 2, 3, 6, 9, 12
_HOST = _GUEST_ROWS
_HOST_MEMORY, _HOST_TABLES, _OTHER, _INTERRUPTS, _IOMMU, _PORT, _HOST_ROWS = 1, 2, 3, 4, 5, 8, 10
_COMPONENT = _HOST + _HOST_ROWS
_COMPONENT_ROWS = 3
_DEVICE_ROWS = 5
#: Above a guest's kernel, where it has applications.
_USER_ROWS, _APP_ROWS = 4, 3
#: Where an arrow ends.
_HEADS: dict[tuple[Machine, What], int] = {
    ("guest", "memory"): _MEMORY,
    ("guest", "page tables"): _TABLES,
    ("host", "host memory"): _HOST + _HOST_MEMORY,
    ("host", "page tables"): _HOST + _HOST_TABLES,
    ("host", "other guest"): _HOST + _OTHER,
    ("host", "interrupts"): _HOST + _INTERRUPTS,
}


def picture(topology: ResolvedTopology, results: Results, width: int = 100) -> list[Line]:
    """Wider topologies than `width` come in several bands, each with the host below it."""
    scene = Scene(topology, results)
    columns = scene.columns()
    fits = max(1, (width - 2) // COLUMN)
    drawn: list[Line] = []
    for start in range(0, len(columns), fits):
        drawn += [*_Band(scene, columns[start : start + fits]).draw(), ()]
    return drawn + _legend()


def _legend() -> list[Line]:
    meanings = [line("  ", Span(LABELS[style], style), f": {meaning}") for style, meaning in LEGEND.items()]
    return [line("arrows are DMA and interrupts, as observed:"), *meanings]


class _Band:
    """As many columns as fit beside each other."""

    def __init__(self, scene: Scene, columns: list[Column]) -> None:
        self._scene = scene
        self._columns = columns
        self._canvas = Canvas()
        self._device_row = _COMPONENT + (_COMPONENT_ROWS if scene.topology.components else 0)

    def draw(self) -> list[Line]:
        placed = list(enumerate(self._columns))
        for vm, group in groupby(placed, key=lambda item: item[1][0]):
            members = list(group)
            if vm is not None:
                self._guest(vm, members[0][0] * COLUMN, len(members) * COLUMN)
        self._host(len(placed) * COLUMN)
        for (vm, app), group in groupby(placed, key=lambda item: (item[1][0], item[1][1] and item[1][1].app)):
            members = list(group)
            if vm is not None and app is not None:
                self._app(vm, [(device, index * COLUMN) for index, (_, device) in members if device is not None])
        for behind, group in groupby(placed, key=lambda item: item[1][1] and item[1][1].behind):
            members = list(group)
            if behind is not None:
                self._component(behind, members[0][0] * COLUMN, len(members) * COLUMN)
        for index, (vm, device) in placed:
            if device is not None:
                self._device(vm, device, index * COLUMN)
        return self._canvas.lines()

    def _guest(self, vm: ResolvedVm, x: int, width: int) -> None:
        canvas = self._canvas
        title = self._scene.guest(vm)
        if vm.apps:
            canvas.box(x, -_USER_ROWS, width, _USER_ROWS + _GUEST_ROWS, title)
            canvas.put(x, 0, "├" + "─" * (width - 2) + "┤")
            canvas.put(x + 4, 0, " its kernel ", "title")
        else:
            canvas.box(x, 0, width, _GUEST_ROWS, title)
        if vm.viommu is not None:
            canvas.box(x + 1, _VIOMMU, width - 2, 3, "vIOMMU")
        if vm.viommu is not None or vm.assign:
            canvas.put(x + WORDS, _VIOMMU + 1, self._scene.viommu(vm))
        if not self._scene.devices(vm):
            self._victim(vm, x)
        canvas.put(x, _HYPERVISOR, "├" + "─" * (width - 2) + "┤")
        canvas.put(x + 4, _HYPERVISOR, f" {self._scene.titled('hypervisor', f'{vm.name}.hypervisor')} ", "title")
        canvas.put(x + WORDS, _HYPERVISOR + 1, self._scene.hypervisor(vm))

    def _app(self, vm: ResolvedVm, devices: list[tuple[ResolvedDevice, int]]) -> None:
        """The process, and how it has its devices."""
        title = self._scene.application(vm, devices[0][0])
        self._canvas.box(devices[0][1] + 1, 1 - _USER_ROWS, len(devices) * COLUMN - 2, _APP_ROWS, title)
        for device, x in devices:
            self._canvas.put(x + WORDS, 2 - _USER_ROWS, fit(self._scene.grant(device), _ROOM))

    def _victim(self, vm: ResolvedVm, x: int) -> None:
        """In a guest without devices: how it fared against those of the only other one."""
        self._canvas.put(x + ARROW, _MEMORY, "memory")
        room = (_VIOMMU if vm.viommu is not None else _HYPERVISOR) - _TABLES
        for row, (device, arrow) in enumerate(self._scene.against(vm)[:room]):
            words = fit(f"from {device.name}: {LABELS[arrow.state]}", _ROOM)
            self._canvas.put(x + WORDS, _TABLES + row, words, arrow.state)

    def _host(self, width: int) -> None:
        canvas = self._canvas
        canvas.box(0, _HOST, width, _HOST_ROWS, self._scene.titled("host", "host"))
        canvas.box(1, _HOST + _IOMMU, width - 2, 3, "IOMMU")
        canvas.put(WORDS, _HOST + _IOMMU + 1, self._scene.iommu())

    def _component(self, name: str, x: int, width: int) -> None:
        title = fit(component_title(self._scene.topology.component(name)), COLUMN - 6)
        self._canvas.box(x, _COMPONENT, width, _COMPONENT_ROWS, title, dashed=True)

    def _device(self, vm: ResolvedVm | None, device: ResolvedDevice, x: int) -> None:
        canvas = self._canvas
        self._box_of(device, x)
        if vm is not None:
            canvas.box(x + 1, _SEEN, COLUMN - 2, 3, dashed=True)
            canvas.put(x + WORDS, _SEEN + 1, fit(seen_as(vm, device), _ROOM))
        own = self._scene.own(device)
        canvas.vertical(x + ARROW, _HEADS[own.machine, own.what], self._device_row - 1, own.state)
        canvas.put(x + ARROW, self._device_row, "┴", own.state)
        self._head(own, x, "▲")
        for arrow in self._scene.others(device):
            self._head(arrow, x, "├▶")
        canvas.put(x + WORDS, _HOST + _PORT, f"root port {device.slot}")
        component = self._scene.component(device)
        if component is not None:
            canvas.put(x + WORDS, _COMPONENT + 1, place_behind(component, device))

    def _box_of(self, device: ResolvedDevice, x: int) -> None:
        canvas = self._canvas
        canvas.box(x + 1, self._device_row, COLUMN - 2, _DEVICE_ROWS)
        said = (
            fit(f"{device.name}: {device.model} at {device.bdf}", COLUMN - 6),
            self._scene.titled("device", device.name),
            fit(manners(device), COLUMN - 6),
        )
        for row, words in enumerate(said, start=1):
            canvas.put(x + ARROW, self._device_row + row, words, "title" if row == 1 else "")

    def _head(self, arrow: Arrow, x: int, head: str) -> None:
        self._canvas.put(x + ARROW, _HEADS[arrow.machine, arrow.what], f"{head} {arrow.label}", arrow.state)
