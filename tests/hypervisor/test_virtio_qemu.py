"""QEMU as a judge of the emulated card: its driver sees the registers that it sees of QEMU's virtio-net-pci."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hypervisor.virtio_card import BAR, TABLE, Card
from tests.judges import require
from viommu_actors.pci.capabilities import capabilities
from viommu_actors.recorder.qtest import PROGRAM, Qemu
from viommu_actors.spec import pci, virtio_net, virtio_pci
from viommu_actors.spec.virtio import Feature, Status
from viommu_actors.spec.virtio_pci import Common, ConfigType
from viommu_actors.vtd.config import UnitConfig

pytestmark = pytest.mark.judge(PROGRAM)
SLOT = 4
_CONFIG_ADDRESS, _CONFIG_DATA, _ENABLE = 0xCF8, 0xCFC, 1 << 31
_OFF = (
    "csum guest_csum gso guest_tso4 guest_tso6 guest_ecn guest_ufo host_tso4 host_tso6 host_ecn host_ufo "
    "guest_announce mrg_rxbuf ctrl_vq ctrl_rx ctrl_vlan ctrl_rx_extra ctrl_mac_addr ctrl_guest_offloads "
    "indirect_desc event_idx queue_reset"
)
_READY = Status.ACKNOWLEDGE | Status.DRIVER
_SETTLED = _READY | Status.FEATURES_OK
_FEATURES = (
    Feature.VERSION_1 | Feature.ACCESS_PLATFORM,
    Feature.VERSION_1,
    Feature.VERSION_1 | Feature.ACCESS_PLATFORM | virtio_net.Feature.MAC | Feature.EVENT_IDX,
    (1 << 64) - 1,
)


class QemuCard:
    """QEMU's card behind QEMU's intel-iommu, reached as `Card` is."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self.configure(pci.BAR0 + 4 * virtio_pci.BAR, 4, BAR)
        self.configure(pci.BAR0 + 4 * virtio_pci.BAR + 4, 4, 0)
        self.configure(pci.BAR0 + 4 * virtio_pci.MSIX_BAR, 4, TABLE)
        self.configure(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
        msix = self.capability(pci.CapabilityId.MSIX)
        self.configure(msix + pci.MSIX_CONTROL, 2, pci.MSIX_ENABLE)

    def config(self, offset: int, size: int) -> int:
        self._qemu.port_out(_CONFIG_ADDRESS, _ENABLE | pci.bdf(0, SLOT, 0) << 8 | offset & ~3)
        return self._qemu.port_in(_CONFIG_DATA) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def configure(self, offset: int, size: int, value: int) -> None:
        dword, shift = self.config(offset & ~3, 4), 8 * (offset & 3)
        mask = (1 << 8 * size) - 1 << shift
        self._qemu.port_out(_CONFIG_DATA, dword & ~mask | value << shift & mask)

    def capability(self, wanted: int, kind: int | None = None) -> int:
        return next(
            at
            for identifier, at in capabilities(self.config)[0]
            if identifier == wanted and kind in (None, self.config(at + virtio_pci.CAP_TYPE, 1))
        )

    def read(self, address: int, size: int) -> int:
        return self._qemu.read_register(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        self._qemu.write_register(address, size, value)


@pytest.fixture(scope="module")
def qemu() -> Iterator[QemuCard]:
    require(PROGRAM)
    off = ",".join(f"{name}=off" for name in _OFF.split())
    arguments = ["-machine", "q35", "-m", "16M", "-device", "intel-iommu,aw-bits=48,intremap=off"]
    arguments += ["-netdev", "hubport,hubid=0,id=port"]
    card = f"virtio-net-pci,netdev=port,bus=pcie.0,addr={SLOT},mac=02:00:00:00:00:00,host_mtu={virtio_net.MTU},romfile="
    arguments += ["-device", f"{card},disable-legacy=on,iommu_platform=on,vectors={len(virtio_net.Vector)},{off}"]
    with Qemu(arguments) as running:
        yield QemuCard(running)


@pytest.fixture
def own() -> Card:
    card = Card(UnitConfig())
    card.connect()
    return card


def _shown(card: Any) -> dict[str, Any]:
    """What tells a driver which device this is, and where its structures are."""
    found: dict[str, Any] = {
        str(offset): card.config(offset, size)
        for offset, size in (
            (pci.VENDOR_ID, 2),
            (pci.DEVICE_ID, 2),
            (pci.REVISION_ID, 1),
            (pci.CLASS_DEVICE, 2),
            (pci.SUBSYSTEM_VENDOR_ID, 2),
            (pci.SUBSYSTEM_ID, 2),
            (pci.HEADER_TYPE, 1),
            (pci.BAR0 + 4 * virtio_pci.MSIX_BAR, 4),
            (pci.BAR0 + 4 * virtio_pci.BAR, 4),
        )
    }
    for kind in (ConfigType.COMMON, ConfigType.ISR, ConfigType.DEVICE, ConfigType.NOTIFY):
        at = card.capability(pci.CapabilityId.VENDOR, kind)
        places = virtio_pci.CAP_LENGTH, virtio_pci.CAP_BAR
        found[kind.name] = [card.config(at + place, 1) for place in places]
        found[kind.name] += [card.config(at + place, 4) for place in (virtio_pci.CAP_OFFSET, virtio_pci.CAP_SIZE)]
    found["multiplier"] = card.config(
        card.capability(pci.CapabilityId.VENDOR, ConfigType.NOTIFY) + virtio_pci.CAP_NOTIFY_MULTIPLIER, 4
    )
    msix = card.capability(pci.CapabilityId.MSIX)
    found["msix"] = [card.config(msix + place, 4) >> 16 * (not place) for place in (0, pci.MSIX_TABLE, pci.MSIX_PBA)]
    return found


def test_it_looks_as_qemus_does(qemu: QemuCard, own: Card) -> None:
    assert _shown(own) == _shown(qemu)


def _program(rng: random.Random) -> list[tuple[int, int, int | None]]:
    """Accesses of the BAR: (offset, size, what is written), in the order of a driver that does not know the order."""
    steps: list[tuple[int, int, int | None]] = []

    def put(register: int, size: int, value: int) -> None:
        steps.append((register, size, value))

    for _ in range(60):
        match rng.randrange(10):
            case 0:
                put(Common.DEVICE_STATUS, 1, status := rng.choice([0, _READY, _READY | Status.FAILED]))
                if not status:
                    steps += _SELECTED
            case 1:
                # Whoever leaves out VERSION_1 is let in by QEMU with whatever else.
                put(Common.DEVICE_STATUS, 1, _READY)
                features = int(rng.choice(_FEATURES))
                for half in rng.sample([0, 1, 2, 77], 4):
                    put(Common.DRIVER_FEATURE_SELECT, 4, half)
                    put(Common.DRIVER_FEATURE, 4, features >> 32 * half & 0xFFFF_FFFF)
                put(Common.DEVICE_STATUS, 1, _SETTLED)
            case 2:
                put(Common.DEVICE_FEATURE_SELECT, 4, rng.choice([0, 1, 2, 0xFFFF_FFFF]))
            case 3:
                # QEMU's has a control queue too, whatever is negotiated, and registers of queues that are not there.
                put(Common.QUEUE_SELECT, 2, rng.randrange(2))
            case 4:
                register = rng.choice([Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR])
                put(register, 2, rng.choice([0, 1, 2, 3, 0x7FF, 0xFFFF]))
            case 5:
                put(Common.QUEUE_SIZE, 2, rng.choice([2, 16, 128, 256]))
            case 6:
                put(Common.QUEUE_DESC + 4 * rng.randrange(6), 4, rng.getrandbits(32))
            case 7:
                put(Common.QUEUE_ENABLE, 2, 1)
            case 8:
                # What is no register, or none that can be written.
                place = rng.choice([Common.NUM_QUEUES, Common.CONFIG_GENERATION, Common.DEVICE_FEATURE, 0x40, 0xFFC])
                put(place, 1, 0xFF)
            case _:
                # Before it has negotiated virtio 1, a driver may set QEMU's MAC address.
                put(virtio_pci.DEVICE + 2 * rng.randrange(3, 8), 2, 0xFFFF)
        steps += [(register, size, None) for register, size in rng.sample(_READ, 6)]
    return steps


#: QEMU's reset does not clear what selects.
_SELECTED: list[tuple[int, int, int | None]] = [
    (Common.DEVICE_FEATURE_SELECT, 4, 0),
    (Common.DRIVER_FEATURE_SELECT, 4, 0),
    (Common.QUEUE_SELECT, 2, 0),
]
_READ = [
    (Common.DEVICE_FEATURE_SELECT, 4),
    (Common.DEVICE_FEATURE, 4),
    (Common.DRIVER_FEATURE_SELECT, 4),
    (Common.CONFIG_MSIX_VECTOR, 2),
    (Common.DEVICE_STATUS, 1),
    (Common.QUEUE_SELECT, 2),
    (Common.QUEUE_SIZE, 2),
    (Common.QUEUE_MSIX_VECTOR, 2),
    (Common.QUEUE_ENABLE, 2),
    *((Common.QUEUE_DESC + 4 * word, 4) for word in range(6)),
    (Common.QUEUE_DESC, 8),
    (0x38, 4),
    (0xF00, 4),
    (virtio_pci.ISR, 1),
    *((virtio_pci.DEVICE + offset, 2) for offset in range(0, 16, 2)),
    (virtio_pci.DEVICE, 4),
    (virtio_pci.DEVICE + 0xF00, 4),
    (virtio_pci.NOTIFY, 2),
]


@pytest.mark.parametrize("seed", range(8))
def test_its_registers_answer_as_qemus_do(qemu: QemuCard, own: Card, seed: int) -> None:
    program = _program(random.Random(seed))
    for number, (offset, size, value) in enumerate([(Common.DEVICE_STATUS, 1, 0), *_SELECTED, *program]):
        if value is not None:
            qemu.write(BAR + offset, size, value)
            own.guest.mmio_write(BAR + offset, size, value)
            continue
        expected, observed = qemu.read(BAR + offset, size), own.guest.mmio_read(BAR + offset, size)
        assert observed == expected, f"step {number}: {offset:#x}: {observed:#x}, QEMU has {expected:#x}"
