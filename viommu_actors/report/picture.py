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
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology, ResolvedVirtioNet, ResolvedVm

#: A device's column: its arrow stands at ARROW, what is said of it from WORDS on.
COLUMN = 30
ARROW = 3
WORDS = 5
_ROOM = COLUMN - WORDS - 2

# Rows of a band. A guest's box holds its arrows' heads, its vIOMMU and the device as the guest sees it.
_MEMORY, _TABLES, _VIOMMU, _SEEN, _HYPERVISOR, _GUEST_ROWS = 1, 2, 3, 6, 9, 12
#: Between guests and host, where there are virtual switches.
_SWITCH_ROWS = 5
_HOST_MEMORY, _HOST_TABLES, _OTHER, _INTERRUPTS, _IOMMU, _PORT, _HOST_ROWS = 1, 2, 3, 4, 5, 8, 10
_COMPONENT_ROWS = 3
_DEVICE_ROWS = 5
#: Above a guest's kernel, where it has applications.
_USER_ROWS, _APP_ROWS = 4, 3
#: Where an arrow ends: rows of its machine.
_HEADS: dict[tuple[Machine, What], int] = {
    ("guest", "memory"): _MEMORY,
    ("guest", "page tables"): _TABLES,
    ("guest", "beyond the guest"): _HYPERVISOR + 1,
    ("host", "host memory"): _HOST_MEMORY,
    ("host", "page tables"): _HOST_TABLES,
    ("host", "other guest"): _OTHER,
    ("host", "interrupts"): _INTERRUPTS,
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
        self._switch_row = _GUEST_ROWS
        self._host_row = _GUEST_ROWS + (_SWITCH_ROWS if any(column.card for column in columns) else 0)
        self._component_row = self._host_row + _HOST_ROWS
        self._device_row = self._component_row + (_COMPONENT_ROWS if scene.topology.components else 0)

    def draw(self) -> list[Line]:
        placed = list(enumerate(self._columns))
        for vm, group in groupby(placed, key=lambda item: item[1].vm):
            members = list(group)
            if vm is not None:
                self._guest(vm, members[0][0] * COLUMN, [column for _, column in members])
        self._host(len(placed) * COLUMN)
        for (vm, app), group in groupby(placed, key=lambda item: (item[1].vm, item[1].app)):
            members = list(group)
            if vm is not None and app is not None:
                self._app(vm, app, [(column, index * COLUMN) for index, column in members])
        for vswitch in self._scene.topology.vswitches:
            self._switch(vswitch.name, [(card, i * COLUMN) for i, (_, _, card) in placed if card is not None])
        for behind, group in groupby(placed, key=lambda item: item[1].device and item[1].device.behind):
            members = list(group)
            if behind is not None:
                self._component(behind, members[0][0] * COLUMN, len(members) * COLUMN)
        for index, (vm, device, card) in placed:
            if device is not None:
                self._device(vm, device, index * COLUMN)
            elif vm is not None and card is not None:
                self._card(card, index * COLUMN)
        return self._canvas.lines()

    def _guest(self, vm: ResolvedVm, x: int, columns: list[Column]) -> None:
        canvas, width = self._canvas, len(columns) * COLUMN
        title = self._scene.guest(vm)
        if vm.apps:
            canvas.box(x, -_USER_ROWS, width, _USER_ROWS + _GUEST_ROWS, title)
            canvas.put(x, 0, "├" + "─" * (width - 2) + "┤")
            canvas.put(x + 4, 0, " its kernel ", "title")
        else:
            canvas.box(x, 0, width, _GUEST_ROWS, title)
        if vm.viommu is not None:
            canvas.box(x + 1, _VIOMMU, width - 2, 3, "vIOMMU")
        if vm.viommu is not None or vm.assign or vm.virtio:
            canvas.put(x + WORDS, _VIOMMU + 1, self._scene.viommu(vm))
        if not self._scene.devices(vm) and not vm.virtio:
            self._victim(vm, x)
        canvas.put(x, _HYPERVISOR, "├" + "─" * (width - 2) + "┤")
        canvas.put(x + 4, _HYPERVISOR, f" {self._scene.titled('hypervisor', f'{vm.name}.hypervisor')} ", "title")
        for column, (_, _, card) in enumerate(columns):
            if card is None:
                canvas.put(x + column * COLUMN + WORDS, _HYPERVISOR + 1, self._scene.hypervisor(vm))
                break

    def _app(self, vm: ResolvedVm, app: str, columns: list[tuple[Column, int]]) -> None:
        """The process, and how it has its devices."""
        title = self._scene.application(vm, app)
        self._canvas.box(columns[0][1] + 1, 1 - _USER_ROWS, len(columns) * COLUMN - 2, _APP_ROWS, title)
        for (_, device, card), x in columns:
            own = device or card
            if own is not None:
                self._canvas.put(x + WORDS, 2 - _USER_ROWS, fit(self._scene.grant(own), _ROOM))

    def _switch(self, name: str, cards: list[tuple[ResolvedVirtioNet, int]]) -> None:
        """A process on the host: it reaches guests by their hypervisors alone, past nothing of the host."""
        own = [(card, x) for card, x in cards if card.vswitch == name]
        if own:
            left, right = own[0][1], own[-1][1] + COLUMN
            self._canvas.box(left, self._switch_row, right - left, _SWITCH_ROWS)
            title = fit(self._scene.vswitch(name), right - left - 6)
            self._canvas.put(left + ARROW, self._switch_row + 1, title, "title")
            for card, x in own:
                self._canvas.put(x + ARROW, self._switch_row + 2, fit(f"port {card.name}", COLUMN - 6))
                self._canvas.put(x + ARROW, self._switch_row + 3, fit(manners(card), COLUMN - 6))

    def _card(self, card: ResolvedVirtioNet, x: int) -> None:
        canvas, own = self._canvas, self._scene.own(card)
        canvas.box(x + 1, _SEEN, COLUMN - 2, 3, dashed=True)
        canvas.put(x + WORDS, _SEEN + 1, fit(f"{card.bdf} {card.name}", _ROOM))
        canvas.put(x + WORDS, _HYPERVISOR + 1, fit(f"emulates {card.name}", _ROOM))
        canvas.vertical(x + ARROW, self._row_of(own), self._switch_row - 1, own.state)
        canvas.put(x + ARROW, self._switch_row, "┴", own.state)
        self._head(own, x, "▲")
        for arrow in self._scene.others_of_card(card):
            self._head(arrow, x, "├▶")

    def _victim(self, vm: ResolvedVm, x: int) -> None:
        """In a guest without devices: how it fared against those of the only other one."""
        self._canvas.put(x + ARROW, _MEMORY, "memory")
        room = (_VIOMMU if vm.viommu is not None else _HYPERVISOR) - _TABLES
        for row, (device, arrow) in enumerate(self._scene.against(vm)[:room]):
            words = fit(f"from {device.name}: {LABELS[arrow.state]}", _ROOM)
            self._canvas.put(x + WORDS, _TABLES + row, words, arrow.state)

    def _host(self, width: int) -> None:
        canvas = self._canvas
        canvas.box(0, self._host_row, width, _HOST_ROWS, self._scene.titled("host", "host"))
        canvas.box(1, self._host_row + _IOMMU, width - 2, 3, "IOMMU")
        canvas.put(WORDS, self._host_row + _IOMMU + 1, self._scene.iommu())

    def _component(self, name: str, x: int, width: int) -> None:
        title = fit(component_title(self._scene.topology.component(name)), COLUMN - 6)
        self._canvas.box(x, self._component_row, width, _COMPONENT_ROWS, title, dashed=True)

    def _device(self, vm: ResolvedVm | None, device: ResolvedDevice, x: int) -> None:
        canvas = self._canvas
        self._box_of(device, x)
        if vm is not None:
            canvas.box(x + 1, _SEEN, COLUMN - 2, 3, dashed=True)
            canvas.put(x + WORDS, _SEEN + 1, fit(seen_as(vm, device), _ROOM))
        own = self._scene.own(device)
        canvas.vertical(x + ARROW, self._row_of(own), self._device_row - 1, own.state)
        canvas.put(x + ARROW, self._device_row, "┴", own.state)
        self._head(own, x, "▲")
        for arrow in self._scene.others(device):
            self._head(arrow, x, "├▶")
        canvas.put(x + WORDS, self._host_row + _PORT, f"root port {device.slot}")
        component = self._scene.component(device)
        if component is not None:
            canvas.put(x + WORDS, self._component_row + 1, place_behind(component, device))

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
        self._canvas.put(x + ARROW, self._row_of(arrow), f"{head} {arrow.label}", arrow.state)

    def _row_of(self, arrow: Arrow) -> int:
        return _HEADS[arrow.machine, arrow.what] + (self._host_row if arrow.machine == "host" else 0)
