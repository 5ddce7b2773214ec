"""Every attack under every setting, or an application by every way: a topology of processes for each, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from viommu_actors.app.pci import UserDriver
from viommu_actors.attacks.catalogue import Setting, Target
from viommu_actors.attacks.expected import BASE_SETTINGS, BackEndDriver, Driver, KernelDriver, expected
from viommu_actors.supervise.run import Ended, Run
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.model import Topology
from viommu_actors.topology.refusals import check
from viommu_actors.topology.resolve import resolve
from viommu_actors.topology.resolved import ResolvedTopology
from viommu_actors.topology.settings import for_applications, for_back_ends, under

_changed = msgspec.structs.replace


class Column(NamedTuple):
    """One topology to be run."""

    setting: Setting
    driver: Driver
    topology: ResolvedTopology


@dataclass(frozen=True)
class Played:
    """How the topology of a column ended."""

    column: Column
    ended: Ended


def columns(topology: Topology, settings: Sequence[Setting], drivers: Sequence[KernelDriver]) -> list[Column]:
    """The topologies of all columns. Raises `Refusal` for one that cannot be."""
    made = []
    attacks = {device.name: device.rogue for device in topology.device}
    for driver, setting in product(drivers, settings):
        changed = under(topology, setting, driver)
        check(changed)
        made.append(Column(setting, driver, _only_rogues_of(driver, resolve(changed), attacks)))
    return made


def columns_of_applications(topology: Topology) -> list[Column]:
    """Those of each way to a device under each setting of the guest. Raises `Refusal` for one that cannot be."""
    if not any(vm.app for vm in topology.vm):
        raise Refusal("vm", "no VM has an application", "add a [[vm.app]] to one, as configs/dpdk-matrix.toml has")
    _refuse_unjudged(topology)
    made = []
    for driver, setting in product(get_args(UserDriver), BASE_SETTINGS):
        changed = for_applications(topology, setting, driver)
        check(changed)
        resolved = resolve(changed)
        for name in _given_to_applications(topology):
            if (really := resolved.setting(name)) != setting:
                why = f'"{name}" would be under {really}, not {setting}'
                raise Refusal("vm", why, "give its VM a viommu, and no bypass_iommu")
        made.append(Column(setting, driver, resolved))
    return made


def columns_of_back_ends(topology: Topology) -> list[Column]:
    """Those of each way in which a card is driven whose back end attacks, under each setting of the guests.

    Raises `Refusal` for one that cannot be.
    """
    hostile = {card.name for vm in topology.vm for card in vm.virtio_net if card.rogue}
    if not hostile:
        raise Refusal("vm", "no card has a back end that attacks", "give a [[vm.virtio_net]] a rogue")
    by_application = hostile & set(_given_to_applications(topology))
    drivers: list[BackEndDriver] = ["vhost"] if hostile - by_application else []
    if by_application:
        drivers += ["vhost-vfio", "vhost-noiommu"]
    made = []
    for driver, setting in product(drivers, BASE_SETTINGS):
        changed = for_back_ends(topology, setting, driver)
        check(changed)
        made.append(Column(setting, driver, resolve(changed)))
    return made


def play(chosen: Sequence[Column], folder: Path, tell: Callable[[str], None]) -> Iterator[Played]:
    """Runs the columns, each in a folder of its own. Raises OSError where a folder cannot be made."""
    for column in chosen:
        name = column.topology.name
        run = Run(column.topology, folder / name, partial(_tell_of, tell, name), setting=column.setting)
        yield Played(column, run.play(lambda results: None, stay=False))


def _tell_of(tell: Callable[[str], None], column: str, text: str) -> None:
    tell(f"{column}: {text}")


def _given_to_applications(topology: Topology) -> list[str]:
    return [port.device for vm in topology.vm for app in vm.app for port in app.port]


def _refuse_unjudged(topology: Topology) -> None:
    """Raises `Refusal` for an application's device that nothing is tried with of which a verdict could come."""
    attacks = {device.name: device.rogue for device in topology.device}
    for name in _given_to_applications(topology):
        cells = (expected(attack, "vfio", Target.GUEST_MEMORY, "strict") for attack in attacks[name])
        if all(cell.verdict is None for cell in cells):
            why = f'"{name}" plays no attack on guest memory that an application\'s device is judged by'
            raise Refusal("device", why, 'give it rogue = ["A54", "A2"], as configs/dpdk-matrix.toml does')


def _only_rogues_of(
    driver: KernelDriver, topology: ResolvedTopology, attacks: Mapping[str, tuple[str, ...]]
) -> ResolvedTopology:
    """With all attacks of the devices that this kind of kernel drives, also those that say why they cannot be here."""
    devices = tuple(
        _changed(device, rogue=attacks[device.name] if (device.vm is None) == (driver == "host") else ())
        for device in topology.devices
    )
    return _changed(topology, devices=devices)
