"""What the ends of wires stand on in these tests."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from viommu_actors.wire.sockets import Listener


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener.create()
    yield made
    os.close(made.fd)


@pytest.fixture
def poller() -> Iterator[select.epoll]:
    with closing(select.epoll()) as made:
        yield made
