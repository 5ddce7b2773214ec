"""What others test of a VT-d unit, by their names: the index of it, and the cases that stand nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.vtd.conftest import DEVICE, Rig
from tests.vtd.test_interrupts import IrRig, remapped
from viommu_actors.spec.vtd import (
    Access,
    Command,
    ContextCacheInvalidate,
    ContextGranularity,
    FaultReason,
    Fsts,
    InterruptEntryInvalidate,
    InterruptFaultRecord,
    IotlbGranularity,
    IotlbInvalidate,
    Reg,
    Status,
)
from viommu_actors.spec.vtd_interrupts import InterruptEntry
from viommu_actors.vtd import Blocked, Compatible

#: Their name: file and test here.
INDEX = {
    "QEMU qtest /q35/intel-iommu/stage-1": "test_registers test_q35_intel_iommu_stage_1_fixed_bits",
    "QEMU qtest full CSR dump around system_reset": "test_registers test_reset_restores_every_register",
    "QEMU qtest /iommu-testdev/intel/legacy-pt, legacy-trans": "test_translate test_iommu_testdev_legacy_pt_and_trans",
    "kvm-unit-tests fault status, QI, RTPS, IRTPS, TES, IRES, SAGAW, SLLPS": "test_registers test_kvm_unit_tests_state",
    "kvm-unit-tests DMAR 4B memcpy": "test_acceptance test_kvm_unit_tests_dmar_4b_memcpy",
    "kvm-unit-tests IR IOAPIC, IR MSI": "test_acceptance test_kvm_unit_tests_ir_ioapic_and_msi",
    "OpenVMM ver, cap, ecap": "test_registers test_ver_cap_ecap",
    "OpenVMM gcmd_read_returns_zero, gsts_initial": "test_registers test_gcmd_read_returns_zero_gsts_initial",
    "OpenVMM srtp_and_te_enable": "test_registers test_srtp_and_te_enable",
    "OpenVMM te_rejected_without_rtps": "test_translate test_te_rejected_without_rtps",
    "OpenVMM ire_rejected_without_irtps": "test_registers test_ire_rejected_without_irtps",
    "OpenVMM sirtp_and_ire": "test_registers test_sirtp_and_ire",
    "OpenVMM wbf": "test_registers test_wbf_and_fault_log_commands_do_nothing",
    "OpenVMM qie_enable_disable": "test_queue test_qie_enable_disable",
    "OpenVMM ccmd invalidation": "test_caches test_ccmd_invalidation",
    "OpenVMM fsts_rw1c": "test_acceptance test_fsts_rw1c",
    "OpenVMM ppf_dynamic, frcd_hi_rw1c": "test_faults test_ppf_dynamic_frcd_hi_rw1c",
    "OpenVMM ics_rw1c": "test_queue test_wait_interrupts_and_iwc",
    "OpenVMM iqa_write_guard": "test_queue test_iqa_write_guard",
    "OpenVMM irta_write_guard": "test_registers test_irta_write_guard",
    "OpenVMM unmapped offset, unsupported size": "test_registers test_unmapped_offset_unsupported_size",
    "OpenVMM 32-bit halves": "test_registers test_32_bit_halves",
    "OpenVMM iotlb reg": "test_caches test_iotlb_register",
    "OpenVMM cfi_toggle": "test_registers test_cfi_toggle",
    "OpenVMM translate 4-level 4K": "test_translate test_translate_4_level_4k",
    "OpenVMM translate disabled": "test_translate test_translate_disabled_is_identity",
    "OpenVMM translate 3-level": "test_translate test_translate_3_level",
    "OpenVMM translate 2M": "test_translate test_translate_large_page",
    "OpenVMM translate passthrough": "test_translate test_translate_passthrough",
    "OpenVMM translate root not present": "test_translate test_translate_root_not_present",
    "OpenVMM translate context not present": "test_translate test_translate_context_not_present",
    "OpenVMM translate pte not present": "test_translate test_translate_pte_not_present",
    "OpenVMM translate write to RO": "test_translate test_translate_write_to_read_only",
    "OpenVMM translate PDE permission restricts": "test_translate test_translate_directory_permission_restricts",
    "OpenVMM translate FPD suppresses": "test_faults test_fpd_suppresses",
    "OpenVMM IR index with and without SHV": "test_interrupts test_index_without_and_with_subhandle",
    "OpenVMM IR basic": "test_acceptance test_ir_basic",
    "OpenVMM IR x2APIC dest": "test_interrupts test_x2apic_destinations_need_extended_interrupt_mode",
    "OpenVMM IR disabled passthrough, live transition": "test_acceptance test_ir_disabled_passthrough_live_transition",
    "OpenVMM IR IRTE P=0": "test_acceptance test_ir_irte_not_present",
    "OpenVMM IR posted rejected": "test_acceptance test_ir_posted_rejected",
    "OpenVMM IR IEC retranslates routes": "test_acceptance test_iec_retranslates_routes",
    "OpenVMM IR compat blocked, compat with CFIS": "test_interrupts test_compatibility_format",
    "OpenVMM IR verify SID": "test_interrupts test_verify_sid",
    "OpenVMM IR record fault": "test_acceptance test_ir_record_fault",
    "OpenVMM IR fault overflow": "test_interrupts test_fault_overflow_and_collapse_are_those_of_dma",
    "OpenVMM IR no-devid dropped": "test_interrupts test_no_devid_dropped",
    "OpenVMM end_to_end_linux_init_sequence": "test_acceptance test_end_to_end_linux_init_sequence",
}


@pytest.mark.parametrize("name", INDEX)
def test_the_index_names_tests_that_are_there(name: str) -> None:
    file, function = INDEX[name].split()
    text = (Path(__file__).parent / f"{file}.py").read_text()
    assert re.search(rf"^def {function}\(", text, re.MULTILINE)


def test_fsts_rw1c(rig: Any) -> None:
    """PFO and IQE are cleared by ones; PPF and FRI are not software's."""
    unit = rig()
    unit.start(queue=True)
    unit.read(0)
    unit.read(0, 0x0200)
    unit.submit((0xF, 0))
    assert unit.unit.read(Reg.FSTS, 4) == Fsts.PPF | Fsts.PFO | Fsts.IQE
    unit.unit.write(Reg.FSTS, 4, Fsts.PFO | Fsts.PPF | 0xFF00)
    assert unit.unit.read(Reg.FSTS, 4) == Fsts.PPF | Fsts.IQE
    unit.unit.write(Reg.FSTS, 4, 0)
    assert unit.unit.read(Reg.FSTS, 4) == Fsts.PPF | Fsts.IQE


