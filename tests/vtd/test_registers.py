"""The register file: capabilities, masks, commands and reset; the names are OpenVMM's, QEMU's and kvm-unit-tests'."""

from __future__ import annotations

from typing import Any

import pytest

from viommu_actors.spec.vtd import Capability, Command, ExtendedCapability, Reg, Status
from viommu_actors.vtd import UnitConfig

#: CAP and ECAP of QEMU, by its options: read on QEMU 7.2 and 10.0.
ADVERTISED = [
    ({"aw_bits": 39}, 0x00D2008C22260206, 0xF42),
    ({"aw_bits": 39, "intremap": True}, 0x00D2008C22260206, 0xF00F4A),
    ({"aw_bits": 39, "intremap": True, "caching_mode": True}, 0x00D2008C22260286, 0xF00F4A),
    ({"intremap": True}, 0x00D2008C222F0606, 0xF00F4A),
    ({"intremap": True, "eim": True}, 0x00D2008C222F0606, 0xF00F5A),
    ({"intremap": True, "device_iotlb": True}, 0x00D2008C222F0606, 0xF00F4E),
    ({"intremap": True, "pass_through": False}, 0x00D2008C222F0606, 0xF00F0A),
    ({"intremap": True, "snoop_control": True}, 0x00D2008C222F0606, 0xF00FCA),
    ({"intremap": True, "dma_drain": False}, 0x0012008C222F0606, 0xF00F4A),
    ({"intremap": True, "dma_translation": False}, 0x00D2008C222F0006, 0xF00F4A),
]


@pytest.mark.parametrize(("options", "cap", "ecap"), ADVERTISED)
def test_ver_cap_ecap(rig: Any, options: dict[str, Any], cap: int, ecap: int) -> None:
    unit = rig(**options).unit
    assert unit.read(Reg.VER, 4) == 0x10
    assert unit.read(Reg.CAP, 8) == cap
    assert unit.read(Reg.ECAP, 8) == ecap


def test_q35_intel_iommu_stage_1_fixed_bits(rig: Any) -> None:
    """What QEMU's qtest checks of legacy mode, and kvm-unit-tests' SAGAW and SLLPS."""
    unit = rig(aw_bits=39).unit
    capability = Capability.decode(unit.read(Reg.CAP, 8))
    assert (capability.fault_offset, capability.fault_records) == (0x220, 1)
    assert (capability.domains, capability.max_address_mask) == (16, 18)
    assert capability.page_selective and capability.large_pages == 0b11
    assert (capability.widths, capability.address_width) == ((39,), 39)
    extended = ExtendedCapability.decode(unit.read(Reg.ECAP, 8))
    assert (extended.iotlb_offset, extended.queued_invalidation, extended.coherent) == (0xF0, True, False)


@pytest.mark.parametrize("quirks", ["spec", "qemu"])
def test_reset_restores_every_register(rig: Any, quirks: str) -> None:
    machine = rig(quirks=quirks)
    fresh = [machine.unit.read(offset, 4) for offset in range(0, 0x230, 4)]
    machine.context(0x18)
    machine.start(queue=True)
    machine.read(0x5000)
    for offset in range(0x20, 0x230, 4):
        if offset != Reg.IQT:
            machine.unit.write(offset, 4, 0xFFFF_FFFF)
    machine.submit((0, 0))
    machine.unit.reset()
    assert [machine.unit.read(offset, 4) for offset in range(0, 0x230, 4)] == fresh
    assert machine.listener.calls[-1] == ("reset",)
    assert machine.read(0x5000) == (0x5000, None)
    machine.tail = 0
    machine.start(queue=True)
    machine.submit_and_wait()


def test_gcmd_read_returns_zero_gsts_initial(rig: Any) -> None:
    unit = rig().unit
    assert unit.read(Reg.GSTS, 4) == 0
    unit.write(Reg.GCMD, 4, Command.SRTP)
    assert unit.read(Reg.GCMD, 4) == 0


def test_srtp_and_te_enable(rig: Any) -> None:
    machine = rig()
    machine.unit.write(Reg.RTADDR, 8, machine.root)
    assert machine.command(Command.SRTP) == Status.RTPS
    assert machine.command(Command.TE) == Status.RTPS | Status.TES
    assert machine.unit.translation_enabled
    assert machine.command(Command.TE, False) == Status.RTPS
    assert machine.listener.calls == [("root",), ("translation", True), ("translation", False)]


def test_sirtp_and_ire(rig: Any) -> None:
    machine = rig(intremap=True)
    machine.unit.write(Reg.IRTA, 8, 0x5000_000F)
    assert machine.command(Command.SIRTP) == Status.IRTPS
    assert machine.command(Command.IRE) == Status.IRTPS | Status.IRES
    assert machine.command(Command.IRE, False) == Status.IRTPS


