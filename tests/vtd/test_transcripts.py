"""Recordings of QEMU 7.2 replayed against the unit: format `vtd-transcript/1`.

A unit that follows the specification is held to recordings of class `spec`; operations tagged `impl` and files of
class `qemu` are run, and what differs there is only listed. With quirks="qemu" everything must be the same.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from viommu_actors.memory import Unclaimed
from viommu_actors.spec.vtd import (
    INTERRUPT_FIRST,
    PAGE_SIZE,
    TYPE_MASK,
    Access,
    Command,
    DescriptorType,
    Reg,
    Status,
    requester_id,
)
from viommu_actors.vtd import RemappingUnit, UnitConfig, is_interrupt

FOLDER = Path(__file__).parent / "transcripts"
FILES = sorted(FOLDER.glob("*/*.jsonl"))
Op = dict[str, Any]

#: Lines of class `spec` whose recording shows a deviation of QEMU's without saying so, by scenario: advisory.
DEVIATIONS = {
    "inval/register_based_4byte": ((36,), "QEMU carries out a domain-selective context invalidation as a global one"),
    "translate/fpd": ((161, 162), "the record that FPD had to suppress at line 152 (reason 0xB) is still to be read"),
    "translate/super_3level_aw39": ((71, 72, 73), "the fault on a cached entry at line 70 is recorded"),
}


class SparseMemory:
    """RAM in half-open ranges, zero until written, a page allocated at its first write."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._pages: dict[int, bytearray] = {}

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        if not any(low <= address and address + length <= high for low, high in self._ranges):
            raise Unclaimed(address, length)
        while length:
            page, offset = divmod(address, PAGE_SIZE)
            count = min(length, PAGE_SIZE - offset)
            yield page, offset, count
            address, length = address + count, length - count

    def read(self, address: int, length: int) -> bytes:
        pages = self._pages
        return b"".join(
            bytes(pages[page][offset : offset + count]) if page in pages else bytes(count)
            for page, offset, count in self._pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        done = 0
        for page, offset, count in self._pieces(address, len(data)):
            target = self._pages.setdefault(page, bytearray(PAGE_SIZE))
            target[offset : offset + count] = data[done : done + count]
            done += count

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(8, "little"))


def bdf(text: str) -> int:
    bus, rest = text.split(":")
    device, function = rest.split(".")
    return requester_id(int(bus, 16), int(device, 16), int(function))


