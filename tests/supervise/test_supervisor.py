"""A signal to a launcher that has several sets of processes at the same time, as the laboratory has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.topologies.launcher import SMALL
from viommu_actors.supervise.folder import RunFolder
from viommu_actors.supervise.plan import Plan
from viommu_actors.supervise.supervisor import Interrupted, Supervisor
from viommu_actors.topology.load import parse
from viommu_actors.topology.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with closing(RunFolder(resolve(parse(SMALL)), tmp_path)) as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whichever_waits_hears_of_a_signal_at_once(folder: RunFolder, number: signal.Signals) -> None:
    with Supervisor(Plan(), folder) as first, Supervisor(Plan(), folder) as second:
        for waiting in (first, second):
            os.kill(os.getpid(), number)
            with pytest.raises(Interrupted, match=number.name):
                waiting.poll(3600)


def test_one_that_comes_after_the_signal_starts_nothing(folder: RunFolder) -> None:
    with Supervisor(Plan(), folder):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted), Supervisor(Plan(), folder) as late:
            late.poll(3600)


def test_handlers_are_given_back(folder: RunFolder) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Supervisor(Plan(), folder), Supervisor(Plan(), folder):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
