"""Your own rogue: subclass `Rogue`, say in `run` what the device does, and attach it to a topology that is up:

    launch/rogue --as nic0 --script my_rogue.py

    from viommu_actors.rogue import Rogue

    class Mine(Rogue):
        def run(self):
            for page in self.targets.canaries["guest memory"]:
                self.dma_write(page, b"gotcha")

The script is run inside the confined device process, and nowhere else. Its calls look as if they waited: meanwhile the
device goes on answering its kernel. Whether it got at anything is judged by what everybody else saw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from viommu_actors.spec import pci
from viommu_actors.spec.tlp import AddressType

#: Most bytes of one `dma_read` or `dma_write`.
MAX_BYTES = 1 << 20
_ADDRESSES = 1 << 64

Ranges = tuple[tuple[int, int], ...]


class Targets(NamedTuple):
    """What an attacker could ever learn, by name: "guest memory" (for a device that a guest has), "host memory", and
    "other guest" where there is one.

    Addresses are those that the device would use: guest-physical for the memory of its own guest, host-physical for
    all else.
    """

    #: (base, size) in bytes of what the owner has.
    memory: Mapping[str, Ranges]
    #: Pages that nobody gave to the device, with secret content; each begins with `signature`.
    canaries: Mapping[str, tuple[int, ...]]
    signature: bytes
    #: A page that the device's driver has mapped for it, to read and write.
    own_page: int
    #: Address and data of a message that would raise a vector of the host which no device was given.
    interrupt: tuple[int, int]
    #: IDs of the other devices, such as "02:00.0".
    requesters: tuple[str, ...]


class Port(Protocol):
    """The device's end of its link."""

    @property
    def requester(self) -> int: ...

    def read(self, requester: int, address: int, length: int, at: int) -> bytes | None: ...

    def write(self, requester: int, address: int, data: bytes, at: int) -> None: ...

    def log(self, text: str) -> None: ...

    def report(self, text: str) -> None: ...


class Rogue:
    """A hostile device. Give it a `run`; and, to lie to the driver, `on_mmio_read` and `on_mmio_write`."""

    targets: Targets
    #: Seeded anew for every run.
    random: random.Random
    _port: Port
    _spoofed: int | None = None

    def run(self) -> None:
        """What it does; when this returns, the verdicts are drawn."""
        raise NotImplementedError("give your rogue a run(self)")

    # --- what it can do

    @property
    def requester(self) -> int:
        """Its own ID, which its kernel gave to it (bus << 8 | device << 3 | function)."""
        return self._port.requester

    def dma_read(self, address: int, length: int) -> bytes | None:
        """Reads up to 1 MiB; None where any of it was refused, or not answered within a second."""
        return self._read(address, length, AddressType.UNTRANSLATED)

    def dma_write(self, address: int, data: bytes) -> None:
        """Writes up to 1 MiB. A write is posted: nobody tells the device whether it arrived."""
        if not 0 <= address < _ADDRESSES or not 0 < len(data) <= MAX_BYTES:
            raise ValueError(f"no write of {len(data)} bytes at {address:#x}: 1 to {MAX_BYTES} bytes, 64-bit addresses")
        self._port.write(self._name, address, bytes(data), AddressType.UNTRANSLATED)

    def translated_read(self, address: int, length: int) -> bytes | None:
        """As `dma_read`, of an address which the device claims to be translated already (address type 2, see ATS)."""
        return self._read(address, length, AddressType.TRANSLATED)

    def msi(self, address: int, data: int) -> None:
        """Sends an interrupt message: a write of one dword."""
        if not 0 <= data < 1 << 32 or address & 3:
            raise ValueError(f"no message of {data:#x} at {address:#x}: a dword, at a multiple of 4")
        self.dma_write(address, data.to_bytes(4, "little"))

    @contextmanager
    def spoof(self, requester: str | int) -> Iterator[None]:
        """Within the block its requests bear this ID ("02:00.0" or a number).

        Answers to them go to whose ID it is, so that a read ends unanswered.
        """
        before, self._spoofed = self._spoofed, pci.parse_bdf(requester) if isinstance(requester, str) else requester
        try:
            yield
        finally:
            self._spoofed = before

    def log(self, text: str) -> None:
        """A line in the device's log."""
        self._port.log(str(text))

    def report(self, text: str) -> None:
        """Something to be shown beside the verdicts, as the rogue's own words. It decides nothing."""
        self._port.report(str(text))

    # --- what its driver does to it

    def on_mmio_read(self, bar: int, offset: int, size: int) -> int | None:
        """The answer to a read of one of its registers; None: that of the honest device."""
        return None

    def on_mmio_write(self, bar: int, offset: int, size: int, value: int) -> bool:
        """A write to one of its registers; True: the honest device does not hear of it."""
        return False

    # ---

    @property
    def _name(self) -> int:
        return self._port.requester if self._spoofed is None else self._spoofed

    def _read(self, address: int, length: int, at: int) -> bytes | None:
        if not 0 <= address < _ADDRESSES or not 0 < length <= MAX_BYTES:
            raise ValueError(f"no read of {length} bytes at {address:#x}: 1 to {MAX_BYTES} bytes, 64-bit addresses")
        return self._port.read(self._name, address, length, at)
