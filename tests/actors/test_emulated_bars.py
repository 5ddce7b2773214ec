"""An application with an emulated card: its kernel lends what the hypervisor gives it, and is asked for nothing after.

All in one process: the guest's kernel and machine, the system calls, the accesses, and the application's own driver.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT
from typing import Any

import pytest

from tests.actors.test_hostile_requests import Box, _frames, _malformed
from tests.hypervisor.virtio_guest import BDF, MIB, Cable, Guest, serve
from viommu_actors.actors.app_calls import AppCalls
from viommu_actors.actors.emulated_bars import EmulatedBars
from viommu_actors.actors.kernel_service import KernelService
from viommu_actors.actors.lending_on import Channel, LendingOn, renew
from viommu_actors.actors.remote_system import RemoteSystem
from viommu_actors.app.commands import AppCommands
from viommu_actors.hypervisor.machine import is_config_space
from viommu_actors.kernel.sysfs import Sysfs
from viommu_actors.kernel.uio import Uio
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.memory import Slot
from viommu_actors.netdev import numbered_frame
from viommu_actors.spec import platform, virtio_pci
from viommu_actors.spec.privileges import Capability
from viommu_actors.vswitch.switch import Switch
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.wire import messages as m
from viommu_actors.wire.tally import Tally

CMDLINE = "intel_iommu=on hugepages=1 vfio_iommu_type1.allow_unsafe_interrupts=1"
HUGEPAGES = (2 * MIB, 2 * MIB)
NAME = "0000:00:04.0"
STATUS = virtio_pci.COMMON + virtio_pci.Common.DEVICE_STATUS
DEAD = 0xFF


class Lender(Guest):
    """A booted guest whose hypervisor lends its card's BARs to `app`."""

    def __init__(self, apps: tuple[str, ...] = ("app",), cables: list[Cable] | None = None) -> None:
        super().__init__(UnitConfig(caching_mode=True), CMDLINE, cables=cables)
        self.box = Box()
        self.emulated = EmulatedBars(self.vmm, self.box, "vm0.hypervisor", apps)  # type: ignore[arg-type]
        self.boot()
        self.device = self.kernel.device(BDF)
        self.bar = self.device.bars[virtio_pci.BAR]

    def mmio_write(self, address: int, size: int, value: int) -> None:
        super().mmio_write(address, size, value)
        if is_config_space(address):
            self.emulated.settle()

    def channel(self, address: int) -> Channel:
        """What the guest's CPU makes of the hypervisor's answer."""
        lent = self.emulated.lend(address)
        if not lent.token:
            raise OSError(EFAULT, "in no BAR")
        return Channel(lent.base, lent.base + lent.size, lent.token, emulated=True)

    def access(self, request: Any) -> Any:
        """The answer to an application's access."""
        self.emulated.serve(b"app", m.DIRECT.encode(request))
        return self.box.answers[-1]

    def status(self, token: bytes) -> int:
        return int(self.access(m.DirectRead(token, STATUS, 1)).value)


def test_a_lent_bar_is_read_and_written_as_by_the_kernel_and_counts_as_traps() -> None:
    guest = Lender()
    lent = guest.emulated.lend(guest.bar.address + 0x1234)
    assert (lent.base, lent.size, len(lent.token)) == (guest.bar.address, guest.bar.size, 16)
    assert guest.emulated.lend(guest.bar.address).token == lent.token, "one token a BAR"
    assert guest.access(m.DirectWrite(lent.token, STATUS, 1, 1)) == m.TrapDone(False)
    assert guest.status(lent.token) == guest.device.read(virtio_pci.BAR, STATUS, 1) == 1
    assert guest.emulated.traps == 2
    last = m.DirectRead(lent.token, guest.bar.size - 2, 2)
    assert guest.access(last).value == guest.device.read(virtio_pci.BAR, guest.bar.size - 2, 2)
    assert guest.access(m.DirectRead(lent.token, guest.bar.size - 2, 4)).value == 0xFFFF_FFFF


