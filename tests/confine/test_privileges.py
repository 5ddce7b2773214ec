"""What a process gives up, seen in a process that gave it up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from viommu_actors.confine.sandbox import lacking

ROOT = Path(__file__).resolve().parents[2]


def _told(program: str) -> Any:
    """What a Python program of its own prints as JSON."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_descriptors_that_were_not_given_are_closed() -> None:
    after, given = _told(
        "import json, os\n"
        "from viommu_actors.confine.privileges import close_others\n"
        "stray, given = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)], os.pipe()\n"
        "close_others(given)\n"
        "held = {int(name) for name in os.listdir('/proc/self/fd')} - {0, 1, 2}\n"
        "open_now = sorted(fd for fd in held if os.path.exists(f'/proc/self/fd/{fd}'))\n"
        "print(json.dumps([open_now, list(given)]))\n"
    )
    assert after == given


def test_only_reading_and_only_modules_is_left_of_files() -> None:
    if reason := lacking():
        pytest.skip(f"no full sandbox here: {reason}")
    read, refused = _told(
        "import json, os, sys\n"
        "from viommu_actors.confine.sandbox import Sandbox\n"
        "sandbox = Sandbox('require')\n"
        "sandbox.enter([])\n"
        "assert sandbox.seal().level == 'full'\n"
        "def opens(path, flags):\n"
        "    try:\n"
        "        os.close(os.open(path, flags))\n"
        "    except PermissionError:\n"
        "        return False\n"
        "    return True\n"
        "module = json.__file__\n"
        "places = ['/etc/passwd', '/proc/self/maps', '/proc/1/status', '/dev/shm', '/tmp', '/', '.', sys.executable]\n"
        "print(json.dumps([opens(module, os.O_RDONLY), [opens(place, os.O_RDONLY) for place in places]\n"
        "    + [opens(module, flags) for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC, os.O_PATH)]]))\n"
    )
    assert read and not any(refused)
