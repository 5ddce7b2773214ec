"""Address translation services: what travels in translation completions and invalidation messages.

PCI Express Base 5.0 chapter 10. An address range is a power of two of 4 KiB pages, naturally aligned, in one word:
with S set, the trailing ones of the address from bit 12 upwards tell its size (section 10.2.3.2).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from viommu_actors.spec.vtd_structures import ADDRESS_FIELD, PAGE_SHIFT

#: Bytes of a translation completion's entry, and dwords that a translation request asks for each.
ENTRY_SIZE: Final = 8
ENTRY_DWORDS: Final = 2
#: Most entries that one request may ask for: those of a read completion boundary of 64 bytes (section 10.2.4).
MAX_ENTRIES: Final = 8
#: NW in the address of a translation request: it needs no leave to write (section 10.2.2.5).
NO_WRITE: Final = 1 << 0
#: Invalidations are told apart by so many tags (section 10.3.1).
ITAGS: Final = 32
#: The completion count of an invalidation completion has three bits, of which 0 means eight (section 10.3.2).
MAX_COMPLETIONS: Final = 8

_WORD: Final = Struct(">Q")
_READ: Final = 1 << 0
_WRITE: Final = 1 << 1
_UNTRANSLATED_ONLY: Final = 1 << 2
_NON_SNOOPED: Final = 1 << 10
#: Place of S.
SIZE_SHIFT: Final = 11
_SIZE: Final = 1 << SIZE_SHIFT
#: log2 of the bytes of a range that is everything: S with bits 62:12 set and bit 63 clear.
EVERYTHING: Final = 64


def encode_range(first: int, shift: int) -> int:
    """The word of the 2^shift bytes from `first`, which is aligned to them."""
    if shift == PAGE_SHIFT:
        return first
    return first | (1 << shift - 1) - 1 & ADDRESS_FIELD | _SIZE


def decode_range(word: int) -> tuple[int, int]:
    """First byte of a range, and log2 of its bytes. Bits 10:0 are not looked at."""
    if not word & _SIZE:
        return word & ADDRESS_FIELD, PAGE_SHIFT
    pages = word >> PAGE_SHIFT
    ones = (~pages & pages + 1).bit_length() - 1
    shift = min(PAGE_SHIFT + ones + 1, EVERYTHING)
    return word >> shift << shift, shift


class TranslationEntry(NamedTuple):
    """One entry of a translation completion (section 10.2.3): 2^shift bytes at `address`, and the leave R and W.

    Without either leave the address means nothing. `untranslated_only` (U): not to be used in translated requests.
    """

    address: int
    shift: int
    access: int
    """Bits of `vtd.Access`."""
    untranslated_only: bool = False
    non_snooped: bool = False

    def encode(self) -> bytes:
        flags = self.access & (_READ | _WRITE) | (_UNTRANSLATED_ONLY if self.untranslated_only else 0)
        return _WORD.pack(encode_range(self.address, self.shift) | flags | (_NON_SNOOPED if self.non_snooped else 0))

    @classmethod
    def decode(cls, data: bytes) -> TranslationEntry:
        """Of `ENTRY_SIZE` bytes."""
        (word,) = _WORD.unpack(data)
        address, shift = decode_range(word)
        return cls(
            address, shift, word & (_READ | _WRITE), bool(word & _UNTRANSLATED_ONLY), bool(word & _NON_SNOOPED)
        )
