"""MSI-X of a device: table, masks and pending bits; and MSI with several messages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.bench import BUS, FUNCTION, Bench
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.pci import config_space
from viommu_actors.spec import pci, tlp

TABLE_BAR = 0xC010_0000
VECTORS = 70
PBA = 0x800
MASKED, UNMASKED = 1, 0


class Device(Endpoint):
    """A function with more vectors than a qword of pending bits holds, and 8 MSI messages."""

    def __init__(self, send: Any) -> None:
        config = config_space.endpoint_header(0x1234, 0x0002, pci.ClassCode.UNCLASSIFIED_OTHER)
        config.add_bar(0, 0x1000)
        config.add_bar(2, 0x1000)
        config_space.add_msi(config, messages=8)
        config_space.add_msix(config, 2, VECTORS, 0, PBA)
        config_space.add_express(config, pci.PortType.ENDPOINT, 4096)
        super().__init__(config, send)


class MsixBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.endpoint = Device(self.send)
        self.enable()
        self.configure(pci.BAR0 + 8, 4, TABLE_BAR)
        offset = self.endpoint.config.capability(pci.CapabilityId.MSIX)
        assert offset is not None
        self.capability = offset

    def control(self, bits: int) -> None:
        self.configure(self.capability + pci.MSIX_CONTROL, 2, bits)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.endpoint.receive(tlp.MmioWrite(TABLE_BAR + offset, value.to_bytes(size, "little")))

    def get(self, offset: int, size: int = 4) -> int | None:
        completion = self.ask(tlp.MmioRead(9, TABLE_BAR + offset, size))
        return None if completion.status else int.from_bytes(completion.data, "little")

    def set(self, vector: int, control: int = UNMASKED) -> None:
        """Vector n sends 0x1000 + n to 0xFEE00000 + 16 n."""
        self.put(vector * 16, 0xFEE0_0000 + 16 * vector, 8)
        self.put(vector * 16 + 8, 0x1000 + vector | control << 32, 8)

    def mask(self, vector: int, control: int) -> None:
        self.put(vector * 16 + 12, control)

    def taken(self) -> list[int]:
        """Vectors whose messages were sent since the last call."""
        found = []
        for message in self.take():
            vector = int.from_bytes(message.data, "little") - 0x1000
            address = 0xFEE0_0000 + 16 * vector
            assert message == tlp.MemWrite(FUNCTION, 0, address, 0xF, 0, (0x1000 + vector).to_bytes(4, "little"))
            found.append(vector)
        return found


@pytest.fixture
def bench() -> MsixBench:
    bench = MsixBench()
    bench.control(pci.MSIX_ENABLE)
    return bench


def test_after_reset_every_entry_is_empty_and_masked() -> None:
    bench = MsixBench()
    assert bench.config_read(bench.capability + pci.MSIX_CONTROL, 2) == VECTORS - 1
    for vector in (0, 1, VECTORS - 1):
        assert [bench.get(16 * vector + at) for at in (0, 4, 8, 12)] == [0, 0, 0, MASKED]
    assert [bench.get(offset) for offset in (16 * VECTORS, PBA, 0xFFC)] == [0, 0, 0]


def test_each_vector_sends_its_own_message(bench: MsixBench) -> None:
    for vector in (0, 3, VECTORS - 1):
        bench.set(vector)
    for vector in (3, VECTORS - 1, 0):
        assert bench.endpoint.interrupt(vector)
        assert bench.taken() == [vector]


def test_an_address_beyond_32_bits(bench: MsixBench) -> None:
    bench.put(0, 0xFEE0_0000)
    bench.put(4, 1)
    bench.mask(0, UNMASKED)
    bench.endpoint.interrupt(0)
    (message,) = bench.take()
    assert message.address == 0x1_FEE0_0000


def test_a_masked_vector_is_pending_until_it_is_unmasked(bench: MsixBench) -> None:
    for vector in (1, 65):
        bench.set(vector, MASKED)
    bench.set(2)
    for vector in (1, 65, 2, 1):
        assert bench.endpoint.interrupt(vector)
    assert bench.taken() == [2]
    assert (bench.get(PBA, 8), bench.get(PBA + 8, 8)) == (1 << 1, 1 << 1)
    assert (bench.get(PBA), bench.get(PBA + 4), bench.get(PBA + 8)) == (2, 0, 2)
    bench.mask(65, UNMASKED)
    assert bench.taken() == [65]
    assert bench.get(PBA + 8) == 0
    bench.mask(1, UNMASKED)
    assert bench.taken() == [1], "interrupts of one vector coalesce"
    bench.mask(1, MASKED)
    bench.mask(1, UNMASKED)
    assert bench.taken() == []


def test_the_function_mask_holds_all_back(bench: MsixBench) -> None:
    for vector in (0, 1, 2):
        bench.set(vector, MASKED if vector == 1 else UNMASKED)
    bench.control(pci.MSIX_ENABLE | pci.MSIX_FUNCTION_MASK)
    for vector in (2, 1, 0):
        bench.endpoint.interrupt(vector)
    assert bench.taken() == [] and bench.get(PBA) == 0b111
    bench.control(pci.MSIX_ENABLE)
    assert bench.taken() == [0, 2]
    assert bench.get(PBA) == 0b010


def test_a_changed_message_goes_out_as_it_is_now(bench: MsixBench) -> None:
    bench.set(0, MASKED)
    bench.endpoint.interrupt(0)
    bench.put(8, 0x77)
    bench.mask(0, UNMASKED)
    (message,) = bench.take()
    assert message.data == bytes((0x77, 0, 0, 0))


def test_what_software_cannot_write(bench: MsixBench) -> None:
    bench.put(0, 0xFFFF_FFFF)
    bench.put(12, 0xFFFF_FFFE)
    assert (bench.get(0), bench.get(12)) == (0xFFFF_FFFC, UNMASKED)
    bench.put(PBA, 0xFFFF_FFFF)
    bench.put(16 * VECTORS, 0xFFFF_FFFF)
    assert (bench.get(PBA), bench.get(16 * VECTORS)) == (0, 0)
    bench.put(0, 0x12, size=1)
    bench.put(0, 0x1234, size=2)
    assert bench.get(0) == 0xFFFF_FFFC
    assert bench.get(0, size=2) is None, "dwords and qwords only"


def test_without_msix_it_is_msi_and_without_both_nothing() -> None:
    bench = MsixBench()
    bench.set(1)
    assert bench.endpoint.interrupt(1)
    bench.serve()
    assert bench.vectors == [0x41]
    msi = bench.endpoint.config.capability(pci.CapabilityId.MSI)
    assert msi is not None
    bench.configure(msi + pci.MSI_CONTROL, 2, 0)
    assert not bench.endpoint.interrupt(1)
    bench.control(pci.MSIX_ENABLE)
    assert bench.taken() == [], "nothing was pending while it was off"


@pytest.mark.parametrize(("given", "data"), [(0, [0x40, 0x40, 0x40]), (1, [0x40, 0x41, 0x40]), (7, [0x40, 0x41, 0x46])])
def test_msi_messages_go_into_the_low_bits(given: int, data: list[int]) -> None:
    bench = MsixBench()
    msi = bench.endpoint.config.capability(pci.CapabilityId.MSI)
    assert msi is not None
    bench.configure(msi + pci.MSI_DATA_64, 2, 0x40)
    bench.configure(msi + pci.MSI_CONTROL, 2, pci.MSI_ENABLE | given << pci.MSI_MULTIPLE_ENABLE_SHIFT)
    for vector in (0, 1, 6):
        bench.endpoint.interrupt(vector)
    bench.serve()
    assert bench.vectors == data


def test_without_bus_master_no_message(bench: MsixBench) -> None:
    bench.set(0)
    bench.configure(pci.COMMAND, 2, pci.Command.MEMORY)
    bench.endpoint.interrupt(0)
    assert bench.take() == [] and bench.endpoint.counters["no interrupt"] == 1


@pytest.mark.parametrize("hot", [False, True])
def test_a_reset_clears_table_and_pending_bits(bench: MsixBench, hot: bool) -> None:
    bench.set(0, MASKED)
    bench.set(1)
    bench.endpoint.interrupt(0)
    if hot:
        bench.endpoint.receive(tlp.HotReset(0))
    else:
        express = bench.endpoint.config.capability(pci.CapabilityId.PCI_EXPRESS)
        assert express is not None
        bench.configure(express + pci.EXP_DEVICE_CONTROL, 2, pci.DEVCTL_FLR)
    assert bench.endpoint.config.read(bench.capability + pci.MSIX_CONTROL, 2) == VECTORS - 1
    bench.take()
    bench.configure(pci.BAR0 + 8, 4, TABLE_BAR)
    bench.configure(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    assert [bench.get(at) for at in (0, 12, 28, PBA)] == [0, MASKED, MASKED, 0]
    bench.control(pci.MSIX_ENABLE)
    bench.set(0)
    assert bench.taken() == []


@pytest.mark.parametrize(
    ("vectors", "table", "pba"), [(0, 0, 0x800), (2049, 0, 0x800), (3, 4, 0x800), (3, 0xFF8, 0), (3, 0, 0x28)]
)
def test_layouts_that_are_refused(vectors: int, table: int, pba: int) -> None:
    config = config_space.endpoint_header(0x1234, 0x0002, pci.ClassCode.UNCLASSIFIED_OTHER)
    config.add_bar(2, 0x1000)
    with pytest.raises(ValueError, match="MSI-X"):
        config_space.add_msix(config, 2, vectors, table, pba)
    with pytest.raises(ValueError, match="MSI has no 3"):
        config_space.add_msi(config, 3)


def test_a_function_learns_its_bus_from_table_writes_too(bench: MsixBench) -> None:
    """The message carries the requester that configuration requests gave."""
    bench.endpoint.receive(tlp.CfgWrite(1, BUS + 1, 0, pci.INTERRUPT_LINE, b"\0"))
    bench.take()
    bench.set(0)
    bench.endpoint.interrupt(0)
    (message,) = bench.take()
    assert message.requester == FUNCTION + 0x100
