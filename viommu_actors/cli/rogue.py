"""`viommu rogue`: attaches a rogue device process to a topology that is up, and tells what it got at."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

import msgspec

from viommu_actors.attacks.catalogue import CATALOGUE
from viommu_actors.cli.exits import Exit
from viommu_actors.report.progress import Progress
from viommu_actors.report.report import render_rogue
from viommu_actors.report.results import RogueResults
from viommu_actors.spec.pci import DEVICES_PER_BUS
from viommu_actors.supervise.client import DoorClient, JobFailed
from viommu_actors.supervise.requests import MAX_REPEAT, MAX_SCRIPT, MAX_SECONDS, Attack, DeviceAdd, DeviceDel, Script
from viommu_actors.supervise.runs import LiveRun, NoRun, find_run
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology

HELP = "attach a rogue device to a topology that is up (launch/topology --stay), and print what stopped it"

#: Of a script, as the launcher takes it.
_LONGEST_NAME = 64
_STATUS = {
    "refused": Exit.REFUSED,
    "failed": Exit.DIFFERS,
    "died": Exit.DIED,
    "interrupted": Exit.INTERRUPTED,
}


class BadScript(Exception):
    """A script that cannot be run; the text says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run (default: the newest live one)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--slot",
        type=_slot,
        nargs="?",
        metavar="N",
        help="plug a device into this free slot (default: the first that is free)",
    )
    place.add_argument(
        "--as",
        dest="device",
        metavar="DEVICE",
        help="take over this device's link, without a link-down, and with its mappings: its firmware turned hostile",
    )
    place.add_argument(
        "--swap", metavar="DEVICE", help="pull this device out, and plug a rogue in where it stood: it has no mappings"
    )
    place.add_argument("--remove", metavar="DEVICE", help="take away a rogue that was left with --detach")
    parser.add_argument(
        "--model", choices=("nic", "edu"), default="nic", help="what is plugged in (default: %(default)s)"
    )
    parser.add_argument(
        "--attacks", type=_attacks, default=(), metavar="all|A1,A2,…", help="what it tries (default: all that apply)"
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="what it does instead: your own rogue, in Python")
    parser.add_argument(
        "--seconds", type=_seconds, default=30.0, help="how long a script may take (default: %(default)g)"
    )
    parser.add_argument("--repeat", type=_repeat, default=1, metavar="N", help="how often (default: %(default)s)")
    parser.add_argument("--detach", action="store_true", help="leave it attached")
    parser.add_argument("--json", action="store_true", help="print the verdicts as one JSON object, and nothing else")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`."""
    try:
        text = None if options.script is None else _script(options.script)
        live = find_run(options.run)
    except (NoRun, BadScript) as error:
        print(error, file=sys.stderr)
        return Exit.REFUSED
    try:
        if options.remove is not None:
            with DoorClient(live) as client:
                client.do(DeviceDel(device=options.remove))
            return Exit.AS_EXPECTED
        return _attach(options, text, live, live.topology())
    except JobFailed as error:
        print(error, file=sys.stderr)
        return _STATUS[error.how]
    except msgspec.DecodeError as error:
        print(f"{live.folder}: the run is of another version: {error}; start it anew", file=sys.stderr)
        return Exit.REFUSED
    except OSError as error:
        print(f"{live.folder}: {error.strerror}", file=sys.stderr)
        return Exit.REFUSED


def _attach(options: argparse.Namespace, text: str | None, live: LiveRun, topology: ResolvedTopology) -> int:
    with Progress(sys.stderr) as progress, DoorClient(live, progress.tell) as client:
        device = None
        try:
            progress.tell(_coming(options))
            added = msgspec.convert(client.do(_add(options))["device"], ResolvedDevice)
            device = added.name
            result = client.do(_job(options, text, device))
        except KeyboardInterrupt:
            client.cancel()
            return Exit.INTERRUPTED
        finally:
            if device is not None and not options.detach:
                progress.tell(f"{device}: the rogue is unplugged")
                client.remove(device)
    if device not in [each.name for each in topology.devices]:
        topology = msgspec.structs.replace(topology, devices=(*topology.devices, added))
    results = msgspec.convert(result, RogueResults)
    print(json.dumps(result) if options.json else render_rogue(topology, results, sys.stdout), flush=True)
    return Exit.AS_EXPECTED if results.ok else Exit.DIFFERS


def _coming(options: argparse.Namespace) -> str:
    if options.device is not None:
        return f"{options.device}: a rogue takes over its link"
    if options.swap is not None:
        return f"{options.swap} is pulled out, and a rogue {options.model} is plugged in where it stood"
    where = "the first free slot" if options.slot is None else f"slot {options.slot}"
    return f"a rogue {options.model} is plugged into {where}"


def _add(options: argparse.Namespace) -> DeviceAdd:
    if options.device is not None:
        return DeviceAdd(place="as", device=options.device, detach=options.detach)
    if options.swap is not None:
        return DeviceAdd(place="swap", device=options.swap, model=options.model, detach=options.detach)
    return DeviceAdd(place="slot", slot=options.slot, model=options.model, detach=options.detach)


def _job(options: argparse.Namespace, text: str | None, device: str) -> Attack | Script:
    if text is None:
        return Attack(device=device, attacks=options.attacks, repeat=options.repeat)
    name = options.script.name[:_LONGEST_NAME]
    return Script(device=device, text=text, name=name, seconds=options.seconds, repeat=options.repeat)


def _script(path: Path) -> str:
    """Its text, which is Python; it is run by the device's process alone. Raises BadScript."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_SCRIPT:
            raise BadScript(f"{path}: longer than {MAX_SCRIPT} bytes")
        text = data.decode()
        ast.parse(text, path.name)
    except OSError as error:
        raise BadScript(f"{path}: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadScript(f"{path}{where}: {error.msg if isinstance(error, SyntaxError) else error}") from None
    return text


def _attacks(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    if names == ("all",):
        return ()
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown or not names:
        wrong = unknown[0] if unknown else text
        remedy = did_you_mean(wrong, CATALOGUE) or "name some of docs/attacks.md, such as A1,A2, or all"
        raise argparse.ArgumentTypeError(f'there is no attack "{wrong:.40}"; {remedy}')
    return names


def _slot(text: str) -> int:
    return _number(text, 1, DEVICES_PER_BUS - 1, "slot")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no time; give seconds, up to {MAX_SECONDS}")
    return seconds


def _repeat(text: str) -> int:
    return _number(text, 1, MAX_REPEAT, "number of repeats")


def _number(text: str, least: int, most: int, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no {what} from {least} to {most}")
    return int(text)