class Replay:
    """One freshly reset unit and what the recording does to it."""

    def __init__(self, header: Op, quirks: str) -> None:
        platform = header["platform"]
        self.memory = SparseMemory([(int(low, 16), int(high, 16)) for low, high in header["ram"]])
        self.interrupts: list[dict[str, str]] = []
        options = {
            "aw_bits": platform["aw_bits"],
            "caching_mode": platform["caching_mode"],
            "pass_through": platform["pt"],
            "intremap": platform["intremap"],
            "eim": platform["eim"],
            "device_iotlb": platform["device_iotlb"],
            "snoop_control": platform["snoop_control"],
            "dma_drain": platform["dma_drain"],
            "dma_translation": platform["dma_translation"],
            "quirks": quirks,
        }
        self.unit = RemappingUnit(UnitConfig(**options), self.memory, self._interrupt)

    def _interrupt(self, address: int, data: int) -> None:
        self.interrupts.append({"addr": hex(address), "data": hex(data)})

    def run(self, op: Op) -> dict[str, Any]:
        """Carries out one operation; the results, named and written as in the recording."""
        method = getattr(self, "_" + op["op"], None)
        return method(op) if method else {}

    def _mem_write(self, op: Op) -> dict[str, Any]:
        self.memory.write(int(op["addr"], 16), bytes.fromhex(op["data"]))
        return {}

    def _mem_fill(self, op: Op) -> dict[str, Any]:
        word = int(op["word"], 16)
        words = ((word + index) % 2**64 for index in range(op["len"] // 8))
        self.memory.write(int(op["addr"], 16), b"".join(value.to_bytes(8, "little") for value in words))
        return {}

    def _mem_read(self, op: Op) -> dict[str, Any]:
        return {"expect": self.memory.read(int(op["addr"], 16), op["len"]).hex()}

    def _reg_write(self, op: Op) -> dict[str, Any]:
        self.unit.write(int(op["offset"], 16), op["size"], int(op["value"], 16))
        return {}

    def _reg_read(self, op: Op) -> dict[str, Any]:
        mask = int(op.get("mask", "0xffffffffffffffff"), 16)
        return {"expect": hex(self.unit.read(int(op["offset"], 16), op["size"]) & mask)}

    def _irqs(self, op: Op) -> dict[str, Any]:
        sent, self.interrupts = self.interrupts, []
        return {"expect": sent}

    def _dma_write(self, op: Op) -> dict[str, Any]:
        data = bytes.fromhex(op["data"])
        return self._dma(op, len(data), data)

    def _dma_read(self, op: Op) -> dict[str, Any]:
        return self._dma(op, op["len"], None)

    def _msi(self, op: Op) -> dict[str, Any]:
        """Only what is no interrupt at all: remapping is held to its recordings where it is tested."""
        if is_interrupt(int(op["addr"], 16)):
            return {}
        result = self._dma(op, 4, int(op["data"], 16).to_bytes(4, "little"))
        return {"expect": "dma_" + result["expect"]}

    def _dma(self, op: Op, length: int, data: bytes | None) -> dict[str, Any]:
        address = int(op["addr"], 16)
        access = Access.READ if data is None else Access.WRITE
        segments: list[dict[str, Any]] = []
        reasons: list[int] = []
        got = b""
        done = 0
        while done < length:
            iova = address + done
            count = min(length - done, PAGE_SIZE - iova % PAGE_SIZE)
            segment: dict[str, Any] = {"iova": hex(iova), "len": count, "result": "ok"}
            piece = bytes(count)
            if is_interrupt(iova):
                segment["result"] = "interrupt"
            else:
                translation = self.unit.translate(bdf(op["bdf"]), iova, access)
                if translation.reason is not None:
                    segment["result"] = "blocked"
                    reasons.append(int(translation.reason))
                else:
                    segment["gpa"] = hex(translation.address)
                    try:
                        if data is None:
                            piece = self.memory.read(translation.address, count)
                        else:
                            self.memory.write(translation.address, data[done : done + count])
                    except Unclaimed:
                        segment["result"] = "unclaimed"
            got += piece
            segments.append(segment)
            done += count
        results = {segment["result"] for segment in segments}
        outcome = results.pop() if len(results) == 1 else "partial"
        result: dict[str, Any] = {"expect": outcome, "segments": segments, "reasons": reasons}
        if data is None and outcome == "ok":
            result["expect_data"] = got.hex()
        return result


def difference(op: Op, result: dict[str, Any]) -> str | None:
    """What differs from the recording in what is to be compared, if anything."""
    for name in ("expect", "expect_data"):
        if name in op and name in result and op[name] != result[name]:
            return f"{name}: recorded {op[name]}, here {result[name]}"
    for recorded, here in zip(op.get("segments", ()), result.get("segments", ()), strict=True):
        if recorded.get("gpa") != here.get("gpa"):
            return f"gpa of {recorded['iova']}: recorded {recorded.get('gpa')}, here {here.get('gpa')}"
    reasons = [fault["reason"] for fault in op.get("faults", ()) if "reason" in fault]
    if reasons and reasons[:1] != result.get("reasons", [])[:1]:
        return f"fault: recorded {reasons[0]:#x}, here {[hex(reason) for reason in result['reasons']]}"
    return None


def replay(path: Path, quirks: str) -> tuple[list[str], list[str]]:
    """Differences that count, and advisory ones."""
    lines = path.read_text().splitlines()
    header: Op = json.loads(lines[0])
    machine = Replay(header, quirks)
    lenient = quirks == "spec" and header["class"] == "qemu"
    firm: list[str] = []
    advisory: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        op: Op = json.loads(line)
        found = difference(op, machine.run(op))
        if found is not None:
            lines_known, reason = DEVIATIONS.get(header["scenario"], ((), ""))
            note = reason if number in lines_known else op.get("impl")
            excused = lenient or (quirks == "spec" and note is not None)
            (advisory if excused else firm).append(f"line {number}, {op['op']}: {found} ({note})")
    return firm, advisory


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_specification(path: Path, record_property: Any) -> None:
    firm, advisory = replay(path, "spec")
    record_property("advisory", advisory)
    assert firm == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_qemu(path: Path) -> None:
    assert replay(path, "qemu") == ([], [])


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_tables_of_a_real_linux_guest(quirks: str) -> None:
    """Debian's 6.1 kernel, caching mode, 48 bits: its tables installed, 1,200 requests translated."""
    folder = FOLDER / "linux"
    state = json.loads((folder / "state.json").read_text())
    pages = gzip.decompress((folder / "pages.bin.gz").read_bytes())
    memory = SparseMemory([(0, 1 << 31)])
    for page in state["pages"]:
        if not page.get("zero"):
            memory.write(int(page["gpa"], 16), pages[page["offset"] : page["offset"] + PAGE_SIZE])
    config = UnitConfig(aw_bits=48, caching_mode=True, intremap=True, quirks=quirks)  # type: ignore[arg-type]
    unit = RemappingUnit(config, memory, lambda address, data: None)
    assert unit.read(Reg.CAP, 8) == int(state["registers"]["CAP"]["value"], 16)
    assert unit.read(Reg.ECAP, 8) == int(state["registers"]["ECAP"]["value"], 16)
    unit.write(Reg.RTADDR, 8, int(state["registers"]["RTADDR"]["value"], 16))
    unit.write(Reg.GCMD, 4, Command.SRTP)
    unit.write(Reg.GCMD, 4, Command.TE)
    assert unit.read(Reg.GSTS, 4) == Status.TES | Status.RTPS
    cases = json.loads((folder / "translations.json").read_text())
    assert len(cases) == 1200
    for case in cases:
        access = Access.WRITE if case["write"] else Access.READ
        translation = unit.translate(bdf(case["bdf"]), int(case["iova"], 16), access)
        if case["expect"] == "ok":
            assert translation == (int(case["gpa"], 16), None), case
        else:
            assert translation.reason == case["reason"], case
    counters = unit.counters
    assert counters["translations"] == 1200
    assert counters["faults"] == sum(case["expect"] == "fault" for case in cases)


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_registers_and_descriptors_of_a_real_linux_boot(quirks: str) -> None:
    """Every register write and invalidation descriptor of that kernel, in order: all are carried out."""
    folder = FOLDER / "linux"
    lines = gzip.decompress((folder / "boot_sequence.jsonl.gz").read_bytes()).decode().splitlines()
    ops: list[Op] = [json.loads(line) for line in lines]
    memory = SparseMemory([(0, 1 << 31)])
    config = UnitConfig(aw_bits=48, caching_mode=True, intremap=True, quirks=quirks)  # type: ignore[arg-type]
    unit = RemappingUnit(config, memory, lambda address, data: None)
    kinds: Counter[str] = Counter()
    head = base = 0
    for index, op in enumerate(ops):
        if op["op"] != "reg_write":
            continue
        offset, value = int(op["offset"], 16), int(op["value"], 16)
        descriptors = []
        if offset == Reg.IQT:
            # The recording names the descriptors that the tail made known behind the write of the tail.
            for later in ops[index + 1 :]:
                if later["op"] == "reg_write":
                    break
                if later["op"] == "inv_desc":
                    descriptors.append((int(later["lo"], 16), int(later["hi"], 16)))
                    kinds[later["type"]] += 1
        elif offset == Reg.IQA:
            base = value & ~0xFFF
        for low, high in descriptors:
            memory.write_u64(base + head * 16, low)
            memory.write_u64(base + head * 16 + 8, high)
            head = (head + 1) % 256
        unit.write(offset, op["size"], value)
        assert unit.read(Reg.FSTS, 4) == 0
        if unit.read(Reg.GSTS, 4) & Status.QIES:
            assert unit.read(Reg.IQH, 8) == unit.read(Reg.IQT, 8) == head << 4
        for low, high in descriptors:
            if low & TYPE_MASK == DescriptorType.WAIT:
                assert memory.read(high, 4) == (low >> 32).to_bytes(4, "little")
    state = json.loads((folder / "state.json").read_text())["registers"]
    for name in ("GSTS", "RTADDR", "CCMD", "FECTL", "FEDATA", "FEADDR", "IQH", "IQT", "IQA", "ICS", "IECTL", "IRTA"):
        register = state[name]
        assert unit.read(int(register["offset"], 16), register["size"]) == int(register["value"], 16), name
    counters = unit.counters
    assert counters["waits"] == kinds["wait"] > 1000
    assert counters["interrupt_entry_invalidations"] == kinds["iec"]
    assert sum(counters[name] for name in ("iotlb_global", "iotlb_domain", "iotlb_page")) == kinds["iotlb"]


def test_interrupt_range_is_told_apart() -> None:
    assert is_interrupt(INTERRUPT_FIRST) and is_interrupt(0xFEEF_FFFF)
    assert not is_interrupt(INTERRUPT_FIRST - 1) and not is_interrupt(0xFEF0_0000)
