"""Interrupts of devices through a whole host that remaps them: honest ones arrive, forged ones are blocked by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.rig import Rig
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.pci.link import Outcome
from viommu_actors.pci.root_port import slot_name
from viommu_actors.spec import edu, nic, pci, tlp
from viommu_actors.spec.nic import Cause, Reg, Vector
from viommu_actors.spec.vtd import FaultReason
from viommu_actors.spec.vtd_interrupts import InterruptRequest

NIC, EDU = 1, 2
PAGE = 4096
COMPATIBILITY = 0xFEE0_0000


def a_nic(**options: Any) -> Any:
    return lambda send, log: Nic(send, log, mac=bytes([2, 0, 0, 0, 0, 1]), send_frame=lambda frame: None, **options)


def an_edu(send: Any, log: Any) -> Endpoint:
    return Edu(send, log)


def rig(options: str = "", msix: bool = True, **others: Any) -> Rig:
    return Rig({NIC: a_nic(msix=msix), EDU: an_edu}, f"intel_iommu=on {options}", intremap=True, **others)


def forge(machine: Rig, slot: int, address: int, data: int, requester: int | None = None) -> tuple[Outcome, int | None]:
    """One write that the device makes up; what its port says of it."""
    log = machine.root.start_log(slot_name(slot))
    source = machine.bdf(slot) if requester is None else requester
    machine.endpoints[slot].send(tlp.MemWrite(source, 0, address, 0xF, 0, data.to_bytes(4, "little")))
    machine.pump()
    machine.root.stop_log(slot_name(slot))
    (entry,) = log.entries
    return entry.outcome, entry.reason


def arrived(machine: Rig) -> int:
    """How many interrupts the kernel has taken, those on their way included."""
    machine.wait_for_interrupt(0)
    return machine.kernel.counters["interrupts"]


def message(machine: Rig, vector: int) -> tuple[int, int]:
    """(address, data) in an entry of the nic's MSI-X table."""
    device = machine.kernel.device(machine.bdf(NIC))
    low, high, data = (device.read(nic.MSIX_BAR, 16 * vector + at, 4) for at in (0, 4, 8))
    return high << 32 | low, data


@pytest.mark.parametrize("msix", [False, True])
@pytest.mark.parametrize("options", ["", "iommu=pt", "intremap=nosid", "intremap=off"])
@pytest.mark.parametrize("slot", [NIC, EDU])
def test_every_byte_arrives(slot: int, options: str, msix: bool) -> None:
    devices = {NIC: a_nic(msix=msix), EDU: lambda send, log: Edu(send, log, dma_bits=48)}
    machine = Rig(devices, f"intel_iommu=on edu.dma_bits=48 {options}", intremap=True)
    assert machine.driver(slot).run_io(20) == (20, 20 * PAGE, True, "dynamic")
    assert machine.kernel.iommu is not None and machine.kernel.iommu.take_faults() == ([], 0)
    assert machine.kernel.counters["spurious_interrupts"] == 0


def test_a_packet_costs_what_it_did_without_remapping() -> None:
    machine = rig(caching_mode=True)
    machine.driver(NIC).run_io(2)
    before = machine.kernel.counters.copy()
    machine.driver(NIC).run_io(20)
    spent = machine.kernel.counters - before
    assert spent["queue_tail_writes"] == 40 and spent["interrupts"] == 10
    assert not spent["interrupt_entry_invalidations"]


def test_the_nic_has_a_vector_for_each_kind_of_cause() -> None:
    machine = rig()
    device = machine.kernel.device(machine.bdf(NIC))
    controller = machine.endpoints[NIC]
    assert isinstance(controller, Nic)
    device.write(nic.BAR, Reg.CAUSE_ENABLE, 4, 0xF)
    machine.pump()
    log = machine.root.start_log(slot_name(NIC))
    controller.set_link(False)
    for cause in (Cause.TX_DONE, Cause.RX_DONE, Cause.ERROR):
        controller._raise(cause)
    machine.pump()
    expected = [message(machine, vector)[0] for vector in (Vector.OTHER, Vector.TRANSMIT, Vector.RECEIVE, Vector.OTHER)]
    assert [entry.address for entry in log.entries if entry.kind == "msi"] == expected


@pytest.mark.parametrize("msix", [False, True])
def test_an_error_of_the_controller_wakes_its_driver(msix: bool) -> None:
    machine = rig(msix=msix)
    device = machine.kernel.device(machine.bdf(NIC))
    iommu = machine.kernel.iommu
    assert iommu is not None
    domain = iommu.attached(device)
    assert domain is not None
    machine.driver(NIC).run_io(2)
    iommu.detach(device)
    with pytest.raises(OSError, match="ring halted"):
        machine.driver(NIC).run_io(2)
    iommu.attach(device, domain)
    assert machine.driver(NIC).run_io(2).verified


