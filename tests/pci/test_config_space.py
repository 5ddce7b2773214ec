"""Configuration space: BAR sizing, read-only and write-one-to-clear bits, capability chains."""

from __future__ import annotations

import pytest

from viommu_actors.pci import config_space
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.spec import pci


def function() -> ConfigSpace:
    return config_space.endpoint_header(0x1234, 0x11E8, pci.ClassCode.UNCLASSIFIED_OTHER, 0x10)


def sized(space: ConfigSpace, index: int) -> int:
    """The answer to the sizing of a BAR as a kernel does it: write ones, read back."""
    space.write(pci.BAR0 + 4 * index, 4, 0xFFFF_FFFF)
    return space.read(pci.BAR0 + 4 * index, 4)


@pytest.mark.parametrize("size", [16, 0x1000, 0x10_0000, 0x8000_0000])
def test_a_bar_answers_sizing_with_its_size(size: int) -> None:
    space = function()
    space.add_bar(0, size)
    assert (~sized(space, 0) & 0xFFFF_FFFF) + 1 == size


def test_a_64_bit_prefetchable_bar_takes_two_registers() -> None:
    space = function()
    space.add_bar(2, 1 << 33, is64=True, prefetch=True)
    assert sized(space, 2) == pci.BAR_TYPE_64 | pci.BAR_PREFETCH
    assert sized(space, 3) == 0xFFFF_FFFE
    space.write(pci.BAR0 + 8, 8, 0x12_0000_0000)
    assert space.bar_address(2) == 0x12_0000_0000


def test_an_absent_bar_reads_zero() -> None:
    assert sized(function(), 1) == 0


@pytest.mark.parametrize("size", [0, 8, 0x1001])
def test_a_bar_size_must_be_a_power_of_two(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        function().add_bar(0, size)


def test_a_bar_keeps_an_aligned_address() -> None:
    space = function()
    space.add_bar(0, 0x1000)
    space.write(pci.BAR0, 4, 0xC000_1234)
    assert space.bar_address(0) == 0xC000_1000


def test_identity_is_read_only() -> None:
    space = function()
    space.write(pci.VENDOR_ID, 4, 0)
    assert space.read(pci.VENDOR_ID, 4) == 0x11E8_1234


def test_status_bits_are_cleared_by_ones() -> None:
    space = function()
    aborted = pci.Status.RECEIVED_MASTER_ABORT | pci.Status.SIGNALED_TARGET_ABORT
    space.set(pci.STATUS, 2, aborted)
    space.write(pci.STATUS, 2, pci.Status.RECEIVED_MASTER_ABORT)
    assert space.read(pci.STATUS, 2) == pci.Status.SIGNALED_TARGET_ABORT


def test_capabilities_are_chained_and_found() -> None:
    space = function()
    power = config_space.add_power_management(space)
    msi = config_space.add_msi(space)
    express = config_space.add_express(space, pci.PortType.ENDPOINT, 512)
    assert [offset for _, offset in space.capabilities()] == [power, msi, express]
    assert space.capability(pci.CapabilityId.MSI) == msi
    assert space.capability(pci.CapabilityId.MSIX) is None
    assert space.read(pci.STATUS, 2) & pci.Status.CAPABILITIES
    assert space.read(express + pci.EXP_DEVICE_CAPABILITIES, 4) & 7 == pci.payload_code(512)


def test_a_looping_chain_ends() -> None:
    space = function()
    power = config_space.add_power_management(space)
    msi = config_space.add_msi(space)
    space.set(msi + pci.CAPABILITY_NEXT, 1, power)
    assert len(list(space.capabilities())) == 2


def test_extended_capabilities_are_chained_and_found() -> None:
    space = function()
    assert space.extended_capability(pci.ExtendedCapabilityId.ACS) is None
    first = space.add_extended_capability(pci.ExtendedCapabilityId.AER, 2, 0x48)
    acs = config_space.add_acs(space, pci.Acs.SOURCE_VALIDATION, pci.Acs(0))
    assert (first, acs) == (0x100, 0x148)
    assert space.extended_capability(pci.ExtendedCapabilityId.ACS) == acs


def test_reset_restores_reset_values() -> None:
    space = function()
    space.add_bar(0, 0x1000)
    before = space.dump()
    space.write(pci.BAR0, 4, 0xC000_0000)
    space.write(pci.COMMAND, 2, pci.Command.MEMORY)
    assert space.dump() != before
    space.reset()
    assert space.dump() == before


def test_bdf_text_round_trips() -> None:
    assert pci.format_bdf(pci.bdf(0x3A, 31, 7)) == "3a:1f.7"
    assert pci.parse_bdf("0000:3a:1f.7") == pci.parse_bdf("3a:1f.7") == pci.bdf(0x3A, 31, 7)


@pytest.mark.parametrize("text", ["", "01:00", "1:20.0", "01:00.8", "0001:01:00.0", "x:00.0", "0:0:0:0.0"])
def test_bad_bdf_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no PCI address"):
        pci.parse_bdf(text)
