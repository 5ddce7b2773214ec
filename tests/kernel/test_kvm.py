"""Memory slots, routes and irqfds."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENOTTY, EPERM
from typing import Any

import pytest

from viommu_actors.kernel.kvm import Kvm
from viommu_actors.kernel.process import EventFd, UserProcess

RAM, BAR = 0x10_0000_0000, 0xC000_0000
MIB = 1 << 20
ADDRESS = 0xFEE0_0000


class Ports:
    def __init__(self) -> None:
        self.lent: dict[bytes, tuple[int, int]] = {}
        self.injected: list[tuple[str, int]] = []
        self.notified: list[tuple[str, int]] = []

    def lend_bar(self, physical_address: int, size: int) -> bytes:
        token = b"token%d" % len(self.lent)
        self.lent[token] = (physical_address, size)
        return token

    def revoke(self, token: bytes) -> None:
        del self.lent[token]

    def inject(self, vm_name: str, vector: int) -> None:
        self.injected.append((vm_name, vector))

    def notify(self, process_name: str, eventfd: int) -> None:
        self.notified.append((process_name, eventfd))


class Rig:
    def __init__(self) -> None:
        self.ports = Ports()
        self.process = UserProcess("hv", self.ports.notify)
        self.kvm = Kvm(self.ports, {"hv": "guest", "other hv": "other"})
        self.vm = self.kvm.create_vm(self.process, "guest")
        self.ram = self.process.map_memory(RAM, 16 * MIB)
        self.device = object()
        self.bar = self.process.map_bar(BAR, MIB, self.device)

    def set_memory(self, slot: int, gpa: int, size: int, vaddr: int) -> bytes:
        return self.kvm.set_memory(self.process, self.vm, slot, gpa, size, vaddr)

    def event(self) -> tuple[int, EventFd]:
        descriptor = self.process.eventfd()
        return descriptor, self.process.file(descriptor, EventFd)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("process", "name"), [("hv", "other"), ("hv", "nobody"), ("other hv", "guest"), ("app", "guest"), ("app", "app")]
)
def test_a_vm_is_its_own_hypervisors_alone(rig: Rig, process: str, name: str) -> None:
    stranger = UserProcess(process)
    with pytest.raises(OSError) as refused:
        rig.kvm.create_vm(stranger, name)
    assert refused.value.errno == EPERM and not stranger.files


def refused(code: int, call: Callable[..., object], *args: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == code, caught.value


def test_ram_has_no_token_and_a_bar_lends_its_channel(rig: Rig) -> None:
    assert rig.set_memory(0, 0, 16 * MIB, rig.ram) == b""
    token = rig.set_memory(1, 0xD000_0000, MIB, rig.bar)
    assert rig.ports.lent == {token: (BAR, MIB)}
    part = rig.set_memory(2, 0xD100_0000, 4096, rig.bar + 4096)
    assert rig.ports.lent[part] == (BAR + 4096, 4096)
    assert rig.set_memory(2, 0, 0, 0) == b""
    assert list(rig.ports.lent) == [token]


def test_a_slot_moves_but_does_not_change(rig: Rig) -> None:
    token = rig.set_memory(1, 0xD000_0000, MIB, rig.bar)
    assert rig.set_memory(1, 0xE000_0000, MIB, rig.bar) == token
    assert len(rig.ports.lent) == 1
    refused(EINVAL, rig.set_memory, 1, 0xE000_0000, MIB // 2, rig.bar)
    refused(EINVAL, rig.set_memory, 1, 0xE000_0000, MIB, rig.ram)


def test_slot_errors(rig: Rig) -> None:
    rig.set_memory(0, 0, 16 * MIB, rig.ram)
    refused(EEXIST, rig.set_memory, 1, 16 * MIB - 4096, MIB, rig.bar)
    refused(EINVAL, rig.set_memory, 1, 0xD000_0001, MIB, rig.bar)
    refused(EINVAL, rig.set_memory, 1, 0xD000_0000, 100, rig.bar)
    refused(EINVAL, rig.set_memory, 1, (1 << 64) - 4096, MIB, rig.bar)
    refused(EINVAL, rig.set_memory, 9, 0, 0, 0)
    refused(EINVAL, rig.set_memory, 40000, 0, 0x1000, rig.ram)
    refused(EFAULT, rig.set_memory, 1, 0xD000_0000, MIB, 0)
    refused(EFAULT, rig.set_memory, 1, 0xD000_0000, 2 * MIB, rig.bar)
    refused(EBADF, rig.kvm.set_memory, rig.process, 99, 0, 0, 4096, rig.ram)
    refused(ENOTTY, rig.kvm.set_memory, rig.process, rig.process.eventfd(), 0, 0, 4096, rig.ram)


def test_a_lost_bar_is_revoked(rig: Rig) -> None:
    rig.set_memory(0, 0, 16 * MIB, rig.ram)
    rig.set_memory(1, 0xD000_0000, MIB, rig.bar)
    rig.process.unmap_device(rig.device)
    assert not rig.ports.lent
    rig.set_memory(1, 16 * MIB, 4096, rig.process.map_memory(RAM + (1 << 30), 4096))


def test_irqfd_injects_by_its_route(rig: Rig) -> None:
    descriptor, event = rig.event()
    rig.kvm.irqfd(rig.process, rig.vm, descriptor, 5)
    event.signal()
    assert rig.ports.injected == []
    rig.kvm.set_routes(rig.process, rig.vm, [(5, ADDRESS, 0x41), (6, ADDRESS, 0x42)])
    event.signal()
    rig.kvm.set_routes(rig.process, rig.vm, [(5, ADDRESS, 0x51)])
    event.signal()
    rig.kvm.set_routes(rig.process, rig.vm, [])
    event.signal()
    assert rig.ports.injected == [("guest", 0x41), ("guest", 0x51)]
    assert rig.ports.notified == []


def test_without_irqfd_the_process_is_notified(rig: Rig) -> None:
    descriptor, event = rig.event()
    event.signal()
    assert rig.ports.notified == [("hv", descriptor)]
    rig.kvm.set_routes(rig.process, rig.vm, [(5, ADDRESS, 0x41)])
    rig.kvm.irqfd(rig.process, rig.vm, descriptor, 5)
    assert rig.ports.injected == [("guest", 0x41)], "what was pending is injected"
    refused(EBUSY, rig.kvm.irqfd, rig.process, rig.vm, descriptor, 6)
    rig.kvm.irqfd(rig.process, rig.vm, descriptor, 5, False)
    event.signal()
    assert len(rig.ports.notified) == 2
    assert event.read() == 1


@pytest.mark.parametrize(
    ("address", "data"),
    [
        (ADDRESS, 0x05),
        (ADDRESS, 0x441),
        (ADDRESS, 0x241),
        (0x1000, 0x41),
        (0xFEF0_0000, 0x41),
        (1 << 32 | ADDRESS, 0x41),
    ],
)
def test_messages_that_are_no_interrupt_are_lost(rig: Rig, address: int, data: int) -> None:
    rig.kvm.set_routes(rig.process, rig.vm, [(5, address, data)])
    descriptor, event = rig.event()
    rig.kvm.irqfd(rig.process, rig.vm, descriptor, 5)
    event.signal()
    rig.kvm.signal_msi(rig.process, rig.vm, address, data)
    assert rig.ports.injected == []
    rig.kvm.signal_msi(rig.process, rig.vm, ADDRESS, 0x41)
    assert rig.ports.injected == [("guest", 0x41)]


def test_route_errors(rig: Rig) -> None:
    refused(EINVAL, rig.kvm.set_routes, rig.process, rig.vm, [(5, ADDRESS, 0x41), (5, ADDRESS, 0x42)])
    refused(EINVAL, rig.kvm.set_routes, rig.process, rig.vm, [(5000, ADDRESS, 0x41)])
    refused(EINVAL, rig.kvm.irqfd, rig.process, rig.vm, rig.process.eventfd(), 5000)
    refused(EINVAL, rig.kvm.irqfd, rig.process, rig.vm, rig.vm, 5)


def test_release(rig: Rig) -> None:
    rig.set_memory(1, 0xD000_0000, MIB, rig.bar)
    descriptor, event = rig.event()
    rig.kvm.set_routes(rig.process, rig.vm, [(5, ADDRESS, 0x41)])
    rig.kvm.irqfd(rig.process, rig.vm, descriptor, 5)
    rig.kvm.release(rig.process)
    assert not rig.ports.lent
    event.signal()
    assert rig.ports.injected == rig.ports.notified == []
