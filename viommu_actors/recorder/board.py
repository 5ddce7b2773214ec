"""The recorded machine: a q35 with intel-iommu and an edu device for every requester id of a transcript.

edu is QEMU's teaching device (docs/specs/edu.txt): a DMA engine with a buffer of 4 KiB, and MSI. The buffer is loaded
while translation is still off, by DMA from memory; nothing reads it back but DMA.
"""

from __future__ import annotations

import time
from typing import Final

from viommu_actors.recorder.qtest import Qemu, QemuError
from viommu_actors.replay import transcript as t
from viommu_actors.spec import edu, pci, platform

#: The buffer's first half holds what devices write, the other half what they have read.
DATA_SIZE: Final = 0x800
_BAR_BASE: Final = 0xC000_0000
_BAR_SIZE: Final = 0x10_0000
_CONFIG_ADDRESS: Final = 0xCF8
_CONFIG_DATA: Final = 0xCFC
_ENABLE: Final = 1 << 31
#: The host bridge's PAM registers: RAM, not firmware, from 0xc0000 to 1 MiB.
_PAM: Final = (0x90, 0x94)
#: Where the video card's window covers RAM.
VIDEO_WINDOW: Final = (0xA_0000, 0xC_0000)
#: Seconds. An NMI that a message raised can keep the halted processor busy, and then no timer fires.
_DMA_PATIENCE: Final = 5.0
_LOW_LIMIT: Final = 0x8000_0000
_STAGING: Final = 0x10_0000


def arguments(header: t.Header) -> list[str]:
    """QEMU's command line. Raises QemuError where QEMU has no such machine."""
    options = header.platform
    if options.eim:
        raise QemuError("eim=on needs KVM in QEMU 7.2")
    ranges = header.ranges()
    if ranges[0][0] or len(ranges) > 2 or (len(ranges) == 2 and ranges[1][0] != platform.HIGH_MEMORY):
        raise QemuError("RAM of a q35 begins at 0, and again at 4 GiB")
    total = sum(high - low for low, high in ranges)
    if len(ranges) == 2 and ranges[0][1] != _LOW_LIMIT:
        raise QemuError("RAM above 4 GiB needs 2 GiB below")
    unit = ",".join(
        [
            "intel-iommu",
            f"aw-bits={options.aw_bits}",
            *(
                f"{name}={'on' if on else 'off'}"
                for name, on in (
                    ("caching-mode", options.caching_mode),
                    ("intremap", options.intremap),
                    ("pt", options.pt),
                    ("device-iotlb", options.device_iotlb),
                    ("snoop-control", options.snoop_control),
                    ("dma-drain", options.dma_drain),
                    ("dma-translation", options.dma_translation),
                )
            ),
        ]
    )
    devices = ["-machine", "q35", "-m", f"{total >> 20}M", "-device", unit]
    buses = sorted({t.bdf(name) >> 8 for name in header.devices} - {0})
    for number, bus in enumerate(buses):
        port = f"pcie-root-port,id=bus{bus},bus=pcie.0,addr={_port_slot(number, header):#x},chassis={bus},slot={bus}"
        devices += ["-device", port]
    for name in header.devices:
        requester = t.bdf(name)
        parent = f"bus{requester >> 8}" if requester >> 8 else "pcie.0"
        address = f"{requester >> 3 & 0x1F:#x}.{requester & 7}"
        devices += ["-device", f"edu,bus={parent},addr={address},multifunction=on,dma_mask=0xffffffffffffffff"]
    return devices


def _port_slot(number: int, header: t.Header) -> int:
    """A slot of bus 0 that no device of the transcript has, nor q35's own at 0 and 0x1f."""
    taken = {t.bdf(name) >> 3 for name in header.devices if not t.bdf(name) >> 8} | {0, 0x1F}
    return [slot for slot in range(0x20) if slot not in taken][-1 - number]


