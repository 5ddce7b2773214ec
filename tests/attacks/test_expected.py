"""The reviewed data file covers the catalogue and says what the seed claims."""

from __future__ import annotations

import pytest

from viommu_actors.attacks.catalogue import CATALOGUE, Target
from viommu_actors.attacks.expected import Driver, Setting, expected, matrix

SETTINGS: tuple[Setting, ...] = ("none", "strict", "passthrough")


def test_every_attack_has_a_cell_for_each_of_its_targets_and_settings() -> None:
    wanted = {
        (attack.id, driver, target, setting)
        for attack in CATALOGUE.values()
        for driver in ("host", "guest")
        for target in attack.targets
        for setting in SETTINGS
        if (driver, target) != ("host", Target.GUEST_MEMORY)  # a host-driven device has no guest
    }
    assert set(matrix()) == wanted


def test_every_cell_has_a_reason_and_a_source() -> None:
    for key, cell in matrix().items():
        assert cell.reason and cell.source, key


def test_reads_leak_and_writes_corrupt() -> None:
    for key, cell in matrix().items():
        harm = "leaked" if CATALOGUE[key.attack].access == "read" else "corrupted"
        assert cell.verdict in (None, "blocked", harm), key


def test_claim_c1_a_host_driven_device_is_stopped_at_the_hosts_iommu() -> None:
    for key, cell in matrix().items():
        if key.driver == "host" and key.setting == "strict":
            assert cell.verdict == "blocked", key


def test_claim_c3_without_a_viommu_only_the_own_guest_is_exposed() -> None:
    for key, cell in matrix().items():
        if key.driver == "guest" and key.setting == "none":
            assert (cell.verdict == "blocked") == (key.target != Target.GUEST_MEMORY), key


def test_claim_c4_with_a_viommu_everything_is_blocked() -> None:
    for key, cell in matrix().items():
        if key.driver == "guest" and key.setting == "strict":
            assert cell.verdict == "blocked", key


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", [Target.HOST_MEMORY, Target.OTHER_GUEST])
def test_no_setting_of_a_guest_exposes_the_host_or_another_guest(setting: Setting, target: Target) -> None:
    driver: Driver = "guest"
    for attack in CATALOGUE.values():
        if target in attack.targets:
            assert expected(attack.id, driver, target, setting).verdict == "blocked"


def test_an_unknown_cell_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        expected("A99", "guest", Target.GUEST_MEMORY, "strict")
