"""The reviewed data file covers the catalogue and says what the seed claims."""

from __future__ import annotations

from typing import get_args

import pytest

from viommu_actors.attacks.catalogue import PLAYABLE, Access, Setting, Target
from viommu_actors.attacks.expected import BACK_ENDS, Driver, KernelDriver, Key, Outcome, expected, matrix
from viommu_actors.attacks.expected import SETTINGS as ALL_SETTINGS

SETTINGS: tuple[Setting, ...] = ("none", "strict", "passthrough")
#: Attacks that use what a driver gave: no translation stops what was mapped, or left mapped.
BY_THE_DRIVERS_LEAVE = ("A6", "A9", "A10", "A40", "A53")
#: There is no guest to make them where the host drives the device.
BY_A_GUEST = ("A33", "A34")
#: What the IOMMU cannot tell apart.
ALIASES = ("A15",)
#: Before the guest's kernel has turned its vIOMMU on.
BEFORE_THE_BOOT = ("A47",)
HARM: dict[Access, Outcome] = {"read": "leaked", "write": "corrupted", "interrupt": "delivered", "service": "degraded"}


def test_every_attack_has_a_cell_for_each_of_its_targets_and_settings() -> None:
    wanted = {
        (attack.id, driver, target, setting)
        for attack in PLAYABLE.values()
        for driver in ("host", "guest")
        for target in attack.targets
        for setting in ALL_SETTINGS
        if (driver, target) != ("host", Target.GUEST_MEMORY)  # a host-driven device has no guest
    }
    assert {key for key in matrix() if key.driver in get_args(KernelDriver)} == wanted


def _is_dma(key: Key) -> bool:
    attack = PLAYABLE[key.attack]
    by_device = attack.by == "device" and attack.access in ("read", "write")
    return by_device and key.attack not in BY_THE_DRIVERS_LEAVE + ALIASES


def test_claim_c12_interrupts_are_protected_by_remapping_alone() -> None:
    for key, cell in matrix().items():
        if key.setting == "ir" and PLAYABLE[key.attack].access == "interrupt":
            assert cell.verdict == "blocked", key
    assert {matrix()[Key("A22", "guest", Target.HOST_VECTOR, setting)].verdict for setting in SETTINGS} == {"delivered"}
    assert matrix()[Key("A23", "guest", Target.OTHER_DEVICE, "ir-nosid")].verdict == "delivered"


def test_every_cell_has_a_reason_and_a_source() -> None:
    for key, cell in matrix().items():
        assert cell.reason and cell.source, key


def test_reads_leak_and_writes_corrupt() -> None:
    for key, cell in matrix().items():
        fitting = (None, "blocked", HARM[PLAYABLE[key.attack].access])
        own = ("redirected",) if key.attack in ("A40", "A53") else ()
        assert cell.verdict in own + fitting, key


def test_claim_c1_a_host_driven_device_is_stopped_at_the_hosts_iommu() -> None:
    for key, cell in matrix().items():
        if key.driver == "host" and key.setting == "strict" and _is_dma(key) and key.attack not in BY_A_GUEST:
            assert cell.verdict == "blocked", key


def test_claim_c3_without_a_viommu_host_and_other_guests_stay_protected() -> None:
    for key, cell in matrix().items():
        foreign = key.target in (Target.HOST_MEMORY, Target.OTHER_GUEST)
        if key.driver == "guest" and key.setting == "none" and _is_dma(key) and foreign:
            assert cell.verdict in ("blocked", None), key


def test_claim_c3_without_a_viommu_the_own_guest_is_exposed() -> None:
    for attack in ("A1", "A2", "A41"):
        harm = HARM[PLAYABLE[attack].access]
        assert expected(attack, "guest", Target.GUEST_MEMORY, "none").verdict == harm


def test_claim_c4_with_a_viommu_everything_is_blocked() -> None:
    for key, cell in matrix().items():
        if key.driver == "guest" and key.setting == "strict" and _is_dma(key) and key.attack not in BEFORE_THE_BOOT:
            assert cell.verdict in ("blocked", None), key


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", [Target.HOST_MEMORY, Target.OTHER_GUEST])
def test_no_setting_of_a_guest_exposes_the_host_or_another_guest(setting: Setting, target: Target) -> None:
    driver: Driver = "guest"
    for attack in PLAYABLE.values():
        if target in attack.targets:
            assert expected(attack.id, driver, target, setting).verdict in ("blocked", None)


@pytest.mark.parametrize("attack", ["A1", "A2", "A54"])
def test_claim_c7_only_vfio_is_safe(attack: str) -> None:
    """The nine combinations as the seed and Linux have them; None where it does not come to it."""
    harm = HARM[PLAYABLE[attack].access]
    drivers: tuple[Driver, ...] = ("vfio", "noiommu", "uio")
    verdicts = {
        driver: [expected(attack, driver, Target.GUEST_MEMORY, setting).verdict for setting in SETTINGS]
        for driver in drivers
    }
    assert verdicts == {
        "vfio": [None, "blocked", "blocked"],
        "noiommu": [harm, None, None],
        "uio": [harm, None, harm],
    }


def test_claim_c9_a_buggy_application_and_a_hostile_device_come_to_the_same() -> None:
    for key, cell in matrix().items():
        if key.attack == "A54" and key.driver not in get_args(KernelDriver):
            assert cell.verdict == expected("A2", key.driver, key.target, key.setting).verdict, key


def test_what_is_not_told_of_applications_says_so() -> None:
    cell = expected("A3", "vfio", Target.BUFFER, "strict")
    assert cell.verdict is None and "applications" in cell.reason


def test_an_unknown_cell_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        expected("A99", "guest", Target.GUEST_MEMORY, "strict")


def test_claim_c10_a_back_end_reaches_what_was_mapped_and_no_more() -> None:
    for key, cell in matrix().items():
        attack = PLAYABLE[key.attack]
        if key.driver not in BACK_ENDS.values() or attack.access not in ("read", "write"):
            continue
        if key.setting == "strict" and key.attack not in BY_THE_DRIVERS_LEAVE:
            assert cell.verdict in ("blocked", None), key
        if key.target in (Target.HOST_MEMORY, Target.OTHER_GUEST):
            assert cell.verdict in ("blocked", None), key


@pytest.mark.parametrize("attack", ["A1", "A2"])
def test_claim_c10_without_a_viommu_or_past_it_the_guest_is_exposed(attack: str) -> None:
    harm = HARM[PLAYABLE[attack].access]
    drivers: tuple[Driver, ...] = ("vhost", "vhost-vfio", "vhost-noiommu", "vhost-uio")
    verdicts = {
        driver: [expected(attack, driver, Target.GUEST_MEMORY, setting).verdict for setting in SETTINGS]
        for driver in drivers
    }
    assert verdicts == {
        "vhost": [harm, "blocked", harm],
        "vhost-vfio": [None, "blocked", "blocked"],
        "vhost-noiommu": [harm, None, None],
        "vhost-uio": [harm, None, harm],
    }


def test_a_back_end_has_a_cell_for_each_of_its_attacks_targets_and_settings() -> None:
    wanted = {
        (attack.id, "vhost", target, setting)
        for attack in PLAYABLE.values()
        for target in attack.targets
        for setting in ALL_SETTINGS
        if attack.back_end
    }
    assert {key for key in matrix() if key.driver == "vhost"} == wanted
