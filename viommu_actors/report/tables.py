"""The figures of a run as tables: accesses tried, I/O and its counts, faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from viommu_actors.attacks.catalogue import CATALOGUE, SCRIPTED, access_of
from viommu_actors.attacks.evidence import Fault
from viommu_actors.attacks.verdict import missing_proofs
from viommu_actors.confine.level import Level
from viommu_actors.kernel.cmdline import CommandLine
from viommu_actors.report.io_tables import PER_PACKET, a_packet
from viommu_actors.report.results import (
    App,
    AppPort,
    Assignment,
    Forwarded,
    Process,
    Results,
    Verdict,
)
from viommu_actors.report.scene import WAYS
from viommu_actors.report.text import Line, Span, Style, Table, line
from viommu_actors.topology.resolved import ResolvedTopology

MAX_FAULTS = 16
#: What an application's start is told to have cost.
_STARTS = {"system_calls": "system calls to start", "traps": "traps", "vfio_maps": "VFIO maps"}
_SANDBOXES = {
    "full": "full sandbox",
    "landlock": "PARTIAL sandbox",
    "seccomp": "PARTIAL sandbox",
    "none": "NO sandbox",
}


def verdict_tables(topology: ResolvedTopology, results: Results) -> list[Table]:
    """A table of accesses tried for each device that tried any."""
    return [
        _verdict_table(topology, device, tuple(verdicts))
        for device, verdicts in groupby(results.verdicts, key=lambda verdict: verdict.device)
    ]


def assignment_table(results: Results) -> Table | None:
    """Whether each assignment is exclusive, and what the guest sees otherwise than the host; None without any."""
    if not results.assignments:
        return None
    return Table(
        title="Assignments: opened a second time, and configuration space compared",
        columns=("device", "on the host", "in the guest", "second open", "dwords seen otherwise"),
        rows=tuple(_assignment_row(each) for each in results.assignments),
        numbers=frozenset([4]),
        notes=tuple(line(_differences(each)) for each in results.assignments),
    )


def app_table(results: Results) -> Table | None:
    """What applications asked of their guests' kernels, and got; None without any."""
    if not results.apps:
        return None
    notes = [_app_note(app, port) for app in results.apps for port in app.ports]
    return Table(
        title="Applications: the devices that they asked their guest's kernel for",
        columns=("application", "device", "by", "outcome", "addresses", "kernel's taint", *_STARTS.values()),
        rows=tuple(_app_row(app, port) for app in results.apps for port in app.ports),
        numbers=frozenset(range(6, 6 + len(_STARTS))),
        notes=tuple(notes) if any(notes) else (),
    )


def fault_notes(results: Results) -> list[list[Line]]:
    """A block that says who is not told of faults; none where no application has a device by VFIO."""
    asked = {port.asked for app in results.apps for port in app.ports if port.granted}
    told = any(verdict.driver == "vfio" and verdict.evidence.fault for verdict in results.verdicts)
    if "vfio" not in asked or not told:
        return []
    words = "Faults of an application's device are the host's to see: VFIO type1 reports none to guest or application."
    return [[line(words)]]


def fault_table(results: Results) -> Table | None:
    """The first faults of the run; None where there were none."""
    if not results.faults:
        return None
    more = len(results.faults) - MAX_FAULTS
    return Table(
        title="Faults recorded" + (f" (the first {MAX_FAULTS} of {len(results.faults)})" if more > 0 else ""),
        columns=("by", "source", "access", "address", "reason", "count"),
        rows=tuple(
            tuple(line(cell) for cell in (f.unit, f.source, _access(f), f.address, _reason(f), str(f.count)))
            for f in results.faults[:MAX_FAULTS]
        ),
        numbers=frozenset([5]),
    )


def process_table(results: Results) -> Table:
    """Who played what."""
    return Table(
        title="Processes",
        columns=("role", "name", "pid", "sandbox"),
        rows=tuple(
            (line(each.role), line(each.name), line(str(each.pid)), line(each.sandbox or ""))
            for each in results.processes
        ),
        numbers=frozenset([2]),
    )


def sandbox_words(processes: Iterable[Process]) -> list[str]:
    """How far devices and virtual switches are confined, a line for each level that there is."""
    alike: dict[tuple[Level, str], list[str]] = {}
    roles = set()
    for each in processes:
        if each.sandbox is not None:
            alike.setdefault((each.sandbox, each.sandbox_detail), []).append(each.name)
            roles.add(each.role)
    all_of_them = "device processes" if roles == {"device"} else "devices and switches"
    words = []
    for (level, detail), names in alike.items():
        whose = all_of_them if len(alike) == 1 else ", ".join(names)
        words.append(f"{whose}: {_SANDBOXES[level]} ({detail})")
    return words