def test_without_msix_the_nic_uses_its_msi() -> None:
    machine = rig(msix=False)
    assert machine.driver(NIC).run_io(4).verified
    device = machine.kernel.device(machine.bdf(NIC))
    assert device.capability(pci.CapabilityId.MSIX) is None
    msi = device.capability(pci.CapabilityId.MSI)
    assert msi is not None
    address = device.config_read(msi + pci.MSI_ADDRESS, 4)
    assert InterruptRequest.decode(address, 0).subhandle_valid and address & 1 << 4


def test_a_removed_driver_leaves_nothing_behind() -> None:
    machine = rig()
    messages = [message(machine, vector) for vector in Vector]
    machine.kernel.unbind(machine.bdf(NIC))
    for address, data in messages:
        assert forge(machine, NIC, address, data) == (Outcome.FAULT, FaultReason.IR_NOT_PRESENT)
    machine.kernel.bind(machine.bdf(NIC))
    assert machine.driver(NIC).run_io(4).verified


def test_edus_interrupt_register() -> None:
    machine = rig()
    device = machine.kernel.device(machine.bdf(EDU))
    before = arrived(machine)
    device.write(edu.BAR, edu.Reg.INTERRUPT_RAISE, 4, 0x10)
    assert arrived(machine) == before + 1
    assert device.read(edu.BAR, edu.Reg.INTERRUPT_STATUS, 4) == 0, "the driver has acknowledged it"


# --- forged


def test_a_vector_of_the_compatibility_format_is_blocked() -> None:
    machine = rig()
    before = arrived(machine)
    for vector in (0x30, 0x31, 0xEF, 0x10):
        assert forge(machine, EDU, COMPATIBILITY, vector) == (Outcome.FAULT, FaultReason.IR_COMPATIBILITY_BLOCKED)
    machine.kernel.iommu.take_faults()  # type: ignore[union-attr]
    assert arrived(machine) == before + 1, "the fault event alone"


def test_without_remapping_the_kernel_takes_it() -> None:
    machine = rig("intremap=off")
    before = arrived(machine)
    assert forge(machine, EDU, COMPATIBILITY, 0x31) == (Outcome.OK, None)
    assert arrived(machine) == before + 1


def test_the_nics_handle_is_not_the_edus() -> None:
    machine = rig()
    address, data = message(machine, Vector.RECEIVE)
    assert forge(machine, EDU, address, data) == (Outcome.FAULT, FaultReason.IR_SOURCE_ID)
    assert forge(machine, NIC, address, data) == (Outcome.OK, None)
    assert machine.kernel.iommu is not None
    (record,), _ = machine.kernel.iommu.take_faults()
    assert (record.source, record.reason) == (machine.bdf(EDU), FaultReason.IR_SOURCE_ID)


def test_without_source_verification_the_edu_raises_the_nics_interrupt() -> None:
    machine = rig("intremap=nosid")
    before = arrived(machine)
    assert forge(machine, EDU, *message(machine, Vector.RECEIVE)) == (Outcome.OK, None)
    assert arrived(machine) == before + 1


@pytest.mark.parametrize("acs", [True, False])
def test_the_nics_name_does_not_help_the_edu_where_acs_checks_it(acs: bool) -> None:
    machine = rig(acs=acs)
    address, data = message(machine, Vector.RECEIVE)
    outcome = forge(machine, EDU, address, data, requester=machine.bdf(NIC))
    assert outcome == ((Outcome.ACS, None) if acs else (Outcome.OK, None))


@pytest.mark.parametrize(
    ("handle", "reason"),
    [(256, FaultReason.IR_INDEX), (0xFFFF, FaultReason.IR_INDEX), (200, FaultReason.IR_NOT_PRESENT)],
)
def test_handles_that_nobody_has(handle: int, reason: FaultReason) -> None:
    machine = rig()
    before = arrived(machine)
    assert forge(machine, EDU, *InterruptRequest(handle).encode()) == (Outcome.FAULT, reason)
    machine.kernel.iommu.take_faults()  # type: ignore[union-attr]
    assert arrived(machine) == before + 1, "the fault event alone"


@pytest.mark.parametrize("options", ["", "intremap=off"])
@pytest.mark.parametrize("size", [8, 64])
def test_a_wrong_size_is_no_interrupt_in_either(options: str, size: int) -> None:
    machine = rig(options)
    before = arrived(machine)
    log = machine.root.start_log(slot_name(EDU))
    machine.endpoints[EDU].send(tlp.MemWrite(machine.bdf(EDU), 0, COMPATIBILITY, 0xF, 0xF, bytes([0x31] * size)))
    machine.endpoints[EDU].send(tlp.MemRead(machine.bdf(EDU), 1, 0, COMPATIBILITY, 1, 0xF, 0))
    machine.pump()
    assert [entry.outcome for entry in log.entries] == [Outcome.INTERRUPT_RANGE] * 2
    assert arrived(machine) == before
