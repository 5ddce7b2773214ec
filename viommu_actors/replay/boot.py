"""The boot of a guest's IOMMU driver, replayed: every register access and invalidation descriptor, in order.

The recording has the writes and the descriptors, not the memory: the descriptors that a write of the queue's tail
makes known stand behind it, and are put into the queue first. Translations and interrupts are counted only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from viommu_actors.memory import Unclaimed
from viommu_actors.replay.image import Image
from viommu_actors.replay.memory import SparseMemory
from viommu_actors.replay.transcript import Hex, Malformed
from viommu_actors.spec.vtd import DESCRIPTOR_SIZE, TYPE_MASK, DescriptorType, Iqa, Reg, Status
from viommu_actors.vtd import RemappingUnit

#: All that a 32-bit machine with a hole has; tables are not in it, so that nothing is translated.
_RAM = [(0, 1 << 32)]
#: Registers whose final value is compared, as far as the image has them.
COMPARED = (
    *("GSTS", "RTADDR", "CCMD", "FSTS", "FECTL", "FEDATA", "FEADDR", "FEUADDR"),
    *("IQH", "IQT", "IQA", "ICS", "IECTL", "IEDATA", "IEADDR", "IEUADDR", "IRTA"),
)


class RegWrite(Struct, tag_field="op", tag="reg_write"):
    offset: Hex
    size: Literal[4, 8]
    value: Hex


class RegRead(Struct, tag_field="op", tag="reg_read"):
    offset: Hex
    size: Literal[4, 8]


class Descriptor(Struct, tag_field="op", tag="inv_desc"):
    type: str
    lo: Hex
    hi: Hex


class Translated(Struct, tag_field="op", tag="translate"):
    pass


class Remapped(Struct, tag_field="op", tag="ir_remap"):
    pass


class Faulted(Struct, tag_field="op", tag="fault"):
    pass


Step = RegWrite | RegRead | Descriptor | Translated | Remapped | Faulted
_DECODER = msgspec.json.Decoder(Step)


class Boot(NamedTuple):
    """`counts` by operation and descriptor type; `problems` what is not as it was."""

    counts: Counter[str]
    problems: list[str]


def read_steps(lines: Iterable[tuple[int, bytes]]) -> list[Step]:
    """Raises Malformed."""
    steps: list[Step] = []
    for number, line in lines:
        try:
            steps.append(_DECODER.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(number, str(error)) from None
    return steps


def replay_boot(image: Image, steps: list[Step]) -> Boot:
    """Runs it on a unit like the image's and compares the registers at the end with the image."""
    memory = SparseMemory(_RAM)
    unit = image.new_unit(memory)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    queue = _Queue(memory)
    for index, step in enumerate(steps):
        counts[str(step.__struct_config__.tag)] += 1
        if isinstance(step, RegRead):
            unit.read(int(step.offset, 16), step.size)
        elif isinstance(step, RegWrite):
            offset, value = int(step.offset, 16), int(step.value, 16)
            written = queue.put(steps, index, counts) if offset == Reg.IQT else []
            if offset == Reg.IQA:
                queue.base = value & Iqa.BASE
                queue.size = 1 << (value & Iqa.QS) + Iqa.ENTRIES_SHIFT
            unit.write(offset, step.size, value)
            problems += [f"step {index + 1}: {problem}" for problem in _problems(unit, memory, written)]
    for name in COMPARED:
        register = image.state.registers.get(name)
        if register is not None:
            value = unit.read(int(register.offset, 16), register.size)
            if value != int(register.value, 16):
                problems.append(f"{name} is {value:#x} at the end; recorded is {register.value}")
    return Boot(counts, problems)


class _Queue:
    """The invalidation queue as software fills it."""

    def __init__(self, memory: SparseMemory) -> None:
        self.base = 0
        self.size = 1 << Iqa.ENTRIES_SHIFT
        self._memory = memory
        self._head = 0

    def put(self, steps: list[Step], index: int, counts: Counter[str]) -> list[Descriptor]:
        """The descriptors recorded behind this write of the tail."""
        written = []
        for step in steps[index + 1 :]:
            if isinstance(step, RegWrite):
                break
            if isinstance(step, Descriptor):
                counts[f"descriptor {step.type}"] += 1
                address = self.base + self._head * DESCRIPTOR_SIZE
                self._memory.write_u64(address, int(step.lo, 16))
                self._memory.write_u64(address + 8, int(step.hi, 16))
                self._head = (self._head + 1) % self.size
                written.append(step)
        return written


def _problems(unit: RemappingUnit, memory: SparseMemory, written: list[Descriptor]) -> list[str]:
    """What is not as it must be after a register write: faults, an idle queue, status words not written."""
    problems = []
    if fault := unit.read(Reg.FSTS, 4):
        problems.append(f"FSTS is {fault:#x}")
    if unit.read(Reg.GSTS, 4) & Status.QIES and unit.read(Reg.IQH, 8) != unit.read(Reg.IQT, 8):
        problems.append("descriptors are left in the queue")
    for descriptor in written:
        low, high = int(descriptor.lo, 16), int(descriptor.hi, 16)
        if low & TYPE_MASK == DescriptorType.WAIT and low >> 5 & 1:
            try:
                status = memory.read(high & ~3, 4)
            except Unclaimed:
                continue
            if status != (low >> 32).to_bytes(4, "little"):
                problems.append(f"the wait's status at {high & ~3:#x} was not written")
    return problems
