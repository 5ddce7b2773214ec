"""Recordings of what QEMU 11.1.3 tells assigned devices: after each step our containers hold the same.

The messages themselves may differ: fewer, or in another order. Where QEMU keeps mappings that the tables no longer
have, or drops some that they do have, the scenario is listed with the reason, and our container equals the tables.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vtd.test_transcripts import SparseMemory, bdf
from viommu_actors.hypervisor.shadow import Ram, Shadow, Shadows
from viommu_actors.spec.vtd import Access
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.vtd.unit import RemappingUnit

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.jsonl*"))
Op = dict[str, Any]
#: first byte, end, guest-physical address (None: ROM, which the recording does not name), permission
Piece = tuple[int, int, int | None, str]

ROM = ((0xC_0000, 0x10_0000), (0xFFFC_0000, 0x1_0000_0000))

STALE = "QEMU keeps mappings that the tables no longer have"
LARGER = "QEMU maps no large page that is only partly RAM, or that crosses the interrupt range"
UNINVALIDATED = "software owes an invalidation of the context; ours reads it at every invalidation"
DIFFERENT = {
    "ctx_aw_3level_on_48": STALE,
    "ctx_did_change_domain": UNINVALIDATED,
    "ctx_pagesize_change_device_lenient": STALE,
    "iova_1g_over_interrupt_range": LARGER,
    "pt_domain": UNINVALIDATED,
    "pt_iotlb_flush_only": UNINVALIDATED,
    "qi_rsvd_descriptor": "ours fetches a bad descriptor again when IQE is cleared, and stops at it again",
    "random-004": STALE,
    "root_entry_cleared": STALE,
    "sp_split_1g_to_2m": STALE,
    "sp_strict_server": STALE,
    "stale_above_3level": STALE,
    "strict_split_in_place": STALE,
    "target_256m_end": LARGER,
}


class Container:
    """Mappings by address. `overwrite` is what a server does that accepts everything; else overlaps are errors."""

    def __init__(self, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._pieces: list[Piece] = []

    def put(self, first: int, size: int, gpa: int | None, permission: str) -> None:
        if self._overwrite:
            self.cut(first, size)
        assert not self._overlapping(first, size)
        self._pieces.append((first, first + size, gpa, permission))

    def cut(self, first: int, size: int) -> None:
        last_end = first + size
        for piece in self._overlapping(first, size):
            begin, end, gpa, permission = piece
            self._pieces.remove(piece)
            assert self._overwrite or (first <= begin and end <= last_end), "a mapping is split"
            if begin < first:
                self._pieces.append((begin, first, gpa, permission))
            if end > last_end:
                self._pieces.append((last_end, end, None if gpa is None else gpa + last_end - begin, permission))

    def map(self, iova: int, gpa: int, size: int, access: Access) -> None:
        """The shadow's port. QEMU announces write-only pages as read and write."""
        rom = any(low <= gpa < high for low, high in ROM)
        self.put(iova, size, None if rom else gpa, "r" if access is Access.READ else "rw")

    def unmap(self, iova: int, size: int) -> None:
        self.cut(iova, size)

    def _overlapping(self, first: int, size: int) -> list[Piece]:
        return [piece for piece in self._pieces if piece[0] < first + size and first < piece[1]]

    def runs(self) -> list[Piece]:
        """In the fewest pieces."""
        runs: list[Piece] = []
        for begin, end, gpa, permission in sorted(self._pieces, key=lambda piece: piece[0]):
            if runs:
                start, stop, target, same = runs[-1]
                follows = gpa is None if target is None else gpa == target + begin - start
                if stop == begin and permission == same and follows:
                    runs[-1] = (start, end, target, same)
                    continue
            runs.append((begin, end, gpa, permission))
        return runs


class Replay:
    """Plays a recording; QEMU's containers beside ours."""

    def __init__(self, header: Op) -> None:
        platform = header["platform"]
        ram = [(int(low, 16), int(high, 16)) for low, high in header["ram"]]
        self.memory = SparseMemory(ram)
        self.shadows = Shadows()
        names = ("aw_bits", "caching_mode", "intremap", "device_iotlb", "snoop_control")
        config = UnitConfig(**{name: platform[name] for name in names})
        self.unit = RemappingUnit(config, self.memory, lambda address, data: None, self.shadows)
        guest = [Ram(0, 0xC_0000), Ram(0x10_0000, ram[0][1] - 0x10_0000)]
        guest += [Ram(low, high - low) for low, high in ram[1:]]
        guest += [Ram(low, high - low, Access.READ) for low, high in ROM]
        self.ours = {name: Container(overwrite=False) for name in header["devices"]}
        self.qemus = {name: Container(overwrite=True) for name in header["devices"]}
        for name, container in self.ours.items():
            self.shadows.add(Shadow(self.unit, bdf(name), container, self.memory, guest, lambda line: None))

    def run(self, op: Op) -> tuple[list[Piece], list[Piece]] | None:
        """For a `shadow` operation what QEMU's container holds now, and ours."""
        match op["op"]:
            case "mem_write":
                self.memory.write(int(op["addr"], 16), bytes.fromhex(op["data"]))
            case "mem_fill":
                word, step = int(op["word"], 16), int(str(op.get("step", 1)), 0)
                words = ((word + index * step) % 2**64 for index in range(op["len"] // 8))
                self.memory.write(int(op["addr"], 16), b"".join(value.to_bytes(8, "little") for value in words))
            case "reg_write":
                self.unit.write(int(op["offset"], 16), op["size"], int(op["value"], 16))
            case "system_reset":
                self.unit.reset()
            case "shadow":
                for message in op["expect"]:
                    self._apply(self.qemus[op["bdf"]], message)
                return self.qemus[op["bdf"]].runs(), self.ours[op["bdf"]].runs()
        return None

    def _apply(self, container: Container, message: Op) -> None:
        if message["type"] == "device_reset" or message.get("server_reply"):
            return
        first, size = int(message["iova"], 16), int(message["size"], 16)
        if message["type"] == "map":
            gpa = message["gpa"]
            container.put(first, size, None if gpa is None else int(gpa, 16), message["perm"])
        else:
            container.cut(first, size)


def operations(path: Path) -> Iterator[Op]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.partition(".")[0])
def test_container_holds_what_qemus_holds(path: Path) -> None:
    lines = operations(path)
    header = next(lines)
    replay = Replay(header)
    results = [result for op in lines if (result := replay.run(op)) is not None]
    assert results
    same = all(recorded == here for recorded, here in results)
    name = path.name.partition(".")[0]
    if name in DIFFERENT:
        assert not same, "the exception is not needed"
    elif "improper" not in header["description"]:
        assert same
