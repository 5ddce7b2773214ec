"""QEMU as a judge: the kernel's driver with QEMU's own virtio-net, behind QEMU's own intel-iommu, by qtest.

No guest runs there. This project's kernel boots on QEMU's machine as on any other: its accesses are QEMU's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.judges import require
from viommu_actors.firmware.boot import MachineDescription, install, remapping_unit
from viommu_actors.kernel.drivers.virtio_net import VirtioNetDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.netdev import numbered_frame
from viommu_actors.recorder.qtest import PROGRAM, Qemu
from viommu_actors.spec import pci, platform

pytestmark = pytest.mark.judge(PROGRAM)
SLOTS = (4, 5)
MACS = [bytes((2, 0, 0, 0, 0, slot)) for slot in SLOTS]
RAM = 16 << 20
MTU = 4070
#: Seconds in which all frames come, in QEMU's main loop.
PATIENCE = 10.0
_CONFIG_ADDRESS, _CONFIG_DATA, _ENABLE = 0xCF8, 0xCFC, 1 << 31
#: The host bridge's registers: where configuration space is, and RAM in place of firmware below 1 MiB.
_PCIEXBAR, _PAM = 0x60, (0x90, 0x94)


class Machine:
    """`kernel.machine.Machine` and its memory, in QEMU; no interrupt of it arrives here, so that a wait just looks."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self.memory = self
        self.lines: list[str] = []
        self._deadline = time.monotonic() + PATIENCE
        for register, value in ((_PCIEXBAR, platform.ECAM_BASE | 1), *((register, 0x3333_3333) for register in _PAM)):
            qemu.port_out(_CONFIG_ADDRESS, _ENABLE | register)
            qemu.port_out(_CONFIG_DATA, value)

    def mmio_read(self, address: int, size: int) -> int:
        return self._qemu.read_register(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self._qemu.write_register(address, size, value)

    def wait_for_interrupt(self, timeout: float) -> bool:
        time.sleep(0.001)
        return time.monotonic() < self._deadline

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        """Nobody calls it."""

    def log(self, line: str) -> None:
        self.lines.append(line)

    def read(self, address: int, length: int) -> bytes:
        return self._qemu.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        self._qemu.write(address, data)

    def read_u64(self, address: int) -> int:
        return self._qemu.read_register(address, 8)

    def write_u64(self, address: int, value: int) -> None:
        self._qemu.write_register(address, 8, value)

    def read_pair(self, address: int) -> tuple[int, int]:
        return self.read_u64(address), self.read_u64(address + 8)


@pytest.fixture(params=["", "iommu=pt", "virtio_net.static=00:04.0,00:05.0"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """Booted on QEMU's machine with two cards on one hub."""
    require(PROGRAM)
    arguments = ["-machine", "q35", "-m", f"{RAM >> 20}M", "-device", "intel-iommu,aw-bits=48,intremap=off"]
    for slot, mac in zip(SLOTS, MACS, strict=True):
        card = f"virtio-net-pci,netdev=port{slot},bus=pcie.0,addr={slot},mac={mac.hex(':')},host_mtu={MTU},romfile="
        arguments += ["-netdev", f"hubport,hubid=0,id=port{slot}"]
        arguments += ["-device", f"{card},disable-legacy=on,iommu_platform=on"]
    with Qemu(arguments) as qemu:
        machine = Machine(qemu)
        unit = remapping_unit(48)
        boot_params = install(machine, MachineDescription(((0, RAM),), f"intel_iommu=on {request.param}", unit))
        kernel = Kernel(machine, drivers=(VirtioNetDriver,))
        kernel.boot(boot_params)
        yield kernel


def test_frames_go_from_card_to_card_byte_for_byte(kernel: Kernel) -> None:
    drivers = [kernel.drivers[pci.bdf(0, slot, 0)] for slot in SLOTS]
    for driver, mac in zip(drivers, MACS, strict=True):
        assert isinstance(driver, VirtioNetDriver)
        assert (driver.mac, driver.max_frame, driver.link_up) == (mac, MTU + 14, True)
        driver.listen()
    for number in range(20):
        sender, receiver = drivers[:: 1 if number % 2 else -1]
        assert isinstance(sender, VirtioNetDriver) and isinstance(receiver, VirtioNetDriver)
        frame = numbered_frame(number, (22, 1514, 4084)[number % 3], receiver.mac, sender.mac)
        sender.send(frame)
        assert receiver.receive() == frame
    assert kernel.iommu is not None and kernel.iommu.take_faults() == ([], 0)
    for slot in SLOTS:
        kernel.unbind(pci.bdf(0, slot, 0))
    assert not kernel.live_buffers