class Board:
    """Its devices made ready: bus numbers, BARs, bus mastering."""

    def __init__(self, qemu: Qemu, header: t.Header) -> None:
        self._qemu = qemu
        self._bars: dict[int, int] = {}
        self._loaded: dict[int, int] = {}
        for register in _PAM:
            self._write(0, register, 0x3333_3333)
        buses = sorted({t.bdf(name) >> 8 for name in header.devices} - {0})
        for number, bus in enumerate(buses):
            window = _BAR_BASE + (0x100 + number) * _BAR_SIZE
            port = _port_slot(number, header) << 3
            self._write(port, pci.PRIMARY_BUS, bus << 16 | bus << 8)
            self._write(port, pci.MEMORY_BASE, (window >> 16) | (window >> 16) << 16)
            self._write(port, pci.PREFETCH_BASE, 0x0000_FFF0)
            self._write(port, pci.COMMAND, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        for number, name in enumerate(header.devices):
            requester = t.bdf(name)
            if requester >> 8:
                bar = _BAR_BASE + (0x100 + buses.index(requester >> 8)) * _BAR_SIZE
            else:
                bar = _BAR_BASE + number * _BAR_SIZE
            self._bars[requester] = bar
            self._write(requester, pci.BAR0, bar)
            self._write(requester, pci.COMMAND, pci.Command.MEMORY | pci.Command.BUS_MASTER)
            if qemu.read_register(bar + edu.Reg.IDENTIFICATION, 4) != edu.IDENTIFICATION:
                raise QemuError(f"{name} is no edu")

    def load(self, requester: int, data: bytes) -> None:
        """Fills the first half of a device's buffer. Translation must be off."""
        held = self._qemu.read(_STAGING, len(data))
        self._qemu.write(_STAGING, data)
        self._start(requester, _STAGING, edu.BUFFER, len(data), 0)
        self._qemu.write(_STAGING, held)

    def unload(self, requester: int, offset: int, length: int) -> bytes:
        """What the buffer holds. Translation must be off."""
        self._start(requester, edu.BUFFER + offset, _STAGING, length, edu.DmaCommand.TO_MEMORY)
        return self._qemu.read(_STAGING, length)

    def dma_write(self, requester: int, address: int, offset: int, length: int) -> None:
        """From the buffer to memory."""
        self._start(requester, edu.BUFFER + offset, address, length, edu.DmaCommand.TO_MEMORY)

    def dma_read(self, requester: int, address: int, offset: int, length: int) -> None:
        """From memory to the buffer."""
        self._start(requester, address, edu.BUFFER + offset, length, 0)

    def msi(self, requester: int, address: int, data: int) -> None:
        """One MSI: 16 bits of data, as the capability has."""
        offset = self._capability(requester, pci.CapabilityId.MSI)
        control = self._read(requester, offset) >> 16
        self._write(requester, offset + pci.MSI_ADDRESS, address & 0xFFFF_FFFF)
        self._write(requester, offset + pci.MSI_ADDRESS_UPPER, address >> 32)
        self._write(requester, offset + pci.MSI_DATA_64, data)
        self._write(requester, offset, (control | pci.MSI_ENABLE) << 16)
        bar = self._bars[requester]
        self._qemu.write_register(bar + edu.Reg.INTERRUPT_RAISE, 4, 1)
        self._qemu.write_register(bar + edu.Reg.INTERRUPT_ACKNOWLEDGE, 4, 1)

    def _start(self, requester: int, source: int, target: int, length: int, direction: int) -> None:
        bar = self._bars[requester]
        write = self._qemu.write_register
        write(bar + edu.Reg.DMA_SOURCE, 8, source)
        write(bar + edu.Reg.DMA_DESTINATION, 8, target)
        write(bar + edu.Reg.DMA_COUNT, 8, length)
        write(bar + edu.Reg.DMA_COMMAND, 8, edu.DmaCommand.START | direction)
        deadline = time.monotonic() + _DMA_PATIENCE
        while self._qemu.read_register(bar + edu.Reg.DMA_COMMAND, 8) & edu.DmaCommand.START:
            if time.monotonic() > deadline:
                raise QemuError("a DMA does not end")

    def _capability(self, requester: int, kind: int) -> int:
        offset = self._read(requester, pci.CAPABILITY_POINTER) & 0xFC
        while offset:
            word = self._read(requester, offset)
            if word & 0xFF == kind:
                return offset
            offset = word >> 8 & 0xFC
        raise QemuError(f"no capability {kind:#x}")

    def _read(self, requester: int, offset: int) -> int:
        self._qemu.port_out(_CONFIG_ADDRESS, _ENABLE | requester << 8 | offset)
        return self._qemu.port_in(_CONFIG_DATA)

    def _write(self, requester: int, offset: int, value: int) -> None:
        self._qemu.port_out(_CONFIG_ADDRESS, _ENABLE | requester << 8 | offset)
        self._qemu.port_out(_CONFIG_DATA, value)
