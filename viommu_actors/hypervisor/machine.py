"""The machine that a guest sees: memory, firmware tables, a PCI bus, the vIOMMU, assigned devices.

Pure: traps come in as reads and writes of guest-physical addresses, and what the machine needs of
the kernel beneath goes out through `ParentKernel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from viommu_actors.counters import Counters
from viommu_actors.firmware.boot import MachineDescription, install, remapping_unit
from viommu_actors.hypervisor.assigned import AssignedFunction, Edit
from viommu_actors.hypervisor.bars import BarWindow
from viommu_actors.hypervisor.host_bridge import HostBridge
from viommu_actors.hypervisor.intx import Lines
from viommu_actors.hypervisor.mapping import GuestMapping
from viommu_actors.hypervisor.overlay import Decision
from viommu_actors.hypervisor.parent import ParentKernel
from viommu_actors.hypervisor.qemu_shadow import QemuShadow
from viommu_actors.hypervisor.routes import Routes
from viommu_actors.hypervisor.shadow import Ram, Shadow, Shadows
from viommu_actors.hypervisor.vectors import Delivery
from viommu_actors.hypervisor.virtio.function import VirtioNet, VirtioNetFunction
from viommu_actors.hypervisor.virtio.memory import FunctionMemory
from viommu_actors.memory import PhysicalMemory
from viommu_actors.spec import ioapic, pci, platform, vfio
from viommu_actors.spec.acpi import DeviceScope, ScopeType
from viommu_actors.vtd.config import CACHING_MODE_NEEDED, UnitConfig
from viommu_actors.vtd.interrupts import Blocked
from viommu_actors.vtd.listener import Effort
from viommu_actors.vtd.translator import is_interrupt
from viommu_actors.vtd.unit import RemappingUnit

VTD_BASE = platform.REMAPPING_UNIT_BASE
VTD_END = VTD_BASE + platform.REMAPPING_UNIT_SIZE
ECAM_SIZE = platform.ECAM_BUSES << 20
#: How many of the things that the kernel beneath refused are logged; all are counted.
_REFUSALS_LOGGED = 10
#: Entries of the guest's tables, or what costs as much, after which the rest of its invalidation queue has to wait.
_SLICE = 1 << 16


@dataclass(frozen=True)
class Assignment:
    """A device of the parent kernel ("0000:01:00.0") in a slot of the guest's bus 0.

    `bypass_iommu`: in one of the second root bus, which the vIOMMU is not for. The scopes of its DMAR table say so, as
    QEMU's do of a host bridge with bypass_iommu. It reaches all of the guest's memory, as devices do without a vIOMMU.
    """

    host: str
    slot: int
    edits: tuple[Edit, ...] = ()
    bypass_iommu: bool = False

    @property
    def bdf(self) -> int:
        """Its address in the guest."""
        return pci.bdf(platform.BYPASSING_BUS if self.bypass_iommu else 0, self.slot, 0)


@dataclass(frozen=True)
class VmConfig:
    """What the machine is built from; `viommu` None for a guest without one."""

    name: str
    cmdline: str
    viommu: UnitConfig | None
    #: False: interrupts of assigned devices go through the hypervisor instead of KVM's irqfd.
    irqfd: bool
    assignments: tuple[Assignment, ...]
    #: Network cards that the hypervisor emulates.
    virtio: tuple[VirtioNet, ...] = ()


@dataclass(frozen=True)
class Held:
    """An assigned device: its descriptors, and the number of its group."""

    host: str
    requester: int
    function: AssignedFunction
    device: int
    group: int
    container: int


class Register(NamedTuple):
    """A place in a BAR of an emulated function."""

    function: VirtioNetFunction
    bar: int
    offset: int

    @property
    def bar_size(self) -> int:
        return self.function.config.bars[self.bar].size

    def read(self, size: int) -> int:
        """All ones where there is nothing."""
        value = self.function.register_read(self.bar, self.offset, size)
        return (1 << size * 8) - 1 if value is None else value

    def write(self, size: int, value: int) -> None:
        self.function.register_write(self.bar, self.offset, size, value)


class GuestMachine:
    """Built by `build`; then `read` and `write` answer the traps of the guest's CPU."""

    def __init__(
        self, config: VmConfig, memory: PhysicalMemory, parent: ParentKernel, log: Callable[[str], None]
    ) -> None:
        self.config = config
        self.memory = memory
        self.counters = Counters()
        self._parent = parent
        self._log = log
        self._functions: dict[int, AssignedFunction | HostBridge | VirtioNetFunction] = {}
        self._assigned: list[AssignedFunction] = []
        #: Network cards that it emulates, by name.
        self.virtio: dict[str, VirtioNetFunction] = {}
        self._shadows = Shadows()
        #: of each assigned device, where there is a vIOMMU
        self.shadows: list[Shadow] = []
        self._slots = 0
        self._lines = Lines(self._line_raised)
        #: what it holds of the parent kernel, by the eventfd that asks for it back
        self._held: dict[int, Held] = {}
        #: open groups by their number
        self._groups: dict[int, int] = {}
        self._effort = Effort()
        self._bypassing = {each.bdf for each in config.assignments if each.bypass_iommu}
        self.unit: RemappingUnit | None = None
        if config.viommu is not None:
            if config.assignments and not config.viommu.caching_mode:
                raise ValueError(CACHING_MODE_NEEDED)
            self.unit = RemappingUnit(config.viommu, memory, self._signal, self._shadows, self._reroute)
            self.unit.limit(self._effort)

    def build(self) -> None:
        """Makes the VM and realizes every device, in QEMU's order. Raises OSError of the parent kernel."""
        parent = self._parent
        self._vm = parent.create_vm(self.config.name)
        self._delivery = Delivery(
            parent,
            self._vm,
            Routes(parent, self._vm),
            self._remap,
            self.counters,
            self._refused,
            self._lines,
            self.config.irqfd,
        )
        self._ram = [Ram(slot.base, slot.size) for slot in self.memory.slots]
        self._vaddrs = [parent.mmap_ram(slot.name) for slot in self.memory.slots]
        for ram, vaddr in zip(self._ram, self._vaddrs, strict=True):
            parent.set_memory(self._vm, self._next_slot(), ram.base, ram.size, vaddr)
        self._functions[0] = HostBridge()
        #: of the devices that no vIOMMU is for: they share one address space, that of all RAM
        shared: int | None = None
        for assignment in self.config.assignments:
            if self.unit is None or assignment.bypass_iommu:
                shared = self._assign(assignment, shared)
            else:
                # Behind a vIOMMU each has an address space of its own, hence a container.
                self._assign(assignment, None)
        for card in self.config.virtio:
            self._emulate(card)
        self._install_firmware()

    def _assign(self, assignment: Assignment, container: int | None) -> int:
        parent = self._parent
        requester = assignment.bdf
        number = parent.iommu_group(assignment.host)
        # Of devices in one group the first brings the group, and with it all of them, into its container.
        joined = number in self._groups and container is not None
        group = self._groups[number] if joined else parent.open_group(number)
        self._groups[number] = group
        if container is None:
            container = parent.open_container()
            parent.set_container(group, container)
            parent.set_iommu(container, vfio.IommuType.TYPE1V2)
            mapping = GuestMapping(parent, container, self._ram, self._vaddrs, self.counters)
            if self.unit is None or assignment.bypass_iommu:
                mapping.map_all()
            else:
                made_of = (self.unit, requester, mapping, self.memory, self._ram, self._log)
                if self.unit.config.quirks == "qemu":
                    self._shadows.add(QemuShadow(*made_of))
                else:
                    self.shadows.append(Shadow(*made_of, self._effort))
                    self._shadows.add(self.shadows[-1])
        elif not joined:
            parent.set_container(group, container)
        device = parent.get_device(group, assignment.host)
        function = AssignedFunction(self._delivery, device, requester, list(assignment.edits), self._next_slot)
        self._functions[requester] = function
        self._assigned.append(function)
        wanted_back = parent.eventfd()
        parent.set_irqs(device, vfio.IrqIndex.REQ, 0, (wanted_back,))
        self._held[wanted_back] = Held(assignment.host, requester, function, device, number, container)
        self._log(f"{assignment.host} assigned as {pci.format_bdf(requester)}")
        return container

    def _emulate(self, card: VirtioNet) -> None:
        requester, unit = card.bdf, self.unit

        def send_message(address: int, data: int) -> None:
            message = self._remap(requester, address, data, True) if is_interrupt(address) else None
            if message is not None:
                self.counters["interrupts_forwarded"] += 1
                self._signal(*message)

        memory = FunctionMemory(self.memory, unit, requester, self.counters)
        function = VirtioNetFunction(
            card, memory, unit is not None, send_message, self.counters, self._effort, self._log
        )
        self._functions[requester] = self.virtio[card.name] = function
        if unit is not None:
            unit.attach(requester)
            self._shadows.add(function.front_end.told)

    def _install_firmware(self) -> None:
        viommu = self.config.viommu
        install(
            self.memory,
            MachineDescription(
                ram=tuple((ram.base, ram.size) for ram in self._ram),
                command_line=self.config.cmdline,
                dmar=None if viommu is None else remapping_unit(viommu.aw_bits, viommu.intremap, self._scopes()),
            ),
        )

    def _scopes(self) -> tuple[DeviceScope, ...]:
        """The functions that the vIOMMU is for, where it is not for all."""
        if not any(assignment.bypass_iommu for assignment in self.config.assignments):
            return ()
        slots = [0, *(assignment.slot for assignment in self.config.assignments if not assignment.bypass_iommu)]
        slots += [card.slot for card in self.config.virtio]
        return tuple(DeviceScope(ScopeType.ENDPOINT, 0, 0, ((slot, 0),)) for slot in slots)

    def decisions(self, bdf: int) -> list[Decision]:
        """What of an assigned device's configuration space this machine decides."""
        function = self._functions[bdf]
        assert isinstance(function, AssignedFunction)
        return function.decisions()

    def _refused(self, what: str, error: OSError) -> None:
        """What a guest may ask for and cannot have does it no good, and the machine no harm."""
        self.counters["refused"] += 1
        if self.counters["refused"] <= _REFUSALS_LOGGED:
            self._log(f"{what}: {error.strerror}")

    # --- traps

    def read(self, address: int, size: int) -> int | BarWindow:
        """The value of an emulated read, or the window that the access is to go through."""
        if is_config_space(address):
            function, offset = self._config_target(address, size)
            return function.config_read(offset, size) if function else (1 << size * 8) - 1
        unit = self.unit
        if unit is not None and VTD_BASE <= address < VTD_END:
            return unit.read(address - VTD_BASE, size)
        if 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            return self._lines.controller.read(offset, size)
        for function in self._assigned:
            window = function.bars.at(address, size)
            if window is not None:
                return window if window.token else function.mmio_read(window, address, size)
        emulated = self.emulated(address, size)
        if emulated is not None:
            return emulated.read(size)
        self.counters["unassigned"] += 1
        return (1 << size * 8) - 1

    def write(self, address: int, size: int, value: int) -> bool | BarWindow:
        """Whether the guest's address map changed, or the window that the access is to go through."""
        unit = self.unit
        if unit is not None and VTD_BASE <= address < VTD_END:
            self._effort.left = _SLICE
            unit.write(address - VTD_BASE, size, value)
            return False
        if 0 <= (offset := address - platform.IOAPIC_BASE) < ioapic.SIZE:
            self._lines.controller.write(offset, size, value)
            return False
        if is_config_space(address):
            function, offset = self._config_target(address, size)
            changed = function is not None and function.config_write(offset, size, value)
            if changed:
                # Where one BAR went, there may be room for another.
                for assigned in self._assigned:
                    assigned.bars.settle()
            return changed
        for assigned in self._assigned:
            window = assigned.bars.at(address, size)
            if window is not None:
                if window.token:
                    return window
                assigned.mmio_write(window, address, size, value)
                return False
        emulated = self.emulated(address, size)
        if emulated is not None:
            emulated.write(size, value)
            return False
        self.counters["unassigned"] += 1
        return False

    def window(self, address: int) -> BarWindow | None:
        """The one of an assigned device that an address lies in; None where an access would trap."""
        windows = (function.bars.at(address, 1) for function in self._assigned)
        return next((window for window in windows if window is not None and window.token), None)

    def emulated(self, address: int, size: int) -> Register | None:
        """Of an emulated card, at a guest-physical address that it decodes."""
        for card in self.virtio.values():
            if place := card.place(address, size):
                return Register(card, *place)
        return None

    def _config_target(
        self, address: int, size: int
    ) -> tuple[AssignedFunction | HostBridge | VirtioNetFunction | None, int]:
        """Function and offset; no function for an access that no bridge makes a configuration request of."""
        function, offset = divmod(address - platform.ECAM_BASE, pci.CONFIG_SIZE)
        return self._functions.get(function) if pci.is_config_access(offset, size) else None, offset

    @property
    def behind(self) -> bool:
        """Whether the guest's invalidation queue has descriptors left over that were too much for one trap."""
        return self.unit is not None and self.unit.behind

    def go_on(self) -> None:
        """Carries out some more of them."""
        if self.unit is not None:
            self._effort.left = _SLICE
            self.counters["queue_pauses"] += 1
            self.unit.go_on()

    def _signal(self, address: int, data: int) -> None:
        """An interrupt that the vIOMMU raises itself, or an emulated function once it is remapped."""
        self._parent.signal_msi(self._vm, address, data)

    def _line_raised(self, address: int, data: int) -> None:
        """The I/O APIC's message, which the vIOMMU remaps as any other."""
        message = self._remap(platform.IOAPIC_SOURCE_ID, address, data, True)
        if message is not None:
            self._signal(*message)

    def eventfd_signalled(self, eventfd: int) -> None:
        """An interrupt that comes through the hypervisor, or a device that is wanted back."""
        if eventfd in self._held:
            self._give_back(eventfd)
            return
        for function in self._assigned:
            if any(each.vectors.signalled(eventfd) for each in function.interrupts):
                return
            if function.intx is not None and function.intx.signalled(eventfd):
                return

    def _give_back(self, eventfd: int) -> None:
        """A device is gone: nothing of it is kept, and the guest reads ones (QEMU: vfio_req_notifier_handler)."""
        parent, held = self._parent, self._held.pop(eventfd)
        held.function.unplug()
        del self._functions[held.requester]
        self._assigned.remove(held.function)
        if self.unit is not None:
            self._shadows.remove(held.requester)
            self.shadows = [shadow for shadow in self.shadows if shadow.requester != held.requester]
        parent.close(held.device)
        parent.close(eventfd)
        left = self._held.values()
        if all(other.group != held.group for other in left):
            parent.close(self._groups.pop(held.group))
        if all(other.container != held.container for other in left):
            parent.close(held.container)
        self._log(f"{held.host} is gone")

    def _remap(self, requester: int, address: int, data: int, record: bool) -> tuple[int, int] | None:
        """What the vIOMMU makes of an interrupt message; None where it is blocked."""
        if self.unit is None or requester in self._bypassing:
            return address, data
        outcome = self.unit.remap_interrupt(requester, address, data, record)
        return None if isinstance(outcome, Blocked) else outcome.interrupt.message()

    def _reroute(self, first: int, count: int) -> None:
        """Interrupt entries changed. As in QEMU, every route is computed anew, whichever entries they were."""
        for function in self._assigned:
            for each in function.interrupts:
                each.vectors.reroute()

    def _next_slot(self) -> int:
        self._slots += 1
        return self._slots - 1


def is_config_space(address: int) -> bool:
    """Whether an access there is one of configuration space."""
    return platform.ECAM_BASE <= address < platform.ECAM_BASE + ECAM_SIZE
