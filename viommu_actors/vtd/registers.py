"""The register file: 32-bit words with the bits that software may write, clear or not see.

It knows how each bit behaves under an access, and nothing of what a write sets off (unit.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from viommu_actors.spec.vtd import (
    EVENT_ADDRESS_WRITABLE,
    FAULT_RECORD_SIZE,
    FAULT_RECORDED,
    FEDATA_WRITABLE,
    ICS_IWC,
    IEDATA_WRITABLE,
    QUEUE_INDEX_MASK,
    RTADDR_WRITABLE,
    U64_MASK,
    VERSION,
    Ccmd,
    Command,
    EventControl,
    Fsts,
    IotlbRegister,
    Iqa,
    Irta,
    Iva,
    Reg,
)
from viommu_actors.vtd.config import UnitConfig

_WORD: Final = 4
_WORD_MASK: Final = 0xFFFF_FFFF
#: Bytes of an access.
_SIZES: Final = (4, 8)
#: Bytes of the file; what lies beyond reads as zero.
FILE_SIZE: Final = Reg.FRCD + FAULT_RECORD_SIZE


class _Register(NamedTuple):
    offset: int
    reset: int = 0
    writable: int = 0
    write_1_clear: int = 0
    write_only: int = 0


def _definitions(config: UnitConfig) -> tuple[_Register, ...]:
    """Sections 11.4.1 to 11.4.29; a register without a writable bit that resets to zero needs no line."""
    return (
        _Register(Reg.VER, VERSION),
        _Register(Reg.CAP, config.capability()),
        _Register(Reg.ECAP, config.extended_capability()),
        _Register(Reg.GCMD, writable=Command.WRITABLE, write_only=Command.WRITABLE),
        _Register(Reg.RTADDR, writable=RTADDR_WRITABLE),
        _Register(Reg.CCMD, writable=Ccmd.WRITABLE, write_only=Ccmd.WRITE_ONLY),
        _Register(Reg.FSTS, write_1_clear=Fsts.WRITE_1_CLEAR),
        _Register(Reg.FECTL, EventControl.IM, EventControl.IM),
        _Register(Reg.FEDATA, writable=FEDATA_WRITABLE),
        _Register(Reg.FEADDR, writable=EVENT_ADDRESS_WRITABLE),
        _Register(Reg.IQT, writable=QUEUE_INDEX_MASK),
        _Register(Reg.IQA, writable=Iqa.WRITABLE),
        _Register(Reg.ICS, write_1_clear=ICS_IWC),
        _Register(Reg.IECTL, EventControl.IM, EventControl.IM),
        _Register(Reg.IEDATA, writable=IEDATA_WRITABLE),
        _Register(Reg.IEADDR, writable=EVENT_ADDRESS_WRITABLE),
        _Register(Reg.IRTA, writable=Irta.WRITABLE),
        _Register(Reg.IVA, writable=Iva.WRITABLE, write_only=U64_MASK),
        _Register(Reg.IOTLB, writable=IotlbRegister.WRITABLE),
        _Register(Reg.FRCD + 8, write_1_clear=FAULT_RECORDED),
    )


class RegisterFile:
    """Software's accesses (`read`, `write`) and the unit's own (`get*`, `set*`, `words`), which no mask limits."""

    def __init__(self, config: UnitConfig) -> None:
        count = FILE_SIZE // _WORD
        self._reset = [0] * count
        self._writable = [0] * count
        self._write_1_clear = [0] * count
        self._readable = [_WORD_MASK] * count
        for register in _definitions(config):
            for half in (0, 1):
                index, shift = register.offset // _WORD + half, 32 * half
                if not any(value >> shift for value in register[1:]):
                    break
                self._reset[index] = register.reset >> shift & _WORD_MASK
                self._writable[index] = register.writable >> shift & _WORD_MASK
                self._write_1_clear[index] = register.write_1_clear >> shift & _WORD_MASK
                self._readable[index] = ~(register.write_only >> shift) & _WORD_MASK
        #: By offset >> 2; it stays the same list.
        self.words = self._reset.copy()

    def reset(self) -> None:
        self.words[:] = self._reset

    def read(self, offset: int, size: int) -> int:
        """An access of 4 or 8 bytes, aligned to 4; any other reads as zero."""
        if size not in _SIZES or offset & 3 or not 0 <= offset <= FILE_SIZE - size:
            return 0
        index = offset >> 2
        value = self.words[index] & self._readable[index]
        if size == 8:
            value |= (self.words[index + 1] & self._readable[index + 1]) << 32
        return value

    def write(self, offset: int, size: int, value: int) -> bool:
        """An access of 4 or 8 bytes, aligned to 4; any other does nothing. Whether it was one."""
        if size not in _SIZES or offset & 3 or not 0 <= offset <= FILE_SIZE - size:
            return False
        self._write_word(offset >> 2, value & _WORD_MASK)
        if size == 8:
            self._write_word((offset >> 2) + 1, value >> 32 & _WORD_MASK)
        return True

    def _write_word(self, index: int, value: int) -> None:
        words, mask = self.words, self._writable[index]
        old = words[index] & ~(self._write_1_clear[index] & value)
        words[index] = old & ~mask | value & mask

    def get32(self, offset: int) -> int:
        return self.words[offset >> 2]

    def set32(self, offset: int, value: int) -> None:
        self.words[offset >> 2] = value

    def get64(self, offset: int) -> int:
        index = offset >> 2
        return self.words[index] | self.words[index + 1] << 32

    def set64(self, offset: int, value: int) -> None:
        index = offset >> 2
        self.words[index] = value & _WORD_MASK
        self.words[index + 1] = value >> 32

    def change32(self, offset: int, *, clear: int = 0, set_: int = 0) -> None:
        index = offset >> 2
        self.words[index] = self.words[index] & ~clear | set_
