"""The registers of an emulated network card, as its driver uses them."""

from __future__ import annotations

import pytest

from tests.hypervisor.virtio_card import ALL, AVAILABLE, BAR, DESCRIPTORS, ON, READY, TABLE, USED, Card
from viommu_actors.spec import pci, vhost, virtio_net, virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import NO_VECTOR, Common, ConfigType
from viommu_actors.vtd.config import UnitConfig


@pytest.fixture
def card() -> Card:
    return Card()


# --- what it is


def test_it_is_what_qemu_shows(card: Card) -> None:
    assert (card.config(pci.VENDOR_ID, 2), card.config(pci.DEVICE_ID, 2)) == (0x1AF4, 0x1041)
    assert (card.config(pci.CLASS_DEVICE, 2), card.config(pci.REVISION_ID, 1)) == (0x0200, 1)
    assert (card.config(pci.SUBSYSTEM_VENDOR_ID, 2), card.config(pci.SUBSYSTEM_ID, 2)) == (0x1AF4, 0x1100)
    places = {}
    for kind in (ConfigType.COMMON, ConfigType.ISR, ConfigType.DEVICE, ConfigType.NOTIFY):
        at = card.capability(pci.CapabilityId.VENDOR, kind)
        places[kind] = tuple(card.config(at + field, 4) for field in (virtio_pci.CAP_OFFSET, virtio_pci.CAP_SIZE))
        assert card.config(at + virtio_pci.CAP_BAR, 1) == 4
    assert sorted(places.values()) == [(0, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 0x1000)]
    assert card.config(card.msix + pci.MSIX_CONTROL, 2) & pci.MSIX_TABLE_SIZE_MASK == 2
    assert card.config(card.msix + pci.MSIX_TABLE, 4) == 1
    express = card.capability(pci.CapabilityId.PCI_EXPRESS)
    assert card.config(express + pci.EXP_DEVICE_CAPABILITIES, 4) & pci.DEVCAP_FLR
    assert not card.config(pci.FIRST_EXTENDED_CAPABILITY, 4), "it has no ATS"


def test_its_configuration_is_the_topologys(card: Card) -> None:
    def read(offset: int, size: int) -> int:
        return card.guest.mmio_read(BAR + virtio_pci.DEVICE + offset, size)

    assert read(0, 4).to_bytes(4, "little") + read(4, 2).to_bytes(2, "little") == card.guest.mac
    assert read(virtio_net.Config.MTU, 2) + virtio_net.MIN_FRAME + virtio_net.HEADER.size == 4096
    assert read(virtio_net.Config.STATUS, 2) == 0
    card.connect()
    assert read(virtio_net.Config.STATUS, 2) == virtio_net.Status.LINK_UP
    # Behind its end, and across it.
    assert read(12, 4) == 0xFFFF_FFFF and read(8, 8) >> 32 == 0xFFFF_FFFF
    card.guest.mmio_write(BAR + virtio_pci.DEVICE, 4, 0)
    assert read(0, 1) == card.guest.mac[0]


# --- status and features


def test_features_are_settled_only_with_what_is_required() -> None:
    behind = Card(UnitConfig())
    assert behind.accept(ALL) == READY, "without ACCESS_PLATFORM it would reach what the vIOMMU does not let it"
    assert behind.accept(Feature.ACCESS_PLATFORM) == READY
    assert behind.accept(ALL | Feature.ACCESS_PLATFORM) == READY | Status.FEATURES_OK


def test_features_that_are_not_offered_are_not_had(card: Card) -> None:
    cable = card.connect()
    card.put(Common.DEVICE_FEATURE_SELECT, 4, 0)
    low = card.get(Common.DEVICE_FEATURE, 4)
    card.put(Common.DEVICE_FEATURE_SELECT, 4, 1)
    offered = low | card.get(Common.DEVICE_FEATURE, 4) << 32
    card.put(Common.DEVICE_FEATURE_SELECT, 4, 2)
    assert offered == ALL and card.get(Common.DEVICE_FEATURE, 4) == 0
    assert card.accept((1 << 64) - 1) & Status.FEATURES_OK
    # Settled is settled.
    card.put(Common.DRIVER_FEATURE, 4, 0)
    card.set_queue(0)
    card.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK | Status.DRIVER_OK)
    card.serve()
    assert cable.kinds(vhost.SetFeatures) == [vhost.SetFeatures(int(ALL))]


def test_a_driver_that_skips_the_features_is_not_served(card: Card) -> None:
    cable = card.connect()
    card.set_queue(0)
    card.put(Common.DEVICE_STATUS, 1, READY | Status.DRIVER_OK)
    assert not cable.kinds(vhost.StartVring)