def sandbox_note(processes: Sequence[Process]) -> list[list[Line]]:
    """The same as a block; none where no device process told."""
    style: Style = "" if all(each.sandbox in ("full", None) for each in processes) else "unsafe"
    lines = [line(Span(words[0].upper() + words[1:], style)) for words in sandbox_words(processes)]
    return [lines] if lines else []


def absent_table(results: Results) -> Table | None:
    """Attacks that were asked for and do not apply; None where there are none."""
    if not results.absent:
        return None
    return Table(
        title="Attacks left out",
        columns=("device", "attack", "target", "because"),
        rows=tuple(tuple(line(cell) for cell in (a.device, a.attack, a.target, a.reason)) for a in results.absent),
    )


def interrupt_note(topology: ResolvedTopology) -> list[list[Line]]:
    """A block that warns of interrupts that nothing checks; none where all is well."""
    parameter = "vfio_iommu_type1.allow_unsafe_interrupts"
    if not CommandLine(topology.host.cmdline).enabled(parameter):
        return []
    told = f"Interrupts are NOT protected: the host's VFIO runs with {parameter.rpartition('.')[2]}=1."
    return [[line(Span(told, "unsafe"))]]


def summary(results: Results) -> Line:
    """Whether all is as expected, in one line."""
    wrong = [verdict for verdict in results.verdicts if not verdict.ok]
    bad = [row.device for row in results.io if not row.ok]
    if results.ok:
        return line(Span(f"As expected: {_many(len(results.verdicts), 'verdict')}, {_work(results)}.", "safe"))
    reasons = [f"{v.device} {v.attack} on {v.target} {v.observed}, expected {v.expected}" for v in wrong]
    reasons += [
        f"assignment of {each.device} not exclusive or not faithful" for each in results.assignments if not each.ok
    ]
    reasons += [f"I/O of {device} not verified" for device in bad]
    reasons += [
        f"{port.device} {'granted to' if port.granted else 'refused'} {app.name} by {port.asked}"
        for app in results.apps
        for port in app.ports
        if not port.ok
    ]
    reasons += [f"forwarding of {app.name} not verified" for app in results.apps if app.forwarded and not app.ok]
    return line(Span("NOT as expected: " + ("; ".join(reasons) or "see the log of the run") + ".", "unsafe"))


def rogue_summary(results: Results) -> Line:
    """The same of one rogue, which came to try something."""
    if results.verdicts or not results.ok:
        return summary(results)
    return line(Span(f"Nothing was tried that is judged: no verdict, {_work(results)}.", "unknown"))


def _work(results: Results) -> str:
    return f"{_many(sum(row.operations for row in results.io), 'operation')} verified"


def _verdict_table(topology: ResolvedTopology, device: str, verdicts: tuple[Verdict, ...]) -> Table:
    vm, port = topology.machine_of(device), topology.port(device)
    driven = f"driven by the {'host' if vm is None else f'{vm.name} guest'} kernel"
    if vm is not None and port is not None:
        app = next(app.name for app in vm.apps if port in app.ports)
        driven = f"driven by {app} in {vm.name}, by {WAYS[port.driver]}"
    if topology.is_card(device):
        driven += f", served by {topology.card(device).vswitch}, which turned hostile"
    driven += f", setting {topology.setting(device)}"
    return Table(
        title=f"{device}: what it tried beyond what it was given ({driven})",
        columns=("attack", "target", "accesses", "outcome"),
        rows=tuple(_verdict_row(verdict) for verdict in verdicts),
        numbers=frozenset([2]),
        notes=tuple(line(proofs(verdict)) for verdict in verdicts),
    )


def _verdict_row(verdict: Verdict) -> tuple[Line, ...]:
    attack = CATALOGUE.get(verdict.attack)
    return (
        line(f"{verdict.attack} {attack.name}" if attack else verdict.attack),
        line(verdict.target),
        line(str(verdict.evidence.attempts)),
        line(Span(verdict.observed, outcome_style(verdict)), _expectation(verdict)),
    )


def outcome_style(verdict: Verdict) -> Style:
    """Harmless, harmful, or not proven."""
    if verdict.observed in ("blocked", "redirected"):
        return "safe" if verdict.ok else "unknown"
    return "unknown" if verdict.observed == "unproven" else "unsafe"


