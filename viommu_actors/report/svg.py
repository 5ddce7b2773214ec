"""The topology as SVG, in the manner of QEMU's pictures of device assignment.

Boxes are processes, arrows DMA and interrupts, from the devices up. Their colour, and the words at
their heads, tell what was observed in the run. Wide topologies come in several bands.
"""

from __future__ import annotations

from itertools import groupby

from viommu_actors.report.markup import Markup, element, svg_text
from viommu_actors.report.results import Results
from viommu_actors.report.scene import (
    LABELS,
    LEGEND,
    Arrow,
    Column,
    Endpoint,
    Machine,
    Scene,
    What,
    component_title,
    manners,
    place_behind,
    seen_as,
)
from viommu_actors.report.text import Style
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology, ResolvedVirtioNet, ResolvedVm

#: Columns beside each other in one band.
BAND = 4
# In pixels.
_COLUMN, _MARGIN, _GAP, _INSET = 290, 8, 24, 8
_TITLE, _ROW, _BAR, _SEEN, _STRIP, _PORT, _COMPONENT, _DEVICE = 26, 28, 42, 30, 40, 24, 40, 70
_LANE, _LANES_APART, _PILL = 26, 22, 22
_APP = _SWITCH = 48
#: Where arrows may end, from the top down.
_ENDS: dict[Machine, tuple[What, ...]] = {
    "guest": ("memory", "page tables", "beyond the guest"),
    "host": ("host memory", "page tables", "other guest", "interrupts"),
}
_SIGNS: dict[Style, str] = {"safe": "✓", "unsafe": "✗", "unknown": "?"}


def topology_svg(topology: ResolvedTopology, results: Results) -> list[Markup]:
    """An `svg` element for each band, without any style of its own: see report.css."""
    scene = Scene(topology, results)
    columns = scene.columns()
    bands = [columns[start : start + BAND] for start in range(0, len(columns), BAND)]
    return [_Band(scene, band, number).draw(len(bands)) for number, band in enumerate(bands, start=1)]


def legend() -> Markup:
    """What the arrows mean, as a list with a sample of each."""
    rows = [(f"dma {state}", LABELS[state], f"{_SIGNS[state]} {meaning}") for state, meaning in LEGEND.items()]
    rows += [
        ("interrupt unknown", "interrupt", "thin, with an open head; all others are DMA"),
        ("dma safe stopped", "stopped", "refused at the bar, nothing came further"),
    ]
    return element("ul", *(_sample(*row) for row in rows), class_="legend arrows")


def _sample(kind: str, name: str, meaning: str) -> Markup:
    stopped = kind.endswith("stopped")
    shaft = element("path", d="M2 8H26" if stopped else "M2 8H42", class_="shaft")
    rest = (
        element("path", d="M26 8H42", class_="beyond"),
        element("path", d="M26 2V14", class_="stop"),
    )
    head = element("path", d="M42 3L52 8L42 13" + ("" if kind.startswith("interrupt") else "Z"), class_="head")
    drawn = element("g", shaft, *(rest if stopped else ()), head, class_=f"sample {kind.removesuffix(' stopped')}")
    return element(
        "li", element("svg", drawn, width=54, height=16, aria_hidden="true"), " ", element("b", name), f": {meaning}"
    )


