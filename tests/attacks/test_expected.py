"""The reviewed data file covers the catalogue and says what the seed claims."""

from __future__ import annotations

import pytest

from viommu_actors.attacks.catalogue import CATALOGUE, Setting, Target
from viommu_actors.attacks.expected import Driver, Key, expected, matrix

SETTINGS: tuple[Setting, ...] = ("none", "strict", "passthrough")
INTERRUPT_SETTINGS: tuple[Setting, ...] = (*SETTINGS, "ir", "ir-nosid")


def test_every_attack_has_a_cell_for_each_of_its_targets_and_settings() -> None:
    wanted = {
        (attack.id, driver, target, setting)
        for attack in CATALOGUE.values()
        for driver in ("host", "guest")
        for target in attack.targets
        for setting in (INTERRUPT_SETTINGS if attack.access == "interrupt" else SETTINGS)
        if (driver, target) != ("host", Target.GUEST_MEMORY)  # a host-driven device has no guest
    }
    assert set(matrix()) == wanted


def _is_dma(key: Key) -> bool:
    return CATALOGUE[key.attack].access != "interrupt"


def test_claim_c12_interrupts_are_protected_by_remapping_alone() -> None:
    for key, cell in matrix().items():
        if key.setting == "ir" and not _is_dma(key):
            assert cell.verdict == "blocked", key
    assert {matrix()[Key("A22", "guest", Target.HOST_VECTOR, setting)].verdict for setting in SETTINGS} == {"delivered"}
    assert matrix()[Key("A23", "guest", Target.OTHER_DEVICE, "ir-nosid")].verdict == "delivered"


def test_every_cell_has_a_reason_and_a_source() -> None:
    for key, cell in matrix().items():
        assert cell.reason and cell.source, key


def test_reads_leak_and_writes_corrupt() -> None:
    for key, cell in matrix().items():
        harm = {"read": "leaked", "write": "corrupted", "interrupt": "delivered"}[CATALOGUE[key.attack].access]
        assert cell.verdict in (None, "blocked", harm), key


def test_claim_c1_a_host_driven_device_is_stopped_at_the_hosts_iommu() -> None:
    for key, cell in matrix().items():
        if key.driver == "host" and key.setting == "strict" and _is_dma(key):
            assert cell.verdict == "blocked", key


def test_claim_c3_without_a_viommu_only_the_own_guest_is_exposed() -> None:
    for key, cell in matrix().items():
        if key.driver == "guest" and key.setting == "none" and _is_dma(key):
            assert (cell.verdict == "blocked") == (key.target != Target.GUEST_MEMORY), key


def test_claim_c4_with_a_viommu_everything_is_blocked() -> None:
    for key, cell in matrix().items():
        if key.driver == "guest" and key.setting == "strict" and _is_dma(key):
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
