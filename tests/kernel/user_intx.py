"""A process with an edu in its hands, by VFIO or by UIO, over a real kernel, root complex and I/O APIC."""

from __future__ import annotations

from tests.devices.rig import Rig
from tests.kernel.users import ROOT
from viommu_actors.devices.edu import Edu
from viommu_actors.kernel.process import UserProcess
from viommu_actors.kernel.uio import Uio, UioFile
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec import edu, pci
from viommu_actors.spec.edu import Reg
from viommu_actors.spec.vfio import IrqAction, IrqIndex, RegionIndex

CMDLINE = "intel_iommu=on iommu=pt"


class User:
    """`woken` are the descriptors that were signalled, in order; `device` is the kernel's own view of the edu."""

    def __init__(self) -> None:
        self.rig = Rig({1: Edu, 5: Edu}, CMDLINE, intremap=True, drivers=())
        self.kernel = self.rig.kernel
        self.woken: list[int] = []
        self.process = UserProcess("user", lambda _, descriptor: self.woken.append(descriptor), ROOT)
        self.device = self.kernel.device(self.rig.bdf(1))
        self.other = self.kernel.device(self.rig.bdf(5))

    def ring(self, cause: int = 1) -> None:
        self.device.write(edu.BAR, Reg.INTERRUPT_RAISE, 4, cause)

    def see_to_it(self) -> None:
        self.device.write(edu.BAR, Reg.INTERRUPT_ACKNOWLEDGE, 4, 0xFFFF_FFFF)

    def settle(self) -> None:
        """Until no interrupt comes any more."""
        for _ in range(20):
            if not self.rig.wait_for_interrupt(0):
                return

    @property
    def wire(self) -> bool:
        """Whether the edu's wire is up."""
        self.rig.pump()
        return bool(self.rig.root.ports["slot1"].wires)


class UioUser(User):
    def __init__(self) -> None:
        super().__init__()
        self.uio = Uio(self.kernel)
        self.uio.bind(self.device.bdf)
        self.descriptor = self.uio.open(self.process, self.device.name)
        self.file = self.process.file(self.descriptor, UioFile)

    def let_through(self) -> None:
        command = self.uio.config_read(self.process, self.descriptor, pci.COMMAND + 1, 1)[0]
        cleared = command & ~(pci.Command.INTX_DISABLE >> 8)
        self.uio.config_write(self.process, self.descriptor, pci.COMMAND + 1, bytes([cleared]))


class VfioUser(User):
    def __init__(self) -> None:
        super().__init__()
        self.vfio = Vfio(self.kernel)
        self.vfio.bind(self.device.bdf)
        container = self.vfio.open_container(self.process)
        group = self.vfio.open_group(self.process, self.vfio.group_of(self.device.name))
        self.vfio.set_container(self.process, group, container)
        self.vfio.set_iommu(self.process, container)
        self.handle = self.vfio.get_device(self.process, group, self.device.name)
        self.set_command(pci.Command.MEMORY, pci.Command.MEMORY)

    def set_irqs(self, index: IrqIndex, *eventfds: int) -> None:
        self.vfio.set_irqs(self.process, self.handle, index, 0, eventfds)

    def act(self, action: IrqAction, index: IrqIndex = IrqIndex.INTX, start: int = 0, count: int = 1) -> None:
        self.vfio.act_on_irqs(self.process, self.handle, index, action, start, count)

    def command(self) -> int:
        config = RegionIndex.CONFIG
        return int.from_bytes(self.vfio.region_read(self.process, self.handle, config, pci.COMMAND, 4), "little")

    def set_command(self, bits: int, mask: int) -> None:
        value = (self.command() & 0xFFFF & ~mask | bits).to_bytes(2, "little")
        self.vfio.region_write(self.process, self.handle, RegionIndex.CONFIG, pci.COMMAND, value)