def test_kvm_unit_tests_dmar_4b_memcpy(rig: Any) -> None:
    """Four bytes through IOVA 0 both ways: FPD=1, domain id = source id, three levels."""
    unit = rig(aw_bits=39)
    table = unit.context(DEVICE, fpd=True, domain=DEVICE, width=39)
    unit.map(table, 0, 0x40_0000)
    unit.start(queue=True)
    unit.memory.write(0x40_0000, b"\x78\x56\x34\x12")
    source = unit.read(0)
    target = unit.write(4)
    assert (source.reason, target.reason) == (None, None)
    unit.memory.write(target.address, unit.memory.read(source.address, 4))
    assert unit.memory.read(0x40_0004, 4) == b"\x78\x56\x34\x12"
    assert unit.unit.read(Reg.FSTS, 4) == 0


def test_kvm_unit_tests_ir_ioapic_and_msi() -> None:
    """The I/O APIC is a requester like any other; edu's MSI has an entry of its own."""
    ioapic = 0xFFF0
    rig = IrRig()
    rig.entry(0, vector=0xED, validation=1, source=ioapic)
    rig.entry(1, vector=0xEE, validation=1, source=DEVICE)
    assert rig.msi(0, requester=ioapic) == remapped(0, 0xED)
    assert rig.msi(1, requester=DEVICE) == remapped(1, 0xEE)
    assert rig.unit.read(Reg.FSTS, 4) == 0


def test_ir_basic() -> None:
    rig = IrRig()
    rig.entry(0, vector=0x42, destination=0x0300)
    assert rig.msi(0) == remapped(0, 0x42, 3)


def test_ir_disabled_passthrough_live_transition() -> None:
    rig = IrRig()
    rig.entry(0, vector=0x42)
    rig.command(Command.IRE, False)
    assert rig.msi(0) == Compatible(0xFEE00010, 0)
    rig.command(Command.IRE)
    assert rig.msi(0) == remapped(0, 0x42)
    rig.command(Command.IRE, False)
    assert rig.msi(0) == Compatible(0xFEE00010, 0)