def _expectation(verdict: Verdict) -> Span:
    return Span(", as expected") if verdict.ok else Span(f", EXPECTED {verdict.expected}", "unsafe")


def proofs(verdict: Verdict) -> str:
    """What stands behind a verdict, or what is missing, in a line."""
    evidence = verdict.evidence
    if verdict.observed == "unproven":
        return "; ".join(missing_proofs(access_of(verdict.attack), evidence))
    said = [_let_through(verdict)] if evidence.reached or evidence.elsewhere else []
    if evidence.fault is not None:
        said.append(fault_words(evidence.fault))
    changed = evidence.canary_before != evidence.canary_after
    if evidence.canary_before:
        said.append("canary CHANGED" if changed else "canary unchanged")
    said.append("legal DMA passed" if evidence.control else "legal DMA failed")
    if verdict.withheld_by:
        said.append(f"the mapping was withheld by {verdict.withheld_by}")
    return "; ".join(said)


def _let_through(verdict: Verdict) -> str:
    evidence = verdict.evidence
    target = "pages not given to it" if verdict.attack in SCRIPTED else "canary pages"
    canaries = f"{evidence.reached} hit {target}" if evidence.reached else ""
    where = "went through" if access_of(verdict.attack) == "service" else "hit other pages"
    others = f"{evidence.elsewhere} {where}" if evidence.elsewhere else ""
    return ", ".join(filter(None, (canaries, others)))


def fault_words(fault: Fault) -> str:
    """A record of a refusal in a line."""
    if not fault.address:
        return f"{fault.unit}: {_reason(fault)}, {fault.count} times, of {fault.source}"
    return f"{fault.unit}: {_reason(fault)}, {_access(fault)} of {fault.address} by {fault.source}"


def _reason(fault: Fault) -> str:
    if fault.kind == "remapping":
        return f"fault {fault.reason}" + (f" ({fault.text})" if fault.text else "")
    return fault.text or fault.kind


def _access(fault: Fault) -> str:
    return "write" if fault.write else "read"


def _app_row(app: App, port: AppPort) -> tuple[Line, ...]:
    outcome = "granted" if port.granted else f"refused, {port.errno}"
    expectation = Span(", as expected") if port.ok else Span(", NOT as expected", "unsafe")
    taints = "".join(app.taints) or "none"
    cells = (line(Span(outcome), expectation), line(app.iova), line(taints))
    # Of all of its devices together.
    start = (str(getattr(app.setup, key)) if port is app.ports[0] else "" for key in _STARTS)
    return line(app.name), line(port.device), line(WAYS[port.asked]), *cells, *map(line, start)


def _app_note(app: App, port: AppPort) -> Line:
    """Why it was refused; below its last device what an application forwarded between all of them."""
    if port.reason:
        return line(port.reason)
    forwarded = app.forwarded
    if forwarded is None or port is not app.ports[-1]:
        return ()
    if not forwarded.verified:
        return line("forwarding between its devices: ", Span(forwarded.failed or "NOT VERIFIED", "unsafe"))
    rate = "" if forwarded.packets_per_second is None else f", {forwarded.packets_per_second:,.0f} a second"
    costs = ", ".join(f"{getattr(forwarded.counts, key)} {words}" for key, words in PER_PACKET.items())
    each = ", ".join(f"{a_packet(forwarded.per_packet, key)} {words}" for key, words in PER_PACKET.items())
    of_each = "" if forwarded.per_packet is None else f"; a packet: {each}"
    done = f"{forwarded.packets} packets forwarded between {_between(forwarded)}{rate}, all verified"
    return line(f"{done}: {costs}{of_each}")


def _between(forwarded: Forwarded) -> str:
    return f"{' and '.join(forwarded.ends)}, both ways" if forwarded.ends else "its devices"


def _assignment_row(each: Assignment) -> tuple[Line, ...]:
    exclusive = each.second_open == "EBUSY"
    opened = Span(f"{each.second_open}, exclusive", "safe") if exclusive else Span(f"{each.second_open}!", "unsafe")
    seen = Span(str(len(each.differences)), "" if all(d.why for d in each.differences) else "unsafe")
    return line(each.device), line(each.host), line(f"{each.vm} {each.guest}"), line(opened), line(seen)


def _differences(each: Assignment) -> str:
    """Offsets by the reason for which they differ."""
    offsets: dict[str, list[str]] = {}
    for difference in each.differences:
        offsets.setdefault(difference.why or "NOBODY DECIDED SO", []).append(difference.offset)
    return "; ".join(f"{why}: {' '.join(where)}" for why, where in offsets.items()) or "the guest sees the same device"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
