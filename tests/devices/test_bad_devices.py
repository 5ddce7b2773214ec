"""Devices whose answers are wrong: the kernel boots, and drives the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.devices.rig import Factory, Rig
from viommu_actors.actors.kernel_commands import KernelCommands
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.endpoint import Endpoint
from viommu_actors.devices.nic import Nic
from viommu_actors.pci.config_space import ConfigSpace, add_msi, endpoint_header
from viommu_actors.spec import edu, nic, pci
from viommu_actors.spec.tlp import Completion

BAD, NIC, EDU = 1, 2, 3


def a_nic(send: Callable[[Any], None], log: Callable[[str], None]) -> Endpoint:
    return Nic(send, log, mac=bytes(6))


def an_edu(send: Callable[[Any], None], log: Callable[[str], None]) -> Endpoint:
    return Edu(send, log)


def garbled(model: Factory, rng: random.Random) -> Factory:
    """A device of which every eighth answer is noise, zeros or ones."""

    def make(send: Callable[[Any], None], log: Callable[[str], None]) -> Endpoint:
        def garble(message: Any) -> None:
            if isinstance(message, Completion) and rng.random() < 0.12:
                length = len(message.data)
                message = message._replace(data=rng.choice([rng.randbytes(length), bytes(length), b"\xff" * length]))
            send(message)

        return model(garble, log)

    return make


def hollow(ids: tuple[int, int], bar: int) -> Factory:
    """A device that has the IDs of a model, and a BAR of `bar` bytes or none."""

    def config() -> ConfigSpace:
        space = endpoint_header(*ids, pci.ClassCode.ETHERNET)
        if bar:
            space.add_bar(0, bar)
        add_msi(space)
        return space

    return lambda send, log: Endpoint(config(), send, log)


def others_work(bad: Factory, cmdline: str, **options: Any) -> Rig:
    """A host with a bad device and two good ones, which do their work."""
    rig = Rig({BAD: bad, NIC: a_nic, EDU: an_edu}, cmdline, **options)
    for slot in (NIC, EDU):
        if slot == NIC or "intel_iommu=on" in cmdline:
            assert rig.driver(slot).run_io(2).verified
    return rig


@pytest.mark.parametrize("seed", range(80))
def test_noise_for_answers(seed: int) -> None:
    rng = random.Random(seed)
    model = garbled(rng.choice([a_nic, an_edu]), rng)
    others_work(model, rng.choice(["", "intel_iommu=on"]), intremap=rng.random() < 0.5)


@pytest.mark.parametrize("ids", [(nic.VENDOR_ID, nic.DEVICE_ID), (edu.VENDOR_ID, edu.DEVICE_ID)])
@pytest.mark.parametrize("bar", [0, 16])
def test_a_device_without_the_registers_of_its_model(ids: tuple[int, int], bar: int) -> None:
    rig = others_work(hollow(ids, bar), "intel_iommu=on")
    assert rig.bdf(BAD) not in rig.kernel.drivers
    assert any("probe failed" in line for line in rig.lines)


def test_the_configuration_space_of_no_function() -> None:
    rig = Rig({NIC: a_nic})
    with pytest.raises(OSError, match=r"no PCI function at 07:00\.0"):
        KernelCommands(rig.kernel).config_space("07:00.0")