def test_a_reset_stops_the_queues_and_forgets_all(card: Card) -> None:
    cable = card.connect()
    card.start()
    assert [each.queue for each in cable.kinds(vhost.StartVring)] == [0, 1]
    card.put(Common.DEVICE_STATUS, 1, 0)
    assert [each.queue for each in cable.kinds(vhost.StopVring)] == [0, 1]
    assert isinstance(cable.sent[-1], vhost.Reset)
    assert card.get(Common.DEVICE_STATUS, 1) == 0
    card.put(Common.QUEUE_SELECT, 2, 1)
    assert (card.get(Common.QUEUE_ENABLE, 2), card.get(Common.QUEUE_SIZE, 2)) == (0, virtio_net.QUEUE_SIZE)
    assert card.get(Common.QUEUE_MSIX_VECTOR, 2) == card.get(Common.CONFIG_MSIX_VECTOR, 2) == NO_VECTOR
    card.start()
    assert len(cable.kinds(vhost.StartVring)) == 4


@pytest.mark.parametrize("how", ["bus master", "flr", "power"])
def test_whoever_takes_the_bus_from_it_stops_the_queues(card: Card, how: str) -> None:
    cable = card.connect()
    card.start()
    if how == "bus master":
        card.configure(pci.COMMAND, 2, pci.Command.MEMORY)
        assert not card.get(Common.DEVICE_STATUS, 1) & Status.DRIVER_OK
    elif how == "flr":
        express = card.capability(pci.CapabilityId.PCI_EXPRESS)
        card.configure(express + pci.EXP_DEVICE_CONTROL, 2, pci.DEVCTL_FLR)
        assert card.config(pci.COMMAND, 2) == 0 and card.config(pci.BAR0 + 16, 4) == 0xC
        card.configure(pci.BAR0 + 16, 4, BAR)
        card.configure(pci.COMMAND, 2, ON)
        assert card.get(Common.DEVICE_STATUS, 1) == 0
    else:
        card.configure(pci.COMMAND, 2, 0)
    assert [each.queue for each in cable.kinds(vhost.StopVring)] == [0, 1]
    assert len(cable.kinds(vhost.StartVring)) == 2


# --- queues


@pytest.mark.parametrize("size", [0, 3, 255, 512, 0xFFFF])
def test_a_size_that_cannot_be_is_not_taken(card: Card, size: int) -> None:
    card.put(Common.QUEUE_SELECT, 2, 0)
    card.put(Common.QUEUE_SIZE, 2, 16)
    card.put(Common.QUEUE_SIZE, 2, size)
    assert card.get(Common.QUEUE_SIZE, 2) == 16


def test_a_queue_that_is_not_there_has_no_size(card: Card) -> None:
    assert card.get(Common.NUM_QUEUES, 2) == 2
    for queue in (2, 1023, 0xFFFF):
        card.put(Common.QUEUE_SELECT, 2, queue)
        card.set_queue(queue)
        assert card.get(Common.QUEUE_SIZE, 2) == card.get(Common.QUEUE_ENABLE, 2) == 0
        assert card.get(Common.QUEUE_MSIX_VECTOR, 2) == NO_VECTOR


def test_addresses_are_taken_when_the_queue_is_enabled(card: Card) -> None:
    cable = card.connect()
    card.accept(ALL)
    card.set_queue(1)
    card.put(Common.QUEUE_DESC, 8, 0x1234)
    assert card.get(Common.QUEUE_DESC, 8) == 0x1234
    card.guest.memory.write(USED + 0x1_0000, b"\0\0\x34\x12")
    card.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK | Status.DRIVER_OK)
    places = DESCRIPTORS + 0x1_0000, AVAILABLE + 0x1_0000, USED + 0x1_0000
    assert cable.kinds(vhost.SetVring) == [vhost.SetVring(1, 8, *places, 0x1234)]


def test_a_queue_is_only_ever_enabled(card: Card) -> None:
    cable = card.connect()
    card.start()
    card.vectors()
    card.put(Common.QUEUE_SELECT, 2, 0)
    for _ in range(2):
        card.put(Common.QUEUE_ENABLE, 2, 0)
    assert card.vectors() == [0x30], "its driver is told, once"
    assert card.get(Common.DEVICE_STATUS, 1) & Status.NEEDS_RESET
    assert len(cable.kinds(vhost.StopVring)) == 2
    card.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK | Status.DRIVER_OK)
    assert card.get(Common.DEVICE_STATUS, 1) & Status.NEEDS_RESET
    card.put(Common.DEVICE_STATUS, 1, 0)
    card.start()
    assert len(cable.kinds(vhost.StartVring)) == 4


@pytest.mark.parametrize("viommu", [None, UnitConfig()])
def test_a_used_ring_that_is_not_there_needs_a_reset(viommu: UnitConfig | None) -> None:
    card = Card(viommu)
    cable = card.connect()
    card.accept(ALL | Feature.ACCESS_PLATFORM)
    card.put(Common.CONFIG_MSIX_VECTOR, 2, 0)
    card.set_queue(0)
    card.put(Common.QUEUE_DEVICE + 4, 4, 0xFF)
    card.put(Common.QUEUE_ENABLE, 2, 1)
    card.put(Common.DEVICE_STATUS, 1, READY | Status.FEATURES_OK | Status.DRIVER_OK)
    assert card.get(Common.DEVICE_STATUS, 1) & Status.NEEDS_RESET
    assert card.vectors() == [0x30]
    assert not cable.kinds(vhost.SetVring)