def test_ire_rejected_without_irtps(rig: Any) -> None:
    """OpenVMM rejects it; here, as in QEMU, it is accepted. Without ECAP.IR there is no such bit."""
    assert rig(intremap=True).command(Command.IRE) == Status.IRES
    assert rig().command(Command.IRE) == 0


def test_cfi_toggle(rig: Any) -> None:
    """QEMU never shows it."""
    machine = rig(intremap=True)
    assert machine.command(Command.CFI) == Status.CFIS
    assert machine.command(Command.CFI, False) == 0
    assert rig(intremap=True, quirks="qemu").command(Command.CFI) == 0


def test_wbf_and_fault_log_commands_do_nothing(rig: Any) -> None:
    machine = rig()
    for bit in (Command.WBF, Command.SFL, Command.EAFL):
        assert machine.command(bit) == 0


def test_whole_command_word_counts(rig: Any) -> None:
    """A write of GCMD without TE switches translation off."""
    machine = rig()
    machine.start()
    machine.unit.write(Reg.GCMD, 4, Command.SRTP)
    assert machine.unit.read(Reg.GSTS, 4) == Status.RTPS


def test_irta_write_guard(rig: Any) -> None:
    unit = rig().unit
    unit.write(Reg.IRTA, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert unit.read(Reg.IRTA, 8) == 0xFFFF_FFFF_FFFF_F80F


def test_root_pointer_is_latched(rig: Any) -> None:
    machine = rig()
    machine.map(machine.context(0x18), 0x5000, 0x300000)
    machine.start()
    machine.unit.write(Reg.RTADDR, 8, 0)
    assert machine.read(0x5000) == (0x300000, None)
    assert machine.unit.context(0x18).domain == 1


def test_writable_bits(rig: Any) -> None:
    unit = rig().unit
    for offset, size, expected in (
        (Reg.RTADDR, 8, 0xFFFF_FFFF_FFFF_FC00),
        (Reg.FECTL, 4, 0x8000_0000),
        (Reg.FEDATA, 4, 0xFFFF),
        (Reg.FEADDR, 4, 0xFFFF_FFFC),
        (Reg.FEUADDR, 4, 0),
        (Reg.IEDATA, 4, 0xFFFF_FFFF),
        (Reg.IEADDR, 4, 0xFFFF_FFFC),
        (Reg.IQT, 8, 0x7FFF0),
        (Reg.IQA, 8, 0xFFFF_FFFF_FFFF_F807),
        (Reg.IVA, 8, 0),
        (Reg.PMEN, 4, 0),
        (Reg.VER, 4, 0x10),
    ):
        unit.write(offset, size, 0xFFFF_FFFF_FFFF_FFFF)
        assert unit.read(offset, size) == expected, hex(offset)


def test_32_bit_halves(rig: Any) -> None:
    unit = rig().unit
    unit.write(Reg.RTADDR, 4, 0x12345000)
    unit.write(Reg.RTADDR + 4, 4, 0x7F)
    assert unit.read(Reg.RTADDR, 8) == 0x7F_1234_5000
    assert (unit.read(Reg.RTADDR, 4), unit.read(Reg.RTADDR + 4, 4)) == (0x12345000, 0x7F)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (0, 2), (0, 16), (1, 4), (6, 8), (-4, 4), (0x22C, 8), (0x230, 4), (0xFFC, 4), (1 << 64, 4)],
)
def test_unmapped_offset_unsupported_size(rig: Any, offset: int, size: int) -> None:
    unit = rig().unit
    unit.write(offset, size, (1 << 8 * size) - 1)
    assert unit.read(offset, size) == 0
    assert unit.read(Reg.CAP, 8) == unit.config.capability()


def test_kvm_unit_tests_state(rig: Any) -> None:
    """Fault status 0; QI, RTPS, IRTPS, TES and IRES each enabled in turn."""
    machine = rig(aw_bits=39, intremap=True)
    machine.start(queue=True)
    machine.command(Command.SIRTP)
    status = machine.command(Command.IRE)
    assert status == Status.QIES | Status.RTPS | Status.IRTPS | Status.TES | Status.IRES
    assert machine.unit.read(Reg.FSTS, 4) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aw_bits": 57}, "aw_bits is 57; a unit has 39 or 48"),
        ({"eim": True}, "eim needs intremap"),
        ({"quirks": "xen"}, "quirks is 'xen'; there are 'spec' and 'qemu'"),
    ],
)
def test_no_unit_can_be_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnitConfig(**options)
