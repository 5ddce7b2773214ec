"""What virtual switches must be together with the network cards that they serve."""

from __future__ import annotations

from viommu_actors.attacks.catalogue import PLAYABLE, Target
from viommu_actors.topology.errors import Refusal
from viommu_actors.topology.guess import did_you_mean
from viommu_actors.topology.model import Topology


def check_vswitches(topology: Topology) -> None:
    """Raises the first `Refusal`; names have been checked."""
    there = [vswitch.name for vswitch in topology.vswitch]
    ports: dict[str, list[str]] = {name: [] for name in there}
    for v, vm in enumerate(topology.vm):
        for c, card in enumerate(vm.virtio_net):
            key = f"vm[{v}].virtio_net[{c}]"
            if card.vswitch not in ports:
                remedy = did_you_mean(card.vswitch, there) or "add a [[vswitch]] of this name"
                raise Refusal(f"{key}.vswitch", f'there is no virtual switch "{card.vswitch}"', remedy)
            if vm.parent is not None:
                raise Refusal(
                    key,
                    f'"{vm.name}" runs in "{vm.parent}", whose user space is where its switch would have to be',
                    "give the card to a VM that runs on the host",
                )
            ports[card.vswitch].append(key)
    for s, vswitch in enumerate(topology.vswitch):
        if not ports[vswitch.name]:
            raise Refusal(
                f"vswitch[{s}]",
                f'"{vswitch.name}" has no ports',
                f'add a [[vm.virtio_net]] with vswitch = "{vswitch.name}"',
            )
    _somebody_to_talk_to(topology, ports)
    _attacks(topology)


def _somebody_to_talk_to(topology: Topology, ports: dict[str, list[str]]) -> None:
    for v, vm in enumerate(topology.vm):
        for c, card in enumerate(vm.virtio_net):
            if card.operations and len(ports[card.vswitch]) == 1:
                raise Refusal(
                    f"vm[{v}].virtio_net[{c}].operations",
                    f'"{card.name}" is alone on "{card.vswitch}": nobody takes its frames',
                    "set it to 0, or add another card",
                )


def _attacks(topology: Topology) -> None:
    by_back_ends = [attack.id for attack in PLAYABLE.values() if attack.back_end]
    for v, vm in enumerate(topology.vm):
        for c, card in enumerate(vm.virtio_net):
            for r, attack in enumerate(card.rogue):
                key = f"vm[{v}].virtio_net[{c}].rogue[{r}]"
                if attack not in PLAYABLE:
                    remedy = did_you_mean(attack, PLAYABLE) or f"known are {', '.join(by_back_ends)}"
                    raise Refusal(key, f'there is no attack "{attack}"', remedy)
                if attack not in by_back_ends:
                    words = f'"{attack}" is none of a back end: its wire has no such message'
                    raise Refusal(key, words, f"name some of {', '.join(by_back_ends)}")
                if attack in card.rogue[:r]:
                    raise Refusal(key, f'"{attack}" stands there twice', "name each attack once")
                if PLAYABLE[attack].targets == (Target.OTHER_GUEST,) and len(topology.vm) == 1:
                    words = f'"{attack}" aims at another guest, and there is none'
                    raise Refusal(key, words, f"add a [[vm]], or take {attack} out")
