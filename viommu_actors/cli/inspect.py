"""`viommu inspect IMAGE`: what the VT-d tables of a recorded guest say."""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from viommu_actors.cli.exits import Exit
from viommu_actors.cli.transcripts import lines
from viommu_actors.replay.boot import read_steps, replay_boot
from viommu_actors.replay.image import Image, ImageError, MappedRange, read_state
from viommu_actors.replay.transcript import Malformed
from viommu_actors.spec.vtd import Access, FaultReason, Status
from viommu_actors.spec.vtd_interrupts import DeliveryMode, InterruptEntry, SourceValidation
from viommu_actors.vtd import Context

HELP = "print the VT-d tables of a recorded guest, or translate an address by them"
STATE = "state.json"
PAGES = "pages.bin.gz"
BOOT = "boot_sequence.jsonl.gz"
#: Largest state and, unpacked, largest dump that is read.
STATE_LIMIT = 64 << 20
DUMP_LIMIT = 1 << 30
#: Ranges of a domain that are printed without --all.
RANGES_SHOWN = 16

_PERMISSION = {Access.NONE: "none", Access.READ: "r", Access.WRITE: "w", Access.BOTH: "rw"}
_SIZES = ("4K", "2M", "1G")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help=f"a folder with {STATE} and {PAGES}")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--translate", nargs=2, metavar=("BDF", "IOVA"), help="what a request meets, say 00:05.0 0x4031b853 (hex)"
    )
    what.add_argument("--replay-boot", action="store_true", help=f"run {BOOT} on the project's unit")
    parser.add_argument("--write", action="store_true", help="the request is a write (default: a read)")
    parser.add_argument("--all", action="store_true", help="print every mapped range")


def run(options: argparse.Namespace) -> int:
    """See `cli.exits`; for --translate a fault is 1."""
    try:
        image = load(options.image)
        if options.translate:
            device, address = options.translate
            return _translate(image, device, address, Access.WRITE if options.write else Access.READ)
        if options.replay_boot:
            return _replay_boot(image, options.image / BOOT)
    except (ImageError, Malformed, OSError) as error:
        print(f"{options.image}: {error}", file=sys.stderr)
        return Exit.REFUSED
    for line in describe(image, None if options.all else RANGES_SHOWN):
        print(line)
    return Exit.AS_EXPECTED