@pytest.mark.parametrize("address", [0, platform.REMAPPING_UNIT_BASE, platform.ECAM_BASE, 0xFFFF_FFFF_FFFF_F000])
def test_what_is_no_bar_is_not_lent(address: int) -> None:
    guest = Lender()
    assert not guest.emulated.lend(address).token
    with pytest.raises(OSError):
        guest.channel(address)


def test_nothing_is_lent_where_nobody_could_use_it() -> None:
    guest = Lender(apps=())
    assert not guest.emulated.lend(guest.bar.address).token
    assert not guest.emulated.serves(b"app")


def test_a_token_ends_with_the_decoding_of_its_bar_and_with_no_other() -> None:
    guest = Lender()
    token = guest.emulated.lend(guest.bar.address).token
    other = guest.emulated.lend(guest.device.bars[virtio_pci.MSIX_BAR].address).token
    assert token != other
    guest.device.set_bus_master(True)
    assert guest.status(token) == 0
    renew(guest.device)
    for dead in (token, other, b"", bytes(16)):
        assert guest.status(dead) == DEAD
        guest.access(m.DirectWrite(dead, STATUS, 1, 1))
    assert guest.device.read(virtio_pci.BAR, STATUS, 1) == 0
    assert guest.emulated.lend(guest.bar.address).token not in (token, other, b"")


def test_a_guest_in_the_guest_does_not_get_what_leads_to_the_hypervisor() -> None:
    guest = Lender()
    lending = LendingOn(guest, lambda: guest.kernel.pci, lambda vm, vector: None)
    with pytest.raises(OSError, match="not a whole BAR of a device"):
        lending.lend_bar(guest.bar.address, guest.bar.size)


