"""Whatever a guest and a back end do to an emulated network card, in any order: the machine goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hypervisor.virtio_card import ALL, BAR, ON, READY, TABLE, Card
from tests.hypervisor.virtio_guest import BDF
from viommu_actors.spec import pci, platform, vhost, virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import Common
from viommu_actors.vtd.config import UnitConfig

_MESSAGES = st.one_of(
    st.builds(vhost.Features, st.sampled_from([0, (1 << 64) - 1])),
    st.builds(vhost.VringBase, st.integers(0, 1), st.integers(0, 0xFFFF)),
    st.builds(vhost.IotlbMiss, st.integers(0, (1 << 64) - 1), st.integers(1, 3)),
    st.builds(vhost.VringError, st.integers(0, 1)),
    st.builds(vhost.IotlbAccessFail, st.integers(0, (1 << 64) - 1), st.just(8), st.integers(1, 3)),
    st.builds(vhost.IotlbInvalidated, st.integers(0, 3)),
    st.builds(vhost.MemoryRead, st.just(1), st.integers(0, (1 << 64) - 1), st.integers(1, 4096)),
    st.builds(vhost.MemoryRead, st.just(1), st.integers(0, 0x40_1000), st.integers(1, 4096)),
    st.builds(vhost.MemoryWrite, st.integers(0, 0x40_1000), st.binary(min_size=1, max_size=64)),
    st.builds(vhost.Call, st.integers(0, 1)),
)
_PLACES = st.one_of(
    st.sampled_from(list(Common)).map(lambda register: BAR + register),
    st.integers(0, virtio_pci.BAR_SIZE - 1).map(lambda offset: BAR + offset),
    st.integers(0, virtio_pci.MSIX_BAR_SIZE - 1).map(lambda offset: TABLE + offset),
    st.integers(0, 0xFF).map(lambda offset: platform.ECAM_BASE + pci.ecam_offset(BDF, offset)),
)
_VALUES = st.sampled_from([0, 1, 2, 3, 0xF, 0x4F, 0x80, 0xFFFF, 0xFFFF_FFFF, 1 << 32]) | st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize("viommu", [None, UnitConfig(intremap=True)])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.lists(
        st.tuples(_PLACES, st.sampled_from([1, 2, 4, 8]), st.none() | _VALUES) | _MESSAGES | st.booleans(),
        min_size=20,
        max_size=80,
    )
)
def test_no_guest_and_no_back_end_ends_the_machine(viommu: UnitConfig | None, steps: list[Any]) -> None:
    card = Card(viommu)
    cable = card.connect()
    if viommu is None:
        card.start()
    for step in steps:
        if isinstance(step, bool):
            cable = card.connect() if step else cable
        elif type(step) is tuple:
            place, size, value = step
            if value is None:
                card.guest.mmio_read(place, size)
            else:
                card.guest.mmio_write(place, size, value & (1 << 8 * size) - 1)
        else:
            cable.say(step)
            card.serve()
    # A driver that comes to its senses has a card.
    express = card.capability(pci.CapabilityId.PCI_EXPRESS)
    card.configure(express + pci.EXP_DEVICE_CONTROL, 2, pci.DEVCTL_FLR)
    for bar, address in ((virtio_pci.BAR, BAR), (virtio_pci.BAR + 1, 0), (virtio_pci.MSIX_BAR, TABLE)):
        card.configure(pci.BAR0 + 4 * bar, 4, address)
    card.configure(pci.COMMAND, 2, ON)
    assert card.accept(ALL | Feature.ACCESS_PLATFORM) == READY | Status.FEATURES_OK
