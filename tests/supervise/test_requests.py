"""What may be asked at a run's door is typed and bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from viommu_actors.supervise.requests import Attack, DeviceAdd, Status, read


def test_requests() -> None:
    assert read(b'{"command": "status", "id": 3}') == Status(id=3)
    assert read(b'{"command": "device_add", "place": "as", "device": "nic0"}') == DeviceAdd(place="as", device="nic0")
    assert read(b'{"command": "attack", "device": "nic0", "attacks": ["A1"]}') == Attack(device="nic0", attacks=("A1",))


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": "reboot"},
        {"command": "stop", "now": True},
        {"command": "status", "id": -1},
        {"command": "device_add"},
        {"command": "device_add", "place": "on", "device": "nic0"},
        {"command": "device_add", "place": "slot", "slot": 0},
        {"command": "device_add", "place": "as", "device": "n" * 65},
        {"command": "attack", "device": "nic0", "attacks": ["A1"] * 257},
        {"command": "attack", "device": "nic0", "repeat": 1001},
        {"command": "attack", "device": "nic0", "repeat": "2"},
    ],
)
def test_what_is_none_is_told_in_one_line(request_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a request is a JSON object") as caught:
        read(json.dumps(request_).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frame", [b"", b"[" * 5000, b"1", b"\xff", b"null", b'{"command": []}'])
def test_what_is_no_json_object(frame: bytes) -> None:
    with pytest.raises(ValueError, match="a request is a JSON object"):
        read(frame)