def load(folder: Path) -> Image:
    """Raises ImageError, OSError."""
    if not folder.is_dir():
        raise ImageError(f"no folder; an image has {STATE} and {PAGES}")
    if (folder / STATE).stat().st_size > STATE_LIMIT:
        raise ImageError(f"{STATE}: larger than {STATE_LIMIT} bytes")
    state = read_state((folder / STATE).read_bytes())
    try:
        with gzip.open(folder / PAGES) as file:
            dump = file.read(DUMP_LIMIT + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ImageError(f"{PAGES}: {error}") from None
    if len(dump) > DUMP_LIMIT:
        raise ImageError(f"{PAGES}: more than {DUMP_LIMIT} bytes unpacked")
    return Image(state, dump)


def _translate(image: Image, device: str, address: str, access: Access) -> int:
    requester, iova = parse_bdf(device), parse_address(address)
    answer = image.translate(requester, iova, access)
    if answer.reason is not None:
        print(f"fault {answer.reason:#x}")
        print(answer.reason.text, file=sys.stderr)
        return Exit.DIFFERS
    level = f"level {answer.level}" if answer.level else "untranslated"
    print(f"ok {answer.address:#x} {level} {_PERMISSION[answer.access]}")
    return Exit.AS_EXPECTED


def parse_bdf(text: str) -> int:
    """Requester id of "00:05.0" or "0000:00:05.0". Raises ImageError."""
    match = re.fullmatch(r"(?:0000:)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])", text)
    if match is None:
        raise ImageError(f"{text!r} is no device; write it as 00:05.0")
    return int(match[1], 16) << 8 | int(match[2], 16) << 3 | int(match[3])


def parse_address(text: str) -> int:
    """A hexadecimal address. Raises ImageError."""
    if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", text) is None:
        raise ImageError(f"{text!r} is no address; write it as 0x4031b853")
    return int(text, 16)


def _replay_boot(image: Image, path: Path) -> int:
    boot = replay_boot(image, read_steps(lines(path)))
    for name, count in sorted(boot.counts.items()):
        print(f"{count:6} {name}")
    for problem in boot.problems:
        print(problem)
    if boot.problems:
        print(f"{len(boot.problems)} problems")
        return Exit.DIFFERS
    print("ok: every descriptor carried out, no fault, all registers at the end as recorded")
    return Exit.AS_EXPECTED


# --- the picture for a person


def describe(image: Image, shown: int | None) -> Iterator[str]:
    """Root, contexts, domains, mapped ranges, interrupt remapping table."""
    config = image.unit.config
    status = image.state.value("GSTS")
    names = ("TES", "RTPS", "QIES", "IRES", "IRTPS", "CFIS")
    on = [name for name in names if status & getattr(Status, name)]
    yield f"unit    {config.aw_bits} bits{', caching mode' * config.caching_mode}; on: {' '.join(on) or 'nothing'}"
    yield f"root    {image.state.value('RTADDR') & ~0xFFF:#x}"
    told: dict[tuple[int, int], str] = {}
    for requester, context in image.contexts():
        name = bdf_text(requester)
        if isinstance(context, FaultReason):
            yield f"{name} invalid: fault {context:#x}, {context.text}"
            continue
        yield f"{name} {_context(context)}"
        if context.pass_through:
            continue
        key = (context.table, context.levels)
        if key in told:
            yield f"        as {told[key]}"
            continue
        told[key] = name
        yield from _ranges(list(image.ranges(context)), shown)
    yield from _interrupts(image)


def bdf_text(requester: int) -> str:
    return f"{requester >> 8:02x}:{requester >> 3 & 0x1F:02x}.{requester & 7}"


def _context(context: Context) -> str:
    kind = "pass-through" if context.pass_through else f"{context.levels} levels at {context.table:#x}"
    extra = [", device IOTLB"] * context.device_iotlb + [", faults not recorded"] * context.fault_disable
    return f"domain {context.domain}, {kind}{''.join(extra)}"


def _ranges(ranges: list[MappedRange], shown: int | None) -> Iterator[str]:
    total = sum(mapped.size for mapped in ranges)
    pages = [sum(mapped.pages[kind] for mapped in ranges) for kind in range(3)]
    counts = ", ".join(f"{count} pages of {size}" for count, size in zip(pages, _SIZES, strict=True) if count)
    yield f"        {_bytes(total)} in {len(ranges)} ranges: {counts}" if ranges else "        nothing mapped"
    for mapped in ranges[:shown]:
        text = f"{mapped.iova:#x}-{mapped.last:#x} -> {mapped.address:#x} {_PERMISSION[mapped.access]}"
        yield f"        {text} {_bytes(mapped.size)}"
    if shown is not None and len(ranges) > shown:
        yield f"        … {len(ranges) - shown} more (--all)"


def _bytes(count: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift and not count & (1 << shift) - 1:
            return f"{count >> shift} {unit}"
    return f"{count} B"


def _interrupts(image: Image) -> Iterator[str]:
    value = image.state.value("IRTA")
    mode = "x2APIC ids" if value >> 11 & 1 else "xAPIC ids"
    yield f"interrupt remapping table {value & ~0xFFF:#x}, {2 << (value & 0xF)} entries, {mode}"
    for number, entry in image.interrupt_entries():
        yield f"{number:7} {_entry(entry)}"


def _entry(entry: InterruptEntry) -> str:
    try:
        delivery = DeliveryMode(entry.delivery_mode).name.lower().replace("_", " ")
    except ValueError:
        delivery = f"delivery mode {entry.delivery_mode}"
    target = f"{'logical' if entry.logical else 'APIC'} {entry.destination:#x}"
    text = f"vector {entry.vector:#04x} to {target}, {delivery}, {'level' if entry.level else 'edge'}; from "
    if entry.validation == SourceValidation.NONE:
        return text + "anyone"
    if entry.validation == SourceValidation.BUS_RANGE:
        return f"{text}buses {entry.source >> 8:02x}-{entry.source & 0xFF:02x}"
    ignored = ("", ", function bit 2 ignored", ", function bits 2:1 ignored", ", any function")[entry.qualifier]
    return f"{text}{bdf_text(entry.source)}{ignored}"
