"""System calls of applications: what is lent with a BAR and ends with it, and whatever a hostile one asks for."""

from __future__ import annotations

from errno import EACCES, EFAULT, EMFILE
from random import Random
from typing import Any

import pytest

from tests.actors.test_hostile_requests import Box, _frames, _malformed
from tests.kernel.fake_machine import MIB, FakeMachine, endpoint
from viommu_actors.actors.app_calls import AppCalls
from viommu_actors.actors.kernel_service import KernelService
from viommu_actors.actors.lending_on import Channel
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.process import DESCRIPTOR_LIMIT
from viommu_actors.kernel.sysfs import Sysfs
from viommu_actors.kernel.uio import Uio
from viommu_actors.kernel.vfio.vfio import Vfio
from viommu_actors.spec import pci
from viommu_actors.spec.privileges import Capability
from viommu_actors.vtd.config import UnitConfig
from viommu_actors.wire import messages as m
from viommu_actors.wire.tally import Tally

NIC = 0x18
NAME = "0000:00:03.0"
HUGEPAGES = (14 * MIB, 2 * MIB)
CMDLINE = "intel_iommu=on hugepages=1 vfio_iommu_type1.allow_unsafe_interrupts=1"


class Guest:
    """A guest kernel with one device, and an application; `decoding` is told of each change of memory decoding."""

    def __init__(self, root: bool = True, cmdline: str = CMDLINE) -> None:
        self.machine = FakeMachine(cmdline, UnitConfig(caching_mode=True), {NIC: endpoint(bars={0: MIB})})
        self.kernel = Kernel(self.machine, drivers=())
        self.kernel.boot(self.machine.boot_params)
        self.vfio, uio = Vfio(self.kernel), Uio(self.kernel)
        self.box = Box()
        calls = AppCalls(self.vfio, uio, Sysfs(self.kernel, self.vfio, uio), self)
        self.service = KernelService(self.box, self.vfio, calls.calls, lambda process, eventfd: None)  # type: ignore[arg-type]
        self.tally = Tally("vfio:app", "guest")
        capabilities = frozenset(Capability) if root else frozenset[Capability]()
        process = self.service.add_process(b"app", self.tally, {"hugepages-app": HUGEPAGES}, capabilities)
        process.mmu_notifiers.append(calls.area_gone)
        #: the channel of the BAR; another each time that decoding was off
        self.token = 1

    def channel(self, address: int) -> Channel:
        bar = self.kernel.device(NIC).bars[0]
        if not bar.address <= address < bar.address + bar.size:
            raise OSError(EFAULT, "no channel")
        return Channel(bar.address, bar.address + bar.size, bytes([self.token] * 16))

    def ask(self, request: Any) -> Any:
        self.service.serve(b"app", m.VFIO.encode(request))
        return self.box.answers[-1]

    def done(self, request: Any) -> int:
        answer = self.ask(request)
        assert isinstance(answer, m.Done), answer
        return answer.value

    def command_writes(self) -> list[int]:
        """What is written to the command register from here on."""
        written: list[int] = []
        space = self.machine.functions[NIC].space
        real = space.write

        def write(offset: int, size: int, value: int) -> None:
            if offset == pci.COMMAND:
                written.append(value)
            real(offset, size, value)

        space.write = write  # type: ignore[method-assign]
        return written


def test_a_bar_that_was_lent_is_taken_back_with_its_map() -> None:
    guest = Guest()
    guest.done(m.BindDriver(NAME, "uio_pci_generic"))
    uio = guest.done(m.OpenUio(NAME))
    vaddr = guest.done(m.UioMmap(uio, 0))
    assert guest.ask(m.PageFault(vaddr + 0x1234)) == m.Window(vaddr, MIB, bytes([1] * 16), emulated=False)
    written = guest.command_writes()
    guest.done(m.CloseHandle(uio))
    decoding = [bool(value & pci.Command.MEMORY) for value in written]
    assert decoding[:2] == [False, True], "off and on again: whoever lent the channel revokes it"
    assert guest.ask(m.PageFault(vaddr)).errno == EFAULT


def test_a_bar_that_nobody_touched_needs_no_taking_back() -> None:
    guest = Guest()
    guest.done(m.BindDriver(NAME, "uio_pci_generic"))
    uio = guest.done(m.OpenUio(NAME))
    guest.done(m.UioMmap(uio, 0))
    written = guest.command_writes()
    guest.done(m.CloseHandle(uio))
    assert all(value & pci.Command.MEMORY for value in written)


def test_memory_does_not_fault_and_has_physical_addresses_for_root_alone() -> None:
    guest = Guest()
    vaddr = guest.done(m.MmapRam("hugepages-app"))
    assert guest.ask(m.PageFault(vaddr)).errno == EFAULT
    assert guest.done(m.Pagemap(vaddr + 0x1234)) == HUGEPAGES[0] + 0x1234
    other = Guest(root=False)
    assert other.done(m.Pagemap(other.done(m.MmapRam("hugepages-app")))) == 0
    assert other.ask(m.Pagemap(0)).errno == EFAULT


def test_a_slot_that_is_mapped_again_is_where_it_was() -> None:
    guest = Guest()
    vaddr = guest.done(m.MmapRam("hugepages-app"))
    assert guest.done(m.MmapRam("hugepages-app")) == vaddr


def test_an_application_has_so_many_descriptors_and_no_more() -> None:
    guest = Guest()
    opened = [guest.done(m.OpenContainer()) for _ in range(3, DESCRIPTOR_LIMIT)]
    for request in (m.OpenContainer(), m.Eventfd()):
        assert guest.ask(request).errno == EMFILE
    guest.done(m.BindDriver(NAME, "vfio-pci"))
    group = guest.done(m.IommuGroup(NAME))
    assert guest.ask(m.OpenGroup(group)).errno == EMFILE
    guest.done(m.CloseHandle(opened[0]))
    # What found no descriptor is open to nobody.
    assert guest.done(m.OpenGroup(group)) == opened[0]


def test_a_group_is_roots() -> None:
    guest = Guest(root=False)
    guest.vfio.bind(NIC)
    refused = guest.ask(m.OpenGroup(guest.done(m.IommuGroup(NAME))))
    assert isinstance(refused, m.Failed) and refused.errno == EACCES and "CAP_DAC_OVERRIDE" in refused.reason


def test_the_hugepages_of_a_slot_are_those_that_its_kernel_reserved() -> None:
    assert Guest().kernel.hugepages == HUGEPAGES


def test_an_application_has_no_kvm() -> None:
    refused = Guest().ask(m.CreateVm("vm"))
    assert isinstance(refused, m.Failed) and "no CreateVm" in refused.reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("root", [False, True])
def test_a_kernel_answers_whatever_an_application_asks(seed: int, root: bool) -> None:
    """Its errors are errno; what it maps for it by VFIO is its own memory; memory of the kernel stays as it is."""
    guest = Guest(root)
    way = Random(seed).choice(["vfio-pci", "uio_pci_generic"])
    start = [m.MmapRam("hugepages-app"), m.BindDriver(NAME, way), m.OpenContainer(), m.OpenUio(NAME), m.UioMmap(3, 0)]
    frames = [m.VFIO.encode(message) for message in start] + _frames(seed, m.VFIO)
    for frame in frames:
        guest.service.serve(b"app", frame)
    assert guest.tally.malformed == _malformed(frames, m.VFIO) > 500
    assert len(guest.box.answers) == len(frames) - guest.tally.malformed
    guest.service.release(b"app")
    assert not guest.vfio.mappings
