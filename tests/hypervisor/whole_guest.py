"""A guest's machine over a real kernel: VFIO, KVM, IOMMU driver and unit beneath it, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.kernel.fake_machine import MIB, FakeFunction, FakeMachine, endpoint, root_port
from tests.kernel.users import ROOT
from viommu_actors.hypervisor.machine import Assignment, GuestMachine, VmConfig
from viommu_actors.hypervisor.parent import MapRequest
from viommu_actors.hypervisor.virtio.function import VirtioNet
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.vfio.calls import Region
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import pci, platform
from viommu_actors.vtd.config import UnitConfig

LENT = 4 << 30
GUEST_RAM = 2 * MIB
SLOTS = (3, 4)
CMDLINE = "intel_iommu=on vfio_iommu_type1.allow_unsafe_interrupts=1 vfio-pci.ids=01:00.0,02:00.0"


class Ports:
    """What the actor around the kernel does for KVM; `injected` are the guest's interrupts."""

    def __init__(self) -> None:
        self.lent: dict[bytes, tuple[int, int]] = {}
        self.injected: list[int] = []
        self._count = 0

    def lend_bar(self, physical_address: int, size: int) -> bytes:
        self._count += 1
        token = self._count.to_bytes(16, "big")
        self.lent[token] = (physical_address, size)
        return token

    def revoke(self, token: bytes) -> None:
        del self.lent[token]

    def inject(self, vm_name: str, vector: int) -> None:
        self.injected.append(vector)


class Beneath:
    """`ParentKernel` without a wire: the system calls of one process."""

    def __init__(self, kernel: Kernel, process: UserProcess) -> None:
        self.ports = Ports()
        self._vfio = Vfio(kernel)
        self._kvm = Kvm(self.ports, {process.name: "vm0"})
        self._process = process

    def __getattr__(self, name: str) -> Any:
        """The calls that VFIO or KVM have under the same name, with the process before their arguments."""
        call = getattr(self._vfio, name, None) or getattr(self._kvm, name)
        return lambda *arguments: call(self._process, *arguments)

    def map_dma_each(self, container: int, requests: Sequence[MapRequest]) -> list[OSError | None]:
        refused: list[OSError | None] = []
        for request in requests:
            try:
                self._vfio.map_dma(self._process, container, *request)
            except OSError as error:
                refused.append(error)
            else:
                refused.append(None)
        return refused

    def iommu_group(self, device: str) -> int:
        return self._vfio.group_of(device)

    def region_info(self, device: int, index: int) -> Region:
        return Region(*self._vfio.region_info(self._process, device, index))

    def irq_count(self, device: int, index: int) -> int:
        return self._vfio.irq_info(self._process, device, index).count

    def set_irqs(self, device: int, index: int, start: int, eventfds: tuple[int, ...]) -> None:
        self._vfio.set_irqs(self._process, device, index, start, eventfds)

    def mmap_ram(self, slot: str) -> int:
        return self._process.map_memory(LENT, GUEST_RAM)


def both_kinds_of_interrupt() -> FakeFunction:
    """A function with MSI and MSI-X, a plain BAR, one that traps and a 64-bit one."""
    function = endpoint(bars={0: MIB}, messages=4, msix=3)
    function.space.add_bar(4, 0x4000, is64=True)
    return function


class WholeGuest:
    """A guest with two assigned functions, built on a booted host; `machine` is its machine."""

    def __init__(
        self,
        viommu: UnitConfig | None = None,
        functions: tuple[FakeFunction, ...] = (),
        bypassing: tuple[int, ...] = (),
        virtio: tuple[VirtioNet, ...] = (),
    ) -> None:
        """`bypassing`: the slots of those that the vIOMMU is not for."""
        first, second = functions or (both_kinds_of_interrupt(), both_kinds_of_interrupt())
        self.host = FakeMachine(
            CMDLINE,
            UnitConfig(),
            {0x08: root_port(1, first), 0x10: root_port(2, second)},
            ((0, 16 * MIB), (LENT, GUEST_RAM)),
        )
        self.kernel = Kernel(self.host, drivers=())
        self.kernel.boot(self.host.boot_params)
        self.lines: list[str] = []
        process = UserProcess("hypervisor", lambda _, eventfd: self.machine.eventfd_signalled(eventfd), ROOT)
        self.beneath = Beneath(self.kernel, process)
        self.ram = next(slot.view for slot in self.host.memory.slots if slot.base == LENT)
        config = VmConfig(
            "vm0",
            "",
            viommu,
            True,
            tuple(
                Assignment(f"0000:{bus:02x}:00.0", slot, bypass_iommu=slot in bypassing)
                for bus, slot in zip((1, 2), SLOTS, strict=True)
            ),
            virtio,
        )
        memory = PhysicalMemory([Slot("ram", 0, self.ram)])
        self.machine = GuestMachine(config, memory, self.beneath, self.lines.append)
        self.machine.build()

    def config(self, slot: int, offset: int) -> int:
        """Address of a register of configuration space."""
        return platform.ECAM_BASE + pci.ecam_offset(pci.bdf(0, slot, 0), offset)

    def raise_all(self) -> None:
        """Every interrupt that the host kernel gave to a device comes."""
        for function in self.kernel.pci:
            for vector, _, _ in self.kernel.irq.messages_of(function.bdf):
                self.kernel.irq.dispatch(vector)
