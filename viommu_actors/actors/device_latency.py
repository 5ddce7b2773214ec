"""Control commands of a device that do one kind of DMA over and over and tell what each took (`latency_commands`)."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns, sleep
from typing import Any

from viommu_actors.actors.control import LATER, Control, Later
from viommu_actors.devices.dma_engine import Task, Transfer
from viommu_actors.devices.endpoint import Endpoint


class DeviceLatency:
    """Of a device: its DMA, as an honest function does it. Addresses and sizes are in bytes."""

    def __init__(self, endpoint: Endpoint, control: Control) -> None:
        self._endpoint = endpoint
        self._control = control

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {"time_dma_reads": self.reads, "time_dma_writes": self.writes, "stream_dma_reads": self.stream}

    def reads(self, address: int, length: int, stride: int, count: int) -> Later:
        """One after another, at `address`, `address + stride` and so on; answered with what each took."""
        self._endpoint.start(self._read_each(self._control.number, address, length, stride, count))
        return LATER

    def writes(self, address: int, length: int, count: int, gap: float) -> Later:
        """Posted, with a gap of so many seconds behind each; answered with when each was begun."""
        self._endpoint.start(self._write_each(self._control.number, address, length, count, gap))
        return LATER

    def stream(self, address: int, length: int, span: int, count: int, window: int) -> Later:
        """`count` reads through `span` bytes, `window` of them outstanding; answered with (began, ended)."""
        self._endpoint.start(self._stream(self._control.number, address, length, span, count, window))
        return LATER

    def _read_each(self, number: int, address: int, length: int, stride: int, count: int) -> Task:
        read, taken = self._endpoint.dma_read, array("q")
        for at in range(count):
            began = perf_counter_ns()
            data = yield from read(address + at * stride, length)
            taken.append(perf_counter_ns() - began)
            if data is None:
                self._control.answer(number, None, "a DMA read was refused")
                return
        self._control.answer(number, taken.tobytes())

    def _write_each(self, number: int, address: int, length: int, count: int, gap: float) -> Task:
        began, data = array("q"), os.urandom(length)
        for _ in range(count):
            began.append(perf_counter_ns())
            if not (yield from self._endpoint.dma_write(address, data)):
                self._control.answer(number, None, "bus mastering is off")
                return
            sleep(gap)
        self._control.answer(number, began.tobytes())

    def _stream(self, number: int, address: int, length: int, span: int, count: int, window: int) -> Task:
        endpoint = self._endpoint
        flight: deque[Transfer] = deque()
        failed = 0
        began = perf_counter_ns()
        for at in range(count):
            place = address + at * length % span
            flight.append(endpoint.engine.read(endpoint.requester, place, length, endpoint.max_read))
            if len(flight) == window:
                yield flight[0]
                failed += flight.popleft().data is None
        while flight:
            yield flight[0]
            failed += flight.popleft().data is None
        ended = perf_counter_ns()
        self._control.answer(number, (began, ended), f"{failed} DMA reads were refused" if failed else "")
