"""Other firmware goes on with what the kernel has set up of a function."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.devices.bench import BAR_ADDRESS, FUNCTION, VECTOR, Bench
from viommu_actors.devices.dma_engine import Task
from viommu_actors.devices.endpoint import Endpoint, FunctionState
from viommu_actors.devices.nic import Nic
from viommu_actors.spec import nic, pci

_MSIX_BAR = 0xC010_0000


def _nic() -> Bench:
    bench = Bench()
    bench.endpoint = Nic(bench.send, mac=bytes(6))
    return bench


def _set_up() -> Bench:
    bench = _nic()
    bench.enable(max_payload=256)
    bench.configure(pci.BAR0 + 4 * nic.MSIX_BAR, 4, _MSIX_BAR)
    return bench


def _write(endpoint: Endpoint, address: int, data: bytes) -> Task:
    yield from endpoint.dma_write(address, data)


def _plain(state: FunctionState) -> Any:
    """As it comes by a wire."""
    return tuple(state)


def test_it_answers_at_the_same_place_and_by_the_same_name() -> None:
    before, after = _set_up(), _nic()
    after.endpoint.adopt(FunctionState.of(_plain(before.endpoint.state())))
    assert after.endpoint.config.dump() == before.endpoint.config.dump()
    assert after.endpoint.requester == FUNCTION and after.endpoint.max_payload == 256
    assert after.read(nic.Reg.STATUS) is not None
    after.endpoint.start(_write(after.endpoint, 0x1000, b"data"))
    assert after.endpoint.interrupt()
    after.serve()
    assert after.memory[0x1000:0x1004] == b"data" and after.vectors == [VECTOR]


def test_msix_entries_go_with_it() -> None:
    before, after = _set_up(), _nic()
    offset = before.endpoint.config.capability(pci.CapabilityId.MSIX)
    assert offset is not None
    before.endpoint.config.write(offset + pci.MSIX_CONTROL, 2, pci.MSIX_ENABLE)
    before.write(_MSIX_BAR - BAR_ADDRESS + nic.MSIX_TABLE, 0xFEE0_0000)
    before.write(_MSIX_BAR - BAR_ADDRESS + nic.MSIX_TABLE + pci.MSIX_ENTRY_DATA, 0x55)
    before.write(_MSIX_BAR - BAR_ADDRESS + nic.MSIX_TABLE + pci.MSIX_ENTRY_CONTROL, 0)
    after.endpoint.adopt(before.endpoint.state())
    assert after.endpoint.interrupt(0)
    after.serve()
    assert after.vectors == [0x55]


def test_what_software_may_not_change_no_firmware_hands_over() -> None:
    """A rogue's word for the state it leaves decides neither what the device is nor what it can."""
    before, after = _set_up(), _nic()
    state = before.endpoint.state()
    after.endpoint.adopt(state._replace(config=os.urandom(pci.CONFIG_SIZE)))
    honest = after.endpoint.config
    assert honest.read(pci.VENDOR_ID, 2) == nic.VENDOR_ID and honest.read(pci.DEVICE_ID, 2) == nic.DEVICE_ID
    assert [kind for kind, _ in honest.capabilities()] == [kind for kind, _ in before.endpoint.config.capabilities()]


@pytest.mark.parametrize(
    "values",
    [
        None,
        (),
        (0, b"", ()),
        (0, bytes(4096)),
        (0, "x" * 4096, ()),
        (True, bytes(4096), ((0, 0, 0, 1),) * 3),
        (1 << 16, bytes(4096), ((0, 0, 0, 1),) * 3),
        (0, bytes(4096), ((0, 0, 0, 1),) * 2),
        (0, bytes(4096), ((0, 0, 0),) * 3),
        (0, bytes(4096), ((0, 0, 0, -1),) * 3),
        (0, bytes(4096), ((0, 0, 0, b"1"),) * 3),
        (0, bytes(4096), [[0, 0, 0, 1]] * 3),
    ],
)
def test_what_is_no_state_changes_nothing(values: Any) -> None:
    bench = _set_up()
    before = bench.endpoint.state()
    with pytest.raises(ValueError):
        bench.endpoint.adopt(FunctionState.of(values))
    assert bench.endpoint.state() == before
