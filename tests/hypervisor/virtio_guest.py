"""A guest with an emulated network card: its kernel, its machine, and a cable to a back end, in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from viommu_actors.hypervisor.machine import GuestMachine, VmConfig
from viommu_actors.hypervisor.virtio.function import VirtioNet
from viommu_actors.kernel.drivers.virtio_net import VirtioNetDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.memory import PhysicalMemory, Slot
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd_interrupts import Interrupt
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.wire.vhost import VHOST_DOWN, VHOST_UP

MIB = 1 << 20
RAM = 4 * MIB
SLOT = 4
BDF = pci.bdf(0, SLOT, 0)


class Beneath:
    """What a machine without assigned devices asks of the kernel beneath; `vectors` are its guest's interrupts."""

    def __init__(self) -> None:
        self.vectors: deque[int] = deque()

    def create_vm(self, name: str) -> int:
        return 1

    def mmap_ram(self, slot: str) -> int:
        return 0

    def set_memory(self, vm: int, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        return b""

    def signal_msi(self, vm: int, address: int, data: int) -> None:
        self.vectors.append(Interrupt.of_message(address, data).vector)


class Cable:
    """A vhost wire in one process, `front_end.BackEnd`: messages go through their codecs, and wait to be served."""

    def __init__(self, cables: list[Cable], guest: Guest) -> None:
        self._cables = cables
        self._guest = guest
        #: what takes the front end's messages
        self.port: Callable[[Any], None] = lambda message: None
        self.down: deque[Any] = deque()
        self.up: deque[Any] = deque()
        #: all that went down
        self.sent: list[Any] = []
        self.open = True
        #: Whether the back end takes what it is sent.
        self.listens = True
        cables.append(self)

    # --- for the front end

    @property
    def waits(self) -> bool:
        return not self.listens

    def send(self, message: Any) -> bool:
        if not self.open or not self.listens:
            return False
        decoded = VHOST_DOWN.decode(VHOST_DOWN.encode(message))
        self.down.append(decoded)
        self.sent.append(decoded)
        return True

    def wait(self, until: Callable[[], bool]) -> None:
        """Gives up when nobody has anything to say."""
        while not until() and serve(self._cables):
            pass

    def cut_off(self) -> None:
        self.open = False
        self.down.clear()
        self.up.clear()

    # --- for the back end

    def say(self, message: Any) -> None:
        if self.open:
            self.up.append(VHOST_UP.decode(VHOST_UP.encode(message)))

    def die(self) -> None:
        """The back end's process is gone."""
        self.cut_off()
        self._guest.card.front_end.lost()

    def step(self) -> bool:
        """One message each way; False where there was none."""
        if not self.waits:
            self._guest.card.front_end.room()
        served = bool(self.down or self.up)
        if self.down:
            self.port(self.down.popleft())
        if self.up:
            self._guest.card.front_end.receive(self.up.popleft())
        return served

    def kinds(self, kind: type) -> list[Any]:
        """What of a kind went down so far."""
        return [message for message in self.sent if type(message) is kind]


def serve(cables: list[Cable]) -> bool:
    """A step of each cable; False where nobody had anything to say."""
    stepped = [cable.step() for cable in cables]
    return any(stepped)


class Guest:
    """`kernel.machine.Machine` over a hypervisor's machine. Guests that share `cables` are served while one waits."""

    def __init__(
        self,
        viommu: UnitConfig | None = None,
        cmdline: str = "intel_iommu=on",
        number: int = 0,
        cables: list[Cable] | None = None,
    ) -> None:
        self.cables = [] if cables is None else cables
        self.lines: list[str] = []
        self.beneath = Beneath()
        self.memory = PhysicalMemory([Slot("ram", 0, memoryview(bytearray(RAM)))])
        self.mac = bytes((2, 0, 0, 0, 0, number))
        card = VirtioNet(f"vnet{number}", SLOT, self.mac)
        config = VmConfig("vm0", cmdline, viommu, True, (), (card,))
        self.vmm = GuestMachine(config, self.memory, self.beneath, self.lines.append)  # type: ignore[arg-type]
        self.vmm.build()
        self.card = self.vmm.virtio[card.name]
        self.kernel = Kernel(self)
        self._handler: Callable[[int], None] = lambda vector: None

    def boot(self) -> VirtioNetDriver:
        """The card's driver in the guest's kernel."""
        self.kernel.boot(platform.ZERO_PAGE)
        driver = self.kernel.drivers[BDF]
        assert isinstance(driver, VirtioNetDriver)
        return driver

    def connect(self) -> Cable:
        """A back end's connection."""
        cable = Cable(self.cables, self)
        self.card.front_end.connected(cable)
        return cable

    # --- Machine

    def mmio_read(self, address: int, size: int) -> int:
        value = self.vmm.read(address, size)
        assert isinstance(value, int) and 0 <= value < 1 << 8 * size
        return value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        assert self.vmm.write(address, size, value) is False
        while self.vmm.behind:
            self.vmm.go_on()

    def wait_for_interrupt(self, timeout: float) -> bool:
        while not self.beneath.vectors:
            if not serve(self.cables):
                return False
        while self.beneath.vectors:
            self._handler(self.beneath.vectors.popleft())
        return True

    def set_interrupt_handler(self, handler: Callable[[int], None]) -> None:
        self._handler = handler

    def log(self, line: str) -> None:
        self.lines.append(line)

    # --- of a test's own driver

    def config(self, offset: int) -> int:
        """Address of a register of the card's configuration space."""
        return platform.ECAM_BASE + pci.ecam_offset(BDF, offset)