def test_ir_irte_not_present() -> None:
    assert IrRig().msi(0) == Blocked(FaultReason.IR_NOT_PRESENT)


def test_ir_posted_rejected() -> None:
    """The unit offers no posted interrupts: IM is a reserved bit. QEMU ignores it."""
    for quirks, outcome in (("spec", Blocked(FaultReason.IR_ENTRY_RESERVED)), ("qemu", remapped(0, 0x42))):
        rig = IrRig(quirks=quirks)
        low, high = InterruptEntry(True, vector=0x42).encode()
        rig.words(0x60_0000, (low | 1 << 15, high))
        assert rig.msi(0) == outcome


def test_iec_retranslates_routes() -> None:
    """Who keeps routes is told of the entries, and finds the new ones when it asks."""
    rig = IrRig()
    routes: dict[int, Any] = {}
    units = [rig.unit]

    def changed(first: int, count: int) -> None:
        for index in range(first, min(first + count, 4)):
            routes[index] = units[-1].remap_interrupt(DEVICE, 0xFEE00010 | index << 5, 0)

    unit = type(rig.unit)(rig.config, rig.memory, lambda address, data: None, None, changed)
    units.append(unit)
    rig.unit = unit
    rig.entry(1, vector=0x41)
    unit.write(Reg.IRTA, 8, 0x60_0000 | 3)
    unit.write(Reg.GCMD, 4, Command.SIRTP)
    unit.write(Reg.GCMD, 4, Command.IRE)
    assert routes[1] == remapped(1, 0x41)
    rig.entry(1, vector=0x51)
    unit.write(Reg.IQA, 8, rig.queue)
    rig.command(Command.QIE)
    rig.submit_and_wait(InterruptEntryInvalidate(True, 1, 0).encode())
    assert routes[1] == remapped(1, 0x51)


def test_ir_record_fault() -> None:
    rig = IrRig()
    rig.msi(9)
    high = rig.unit.read(Reg.FRCD + 8, 8)
    assert InterruptFaultRecord.decode(rig.unit.read(Reg.FRCD, 8), high) == (DEVICE, FaultReason.IR_NOT_PRESENT, 9)
    assert rig.unit.read(Reg.FSTS, 4) == Fsts.PPF


def test_end_to_end_linux_init_sequence() -> None:
    """Queue, interrupt remapping, tables, translation, in the order of Linux's intel_iommu_init."""
    rig = Rig(intremap=True, caching_mode=True)
    table = rig.context(DEVICE)
    rig.unit.write(Reg.IQT, 4, 0)
    rig.unit.write(Reg.IQA, 8, rig.queue)
    assert rig.command(Command.QIE) == Status.QIES
    rig.unit.write(Reg.IRTA, 8, 0x60_0000 | 0xF)
    assert rig.command(Command.SIRTP) & Status.IRTPS
    rig.submit_and_wait(InterruptEntryInvalidate(False).encode())
    assert rig.command(Command.IRE) & Status.IRES
    rig.unit.write(Reg.RTADDR, 8, rig.root)
    assert rig.command(Command.SRTP) & Status.RTPS
    rig.submit_and_wait(
        ContextCacheInvalidate(ContextGranularity.GLOBAL).encode(), IotlbInvalidate(IotlbGranularity.GLOBAL).encode()
    )
    status = rig.command(Command.TE)
    assert status == Status.QIES | Status.IRTPS | Status.IRES | Status.RTPS | Status.TES
    rig.map(table, 0xFFFF_F000, 0x70_0000)
    rig.submit_and_wait(IotlbInvalidate(IotlbGranularity.PAGE, 1, 0xFFFF_F000, 0).encode())
    assert rig.unit.translate(DEVICE, 0xFFFF_F123, Access.READ) == (0x70_0123, None)
    rig.words(0x60_0000 + 16 * 20, InterruptEntry(True, vector=0x2A, validation=1, source=DEVICE).encode())
    assert rig.unit.remap_interrupt(DEVICE, 0xFEE00010 | 20 << 5, 0) == remapped(20, 0x2A)
    assert rig.unit.read(Reg.FSTS, 4) == 0