@pytest.mark.parametrize("seed", range(4))
def test_an_application_reaches_what_was_lent_and_nothing_else(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    guest = Lender()
    touched: list[tuple[int, int, int]] = []
    read, write = guest.card.register_read, guest.card.register_write

    def watched(access: Callable[..., Any]) -> Callable[..., Any]:
        def note(bar: int, offset: int, size: int, *value: int) -> Any:
            touched.append((bar, offset, size))
            return access(bar, offset, size, *value)

        return note

    bars = guest.device.bars
    tokens = [guest.emulated.lend(bar.address).token for bar in bars.values()]
    guest.card.register_read, guest.card.register_write = watched(read), watched(write)  # type: ignore[method-assign]
    guest.vmm.read = guest.vmm.write = None  # type: ignore[assignment, method-assign]
    legal = [m.DIRECT.encode(m.DirectRead(token, offset, 4)) for token in tokens for offset in range(0, 0x5000, 0x7FE)]
    frames = legal + _frames(seed, m.DIRECT)
    for frame in frames:
        guest.emulated.serve(b"app", frame)
    tally = guest.emulated.tallies[0]
    assert tally.malformed == _malformed(frames, m.DIRECT) > 500
    assert len(guest.box.answers) == len(frames) - tally.malformed
    assert 10 < capsys.readouterr().err.count("that is none") < 15
    assert touched and all(offset + size <= bars[bar].size and offset % size == 0 for bar, offset, size in touched)


# --- the application itself


class Wire:
    """A `Channel` to what serves it, without a socket."""

    def __init__(self, serve: Callable[[bytes, bytes], None], box: Box, out: Any) -> None:
        self._serve, self._box, self._out = serve, box, out

    def call(self, message: Any) -> Any:
        self._serve(b"app", self._out.encode(message))
        return self._box.answers[-1]

    def post(self, message: Any) -> None:
        raise AssertionError(f"{message} is posted to no device")


class App(RemoteSystem):
    """An application on a guest's kernel; back ends work when it pauses."""

    def __init__(self, guest: Lender) -> None:
        self.guest = guest
        self.box = Box()
        kernel = guest.kernel
        vfio, uio = Vfio(kernel), Uio(kernel)
        calls = AppCalls(vfio, uio, Sysfs(kernel, vfio, uio), guest)
        service = KernelService(self.box, vfio, calls.calls, lambda process, eventfd: None)  # type: ignore[arg-type]
        self.tally = Tally("vfio:app", "vm0.guest")
        process = service.add_process(b"app", self.tally, {"hugepages-app": HUGEPAGES}, frozenset(Capability))
        process.mmu_notifiers.append(calls.area_gone)
        base, size = HUGEPAGES
        [ram] = guest.memory.slots
        super().__init__(
            Wire(service.serve, self.box, m.VFIO),  # type: ignore[arg-type]
            Wire(lambda peer, frame: None, self.box, m.DIRECT),  # type: ignore[arg-type]
            Wire(guest.emulated.serve, guest.box, m.DIRECT),  # type: ignore[arg-type]
            Slot("hugepages-app", base, ram.view[base : base + size]),
            None,  # type: ignore[arg-type]
        )

    def pause(self) -> None:
        serve(self.guest.cables)


@pytest.mark.parametrize("driver", ["vfio", "uio"])
def test_an_applications_driver_brings_the_card_up_without_its_kernel(driver: str) -> None:
    guest = Lender()
    app = App(guest)
    commands = AppCommands(app, guest.log, bytes)
    told = commands.start({NAME.removeprefix("0000:"): driver})  # type: ignore[dict-item]
    if driver == "uio":
        # Where the kernel lets devices translate, it maps nothing for one of UIO; the registers are there all the same.
        assert told["iova"] == "PA"
    netdev = commands.handlers()["netdev"](bdf="00:04.0")
    assert netdev["mac"] == guest.mac and netdev["max_frame"] == 4084
    system_calls, traps = sum(app.tally.received.values()), guest.emulated.traps
    assert commands.handlers()["link_up"](bdf="00:04.0") is False
    assert sum(app.tally.received.values()) - system_calls <= 1, "no more than the fault of the first access"
    assert guest.emulated.traps - traps == 3, "the link's state, between the generation twice"


def test_an_application_and_a_kernel_talk_over_the_real_switch() -> None:
    cables: list[Cable] = []
    own, other = Lender(cables=cables), Guest(UnitConfig(), "intel_iommu=on", 1, cables)
    driver = other.boot()
    switch = Switch(lambda: 0.0)
    for guest in (own, other):
        cable = guest.connect()
        cable.port = switch.add(f"{guest.card.name} of {guest.mac.hex()}", cable.say).receive
    app = App(own)
    commands = AppCommands(app, own.log, bytes)
    commands.start({"00:04.0": "vfio"})
    do = commands.handlers()
    do["listen"](bdf="00:04.0")
    driver.listen()
    ends = {"size": 4084, "destination": own.mac, "source": driver.mac}
    for first in range(0, 200, 8):
        for number in range(first, first + 8):
            driver.send(numbered_frame(number, 4084, own.mac, driver.mac))
        assert do["receive"](bdf="00:04.0", first=first, count=8, **ends)
        do["send"](bdf="00:04.0", first=first, count=8, size=4084, destination=driver.mac)
        for number in range(first, first + 8):
            assert driver.receive() == numbered_frame(number, 4084, driver.mac, own.mac)
    assert not own.vmm.counters["virtio_blocked"]
    system_calls = sum(app.tally.received.values())
    do["send"](bdf="00:04.0", first=0, count=8, size=60, destination=driver.mac)
    assert sum(app.tally.received.values()) == system_calls


def test_what_the_application_had_it_has_not_once_it_has_closed_the_device() -> None:
    guest = Lender()
    app = App(guest)
    commands = AppCommands(app, guest.log, bytes)
    commands.start({"00:04.0": "vfio"})
    commands.handlers()["link_up"](bdf="00:04.0")
    token = app._windows[-1][2]
    assert guest.status(token) != DEAD
    assert commands._application is not None
    commands._application.close()
    assert guest.status(token) == DEAD