class _Band:
    """Columns beside each other. The measures from top to bottom stand in `__init__`."""

    def __init__(self, scene: Scene, columns: list[Column], number: int) -> None:
        self._scene = scene
        self._columns = columns
        self._number = number
        self._arrows = {
            device.name: _downwards([scene.own(device), *scene.others(device), scene.interrupts(device)])
            for _, device, _ in columns
            if device is not None
        }
        self._arrows |= {
            card.name: _downwards([scene.own(card), *scene.others_of_card(card)])
            for _, _, card in columns
            if card is not None
        }
        self._heads: dict[tuple[Machine, What], float] = {}
        guests = any(column.vm is not None for column in columns)
        self._app = float(_MARGIN + _TITLE)
        apps = any(column.app is not None for column in columns)
        below_guest = self._place_heads("guest", _MARGIN + (_APP + _INSET if apps else 0)) if guests else 0.0
        self._viommu = below_guest + 4
        self._seen = self._viommu + _BAR + 10
        self._hypervisor = self._seen + _SEEN + 10
        self._switch = self._hypervisor + _STRIP + _GAP
        switches = any(column.card is not None for column in columns)
        below = self._switch + (_SWITCH + _GAP if switches else 0)
        self._host = below if guests else float(_MARGIN)
        self._iommu = self._place_heads("host", self._host) + 4
        self._port = self._iommu + _BAR + 10
        self._component = self._port + _PORT + 10 + _GAP
        self._device = self._component + (_COMPONENT + _GAP if scene.topology.components else 0)
        self._width = len(columns) * _COLUMN
        self._height = self._device + _DEVICE + _MARGIN

    def draw(self, bands: int) -> Markup:
        boxes = [self._host_box()]
        x = _MARGIN
        for vm, group in groupby(self._columns, key=lambda column: column.vm):
            columns = list(group)
            if vm is not None:
                boxes.append(self._guest(vm, x, columns))
            x += len(columns) * _COLUMN
        placed = list(enumerate(self._columns))
        for behind, members in groupby(placed, key=lambda item: item[1].device and item[1].device.behind):
            if behind is not None:
                boxes.append(self._component_box(behind, [(i, device) for i, (_, device, _) in members if device]))
        for (vm, app), members in groupby(placed, key=lambda item: (item[1].vm, item[1].app)):
            if vm is not None and app is not None:
                owned = [(i, device or card) for i, (_, device, card) in members]
                boxes.append(self._app_box(vm, app, [(i, own) for i, own in owned if own is not None]))
        devices = [(vm, device, _MARGIN + i * _COLUMN) for i, (vm, device, _) in placed if device is not None]
        boxes += [self._device_boxes(vm, device, x) for vm, device, x in devices]
        arrows = [self._arrow(device, *each, x) for _, device, x in devices for each in self._lanes(device)]
        cards = [(card, float(_MARGIN + i * _COLUMN)) for i, (_, _, card) in placed if card is not None]
        boxes += [self._switch_box(each.name, cards) for each in self._scene.topology.vswitches if cards]
        boxes += [self._seen_box(f"{card.bdf} {card.name}", x) for card, x in cards]
        arrows += [self._arrow(card, *each, x) for card, x in cards for each in self._lanes(card)]
        width, height = self._width + 2 * _MARGIN, self._height
        name = f"picture-{self._number}"
        part = f", part {self._number} of {bands}" if bands > 1 else ""
        return element(
            "svg",
            element("title", f"Topology {self._scene.topology.name} as observed{part}", id=f"{name}-title"),
            element("desc", self._told(), id=f"{name}-desc"),
            *boxes,
            *arrows,
            xmlns="http://www.w3.org/2000/svg",
            class_="topology",
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
            viewBox=f"0 0 {width:g} {height:g}",
            width=width,
            height=height,
        )

    def _place_heads(self, machine: Machine, top: float) -> float:
        """Rows for what arrows end at in this machine; returns where they end."""
        used = {arrow.what for arrows in self._arrows.values() for arrow in arrows if arrow.machine == machine}
        if machine == "guest":
            used.add("memory")
        y = top + _TITLE
        for what in _ENDS[machine]:
            if what in used:
                self._heads[machine, what] = y
                y += _ROW
        return y

    def _told(self) -> str:
        """The picture in words."""
        said = []
        for vm, device, card in self._columns:
            if card is not None:
                ends = ", ".join(arrow.label for arrow in self._arrows[card.name])
                taken = f", taken by {card.app} ({self._scene.grant(card)})" if card.app else ""
                said.append(f"{card.name}, {manners(card)}, emulated, port of {card.vswitch}{taken}: {ends}.")
                continue
            if device is None:
                said.append(f"{vm.name if vm else ''}: no device.")
                continue
            behind = f"assigned to {vm.name} ({self._scene.viommu(vm)})" if vm else "driven by the host"
            if device.app is not None:
                behind += f", taken by {device.app} ({self._scene.grant(device)})"
            ends = ", ".join(arrow.label for arrow in self._arrows[device.name])
            said.append(f"{device.name}, {manners(device)}, {behind}: {ends}.")
        return " ".join(said)

    def _guest(self, vm: ResolvedVm, x: float, columns: list[Column]) -> Markup:
        width = len(columns) * _COLUMN
        scene, top, left, inner = self._scene, _MARGIN, x + _INSET, width - 2 * _INSET
        emulated = [f"emulates {', '.join(card.name for card in vm.virtio)}"] if vm.virtio else []
        height = self._hypervisor + _STRIP - top
        there = vm.viommu is not None
        drawn = [
            _box(x + 2, top, width - 4, height, "machine"),
            svg_text(left + 4, top + 18, scene.guest(vm), "title", inner - 8),
            _box(left, self._viommu, inner, _BAR, "unit" if there else "unit absent"),
            *_lines(x + width, self._viommu, "vIOMMU" if there else "", scene.viommu(vm)),
            _box(x + 2, self._hypervisor, width - 4, _STRIP, "strip"),
            *_lines(
                x + width,
                self._hypervisor,
                scene.titled("hypervisor", f"{vm.name}.hypervisor"),
                "; ".join(filter(None, [*emulated, scene.hypervisor(vm)])),
            ),
        ]
        if not scene.devices(vm) and not vm.virtio:
            drawn += self._victim(vm, left)
        return element("g", *drawn, class_="vm")

    def _app_box(self, vm: ResolvedVm, app: str, members: list[tuple[int, Endpoint]]) -> Markup:
        """The process in the guest's user space, and how it has its devices."""
        left, width = _MARGIN + members[0][0] * _COLUMN, len(members) * _COLUMN
        return element(
            "g",
            _box(left + _INSET, self._app, width - 2 * _INSET, _APP, "device"),
            svg_text(left + 2 * _INSET, self._app + 18, self._scene.application(vm, app), "title"),
            *(
                svg_text(_MARGIN + column * _COLUMN + 2 * _INSET, self._app + 36, self._scene.grant(device), "note")
                for column, device in members
            ),
            class_="app",
        )

    def _victim(self, vm: ResolvedVm, x: float) -> list[Markup]:
        """In a guest without devices: how it fared against those of the only other one."""
        y = self._heads["guest", "memory"] + 15
        said = [svg_text(x + 4, y, "memory", "note")]
        from_whom: dict[Style, list[str]] = {}
        for device, arrow in self._scene.against(vm):
            from_whom.setdefault(arrow.state, []).append(device.name)
        for row, (state, names) in enumerate(from_whom.items()):
            who = names[0] if len(names) == 1 else f"{len(names)} devices"
            words = f"{_SIGNS[state]} from {who}: {LABELS[state]}"
            said.append(svg_text(x + 70, y + row * 16, words, f"words {state}", _COLUMN - 100))
        return said

    def _host_box(self) -> Markup:
        scene, width = self._scene, self._width
        right = _MARGIN + width
        return element(
            "g",
            _box(_MARGIN + 2, self._host, width - 4, self._port + _PORT + 10 - self._host, "machine"),
            svg_text(right - _INSET - 4, self._host + 18, scene.titled("host", "host"), "title end"),
            _box(_MARGIN + _INSET, self._iommu, width - 2 * _INSET, _BAR, "unit"),
            *_lines(right, self._iommu, "IOMMU", scene.iommu()),
            class_="host",
        )

    def _component_box(self, name: str, members: list[tuple[int, ResolvedDevice]]) -> Markup:
        component, first = self._scene.topology.component(name), members[0][0]
        left, width = _MARGIN + first * _COLUMN, len(members) * _COLUMN
        ends = [_MARGIN + (column + 1) * _COLUMN - 4 * _INSET for column, _ in members]
        return element(
            "g",
            _box(left + 2, self._component, width - 4, _COMPONENT, "unit"),
            svg_text(ends[-1], self._component + 16, component_title(component), "title end"),
            *(
                svg_text(end, self._component + 32, place_behind(component, device), "note end")
                for end, (_, device) in zip(ends, members, strict=True)
            ),
            class_="component",
        )

    def _device_boxes(self, vm: ResolvedVm | None, device: ResolvedDevice, x: float) -> Markup:
        left, inner = x + 2 * _INSET, _COLUMN - 4 * _INSET
        end = left + inner - _INSET
        named = f"{device.name}: {device.model} at {device.bdf}"
        drawn = [
            _box(left, self._port, inner, _PORT, "port"),
            svg_text(end, self._port + 16, f"root port {device.slot}", "note end"),
            _box(x + _INSET, self._device, _COLUMN - 2 * _INSET, _DEVICE, "device rogue" if device.rogue else "device"),
            svg_text(left, self._device + 22, named, "title", inner),
            svg_text(left, self._device + 40, self._scene.titled("device", device.name), "note"),
            svg_text(left, self._device + 58, manners(device), "note", inner),
        ]
        if vm is not None:
            drawn.append(self._seen_box(seen_as(vm, device), x))
        return element("g", *drawn, class_="device", data_device=device.name)

    def _seen_box(self, words: str, x: float) -> Markup:
        """A device as the guest sees it."""
        left, inner = x + 2 * _INSET, _COLUMN - 4 * _INSET
        end = left + inner - _INSET
        told = svg_text(end, self._seen + 19, words, "note end", inner - 3 * _LANES_APART)
        return element("g", _box(left, self._seen, inner, _SEEN, "seen"), told)

    def _switch_box(self, name: str, cards: list[tuple[ResolvedVirtioNet, float]]) -> Markup:
        """A process on the host, and a port of it below each of its cards."""
        own = [(card, x) for card, x in cards if card.vswitch == name]
        if not own:
            return element("g")
        left, right, room = own[0][1], own[-1][1] + _COLUMN, _COLUMN - 4 * _INSET
        return element(
            "g",
            _box(left + _INSET, self._switch, right - left - 2 * _INSET, _SWITCH, "device"),
            svg_text(left + 2 * _INSET, self._switch + 20, self._scene.vswitch(name), "title"),
            *(
                svg_text(x + 2 * _INSET, self._switch + 38, f"port {card.name}, {manners(card)}", "note", room)
                for card, x in own
            ),
            class_="vswitch",
        )

    def _lanes(self, device: Endpoint) -> list[tuple[Arrow, int]]:
        return [(arrow, lane) for lane, arrow in enumerate(self._arrows[device.name])]

    def _arrow(self, device: Endpoint, arrow: Arrow, lane: int, column: float) -> Markup:
        """The higher it ends the more to the left it stands, so that no head is in another's way."""
        x = column + _LANE + lane * _LANES_APART
        label_y = self._heads[arrow.machine, arrow.what]
        tip = label_y + _PILL
        kind = "interrupt" if arrow.what == "interrupts" else "dma"
        stop = None if arrow == self._scene.own(device) else self._stop(arrow)
        # To its own memory the legal part of its traffic goes on.
        start = self._device if isinstance(device, ResolvedDevice) else self._switch
        shaft = [element("path", d=f"M{x:g} {start:g}V{stop or tip + 8:g}", class_="shaft")]
        if stop is not None:
            shaft.append(element("path", d=f"M{x:g} {stop:g}V{tip + 8:g}", class_="beyond"))
            shaft.append(element("path", d=f"M{x - 8:g} {stop:g}H{x + 8:g}", class_="stop"))
        head = f"M{x - 5:g} {tip + 10:g}L{x:g} {tip:g}L{x + 5:g} {tip + 10:g}" + ("" if kind == "interrupt" else "Z")
        told = ", ".join(f"{verdict.attack} on {verdict.target} {verdict.observed}" for verdict in arrow.verdicts)
        return element(
            "g",
            element("title", f"{device.name} to {arrow.label}" + (f" ({told})" if told else "")),
            *shaft,
            element("path", d=head, class_="head"),
            _box(x - 12, label_y, column + _COLUMN - 2 * _INSET - (x - 12), _PILL, "pill"),
            svg_text(x - 4, label_y + 15, f"{_SIGNS[arrow.state]} {arrow.label}", "words"),
            class_=f"arrow {kind} {arrow.state}",
            data_device=device.name,
            data_what=arrow.what,
        )

    def _stop(self, arrow: Arrow) -> float | None:
        """Where all that was tried was refused."""
        if any(verdict.observed != "blocked" for verdict in arrow.verdicts):
            return None
        units = {verdict.evidence.fault.unit for verdict in arrow.verdicts if verdict.evidence.fault is not None}
        if not units:
            return None
        if all(unit.endswith(" viommu") for unit in units):
            return self._viommu + _BAR / 2
        if any(unit.endswith(".hypervisor") for unit in units):
            return self._hypervisor + _STRIP / 2
        if units == {"root port"}:
            return self._port + _PORT / 2
        behind = all(unit.startswith(("switch ", "bridge ")) for unit in units)
        return self._component + _COMPONENT / 2 if behind else self._iommu + _BAR / 2


def _downwards(arrows: list[Arrow]) -> list[Arrow]:
    """Each end once, from the top down."""
    ends = {(arrow.machine, arrow.what): arrow for arrow in arrows}
    return [ends[machine, what] for machine, whats in _ENDS.items() for what in whats if (machine, what) in ends]


def _box(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return element("rect", x=x, y=y, width=width, height=height, rx=4, class_=kind)


def _lines(right: float, top: float, first: str, second: str) -> list[Markup]:
    """Two lines at the right edge of a box, clear of the arrows."""
    x = right - _INSET - 8
    return [svg_text(x, top + 17, first, "title end"), svg_text(x, top + 33, second, "note end")]