def test_a_driver_that_breaks_it_without_end_fills_no_log(card: Card) -> None:
    for _ in range(100):
        card.start()
        card.put(Common.QUEUE_ENABLE, 2, 0)
        card.put(Common.DEVICE_STATUS, 1, 0)
    assert card.guest.vmm.counters["virtio_broken"] == 100
    assert len([line for line in card.guest.lines if "needs a reset" in line]) == 10


def test_a_notification_reaches_the_queue_whose_place_it_is(card: Card) -> None:
    cable = card.connect()
    for queue in (0, 1):
        card.guest.mmio_write(BAR + virtio_pci.NOTIFY + 4 * queue, 2, 0xFFFF)
    assert not cable.kinds(vhost.Kick), "the driver is not there yet"
    card.start()
    card.put(Common.QUEUE_SELECT, 2, 1)
    assert card.get(Common.QUEUE_NOTIFY_OFF, 2) == 1
    for place in (4, 0, 8, 0xFFC):
        card.guest.mmio_write(BAR + virtio_pci.NOTIFY + place, 2, 0)
    assert [each.queue for each in cable.kinds(vhost.Kick)] == [1, 0]


# --- interrupts


def test_interrupts_come_by_the_vector_of_their_cause(card: Card) -> None:
    cable = card.connect()
    card.start()
    assert not card.vectors(), "the link came up before the driver did"
    for queue in (1, 0, 1):
        cable.say(vhost.Call(queue))
    card.serve()
    assert card.vectors() == [0x32, 0x31, 0x32]
    generation = card.get(Common.CONFIG_GENERATION, 1)
    cable.die()
    assert card.vectors() == [0x30] and card.get(Common.CONFIG_GENERATION, 1) != generation
    isr = BAR + virtio_pci.ISR
    assert (card.guest.mmio_read(isr, 1), card.guest.mmio_read(isr, 1)) == (3, 0)


def test_a_masked_vector_stays_pending_and_none_is_none(card: Card) -> None:
    cable = card.connect()
    card.start()
    control = TABLE + pci.MSIX_ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL
    card.guest.mmio_write(control, 4, pci.MSIX_ENTRY_MASKED)
    card.put(Common.QUEUE_SELECT, 2, 1)
    card.put(Common.QUEUE_MSIX_VECTOR, 2, NO_VECTOR)
    cable.say(vhost.Call(0))
    cable.say(vhost.Call(1))
    card.serve()
    assert not card.vectors()
    assert card.guest.mmio_read(TABLE + virtio_pci.MSIX_PBA, 4) == 0b10
    card.guest.mmio_write(control, 4, 0)
    assert card.vectors() == [0x31]


@pytest.mark.parametrize("vector", [3, 0x7FF, 0xFFFE])
def test_a_vector_that_is_not_there_cannot_be_had(card: Card, vector: int) -> None:
    for register in (Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR):
        card.put(register, 2, 1)
        assert card.get(register, 2) == 1
        card.put(register, 2, vector)
        assert card.get(register, 2) == NO_VECTOR


def test_an_interrupt_to_anywhere_else_is_none(card: Card) -> None:
    cable = card.connect()
    card.start()
    card.guest.mmio_write(TABLE + pci.MSIX_ENTRY_SIZE, 8, 0x1000)
    cable.say(vhost.Call(0))
    card.serve()
    assert not card.vectors() and card.guest.memory.read(0x1000, 4) == bytes(4)


# --- the window of configuration space


def test_the_bar_is_reached_through_configuration_space(card: Card) -> None:
    window = card.capability(pci.CapabilityId.VENDOR, ConfigType.PCI)

    def aim(offset: int, size: int, bar: int = virtio_pci.BAR) -> None:
        card.configure(window + virtio_pci.CAP_BAR, 1, bar)
        card.configure(window + virtio_pci.CAP_OFFSET, 4, offset)
        card.configure(window + virtio_pci.CAP_SIZE, 4, size)

    aim(Common.DEVICE_STATUS, 1)
    card.configure(window + virtio_pci.CAP_PCI_DATA, 1, READY)
    assert card.get(Common.DEVICE_STATUS, 1) == READY
    assert card.config(window + virtio_pci.CAP_PCI_DATA, 1) == READY
    aim(virtio_pci.DEVICE, 4)
    assert card.config(window + virtio_pci.CAP_PCI_DATA, 4).to_bytes(4, "little") == card.guest.mac[:4]
    card.configure(pci.COMMAND, 2, 0)
    assert card.config(window + virtio_pci.CAP_PCI_DATA, 4).to_bytes(4, "little") == card.guest.mac[:4]
    for place in ((virtio_pci.BAR_SIZE, 4), (0xFFFF_FFFF, 2), (0, 3), (0, 8), (0, 0)):
        aim(*place)
        card.configure(window + virtio_pci.CAP_PCI_DATA, 4, 0)
    aim(Common.DEVICE_STATUS, 1, bar=1)
    card.configure(window + virtio_pci.CAP_PCI_DATA, 1, 0)
    card.configure(pci.COMMAND, 2, ON)
    assert card.get(Common.DEVICE_STATUS, 1) == READY
