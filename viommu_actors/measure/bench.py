"""What is measured: each operation on the system that has it, and its floor beside it.

Everything here is a batch of one kind of operation, so that batches of different kinds can take turns. Series are
nanoseconds an operation.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

from viommu_actors.measure import floors
from viommu_actors.measure.settings import Model, Subject
from viommu_actors.supervise.owner import Owner, owner_of
from viommu_actors.supervise.supervisor import Supervisor
from viommu_actors.topology.resolved import ResolvedDevice, ResolvedTopology

Series = dict[str, list[int]]
Measurement = Callable[[], Series]

#: Pages of one map.
BATCHES: Final = {1: 40, 4: 8, 16: 4, 64: 2, 256: 1}
SEGMENTS: Final = 16
#: Bytes of a DMA read or write whose latency is measured; of one in a stream.
SMALL: Final = 64
PAGE: Final = 4096
WINDOW: Final = 64
#: Reads that each of many devices has outstanding.
CROWD_WINDOW: Final = 8
#: Reads of each in a batch: so many that it says little who was told first to begin.
CROWD_READS: Final = 256
#: Seconds between posted writes, so that each finds the host waiting.
GAP: Final = 100e-6
_MISSES = 24
_STREAM_PAGES = 16


class System:
    """One topology that is up and booted."""

    def __init__(self, subject: Subject, topology: ResolvedTopology, supervisor: Supervisor) -> None:
        self.topology = topology
        self.supervisor = supervisor
        self._subject = subject

    def device(self, model: Model) -> ResolvedDevice:
        """The one of that model that is measured."""
        return self.topology.device(self._subject.device(model))

    def owner(self, device: ResolvedDevice) -> Owner:
        """Who drives it."""
        return owner_of(self.topology, device)

    def kernel(self, model: Model, command: str, **arguments: Any) -> Any:
        """A command to the kernel that drives the device, about the device."""
        owner = self.owner(self.device(model))
        return self.supervisor.command(owner.kernel, command, bdf=owner.bdf, **arguments)


class Bench:
    """The systems by setting, and the floors."""

    def __init__(self, systems: Mapping[str, System], floor: Supervisor) -> None:
        self.systems = systems
        self._floor = floor
        self._strict = strict = systems["strict"]
        self._nic = strict.device("nic")
        self._guest = strict.owner(self._nic).kernel
        many = systems["many"]
        self._crowd = {
            device.name: many.supervisor.command("host", "hold", bdf=device.bdf, pages=1)
            for device in many.topology.devices
        }

    def measurements(self) -> dict[str, Measurement]:
        """Every batch by name."""
        return {
            "hop": lambda: {"hop": self._ask("time_trapped_reads", count=40)},
            "mmio_trap": lambda: {"mmio_trap": self._ask("time_trapped_writes", count=20)},
            "two_hop_chain": lambda: {"two_hop_chain": self.config_reads(20)},
            **{f"map_{pages}": self._maps("strict", pages, count) for pages, count in BATCHES.items()},
            "map_passthrough": self._maps("passthrough", 1, 40),
            "map_sg": self._scattered,
            "dma_read_hit": lambda: {"dma_read_hit": self.reads(30, hit=True)},
            "dma_read_miss": lambda: {"dma_read_miss": self.reads(_MISSES, hit=False)},
            "dma_write_posted": lambda: {"dma_write_posted": [done - began for began, done in self.writes(20)]},
            "mmio_direct": lambda: {"mmio_direct": nanoseconds(self._strict.kernel("edu", "time_bar_reads", count=20))},
            "interrupt": lambda: {"interrupt": self.interrupts(12)},
            "pipeline": self._pipeline,
            "fan_in": self._fan_in,
            **{f"io_{name}": self._packets(name) for name in ("strict", "static", "passthrough", "none", "host")},
            "bare_round_trip": lambda: {"bare_round_trip": self._bare(floors.PAIR, "round_trips", count=40)},
            "bare_free": lambda: {"bare_free": self._bare(floors.FREE, "round_trips", count=40)},
            "bare_unix": lambda: {"bare_unix": self._bare(floors.PAIR, "unix", count=40)},
            "bare_chain": lambda: {"bare_chain": self._bare(floors.CHAIN, "chain", count=30)},
            "bare_read": lambda: {"bare_read": self._bare(floors.LINK, "reads", count=30, length=SMALL)},
            "bare_posted": self._bare_posted,
            "bare_pipeline": self._bare_pipeline,
            "bare_fan_in": self._bare_fan_in,
        }

    # --- the operations

    def _ask(self, command: str, **arguments: Any) -> list[int]:
        return nanoseconds(self._strict.supervisor.command(self._guest, command, **arguments))

    def trapped_reads(self, count: int) -> list[int]:
        return self._ask("time_trapped_reads", count=count)

    def trapped_writes(self, count: int) -> list[int]:
        return self._ask("time_trapped_writes", count=count)

    def config_reads(self, count: int) -> list[int]:
        return nanoseconds(self._strict.kernel("nic", "time_config_reads", count=count))

    def bar_reads(self, count: int) -> list[int]:
        return nanoseconds(self._strict.kernel("edu", "time_bar_reads", count=count))

    def interrupts(self, count: int) -> list[int]:
        return list(self._strict.kernel("edu", "interrupt_latency", count=count))

    def maps(self, count: int) -> Series:
        """Of one page, in the strict setting."""
        taken = self._strict.kernel("nic", "time_maps", pages=1, count=count)
        return {name: nanoseconds(each) for name, each in taken.items()}

    def reads(self, count: int, hit: bool) -> list[int]:
        """Of a device, from one page that the IOTLB has, or each from a page that it has not."""
        pages = 1 if hit else count
        iova = self._strict.kernel("nic", "hold", pages=pages)
        taken = nanoseconds(
            self._device(
                "time_dma_reads",
                address=iova,
                length=SMALL,
                stride=0 if hit else PAGE,
                count=count + 1 if hit else count,
            )
        )
        self._strict.kernel("nic", "release")
        return taken[1:] if hit else taken

    def writes(self, count: int) -> list[tuple[int, int]]:
        """When each posted write was begun, and when it was in memory."""
        host, link = self._strict.supervisor, self._nic.link
        iova = self._strict.kernel("nic", "hold", pages=1)
        host.command("host", "clock_writes", link=link)
        began = nanoseconds(self._device("time_dma_writes", address=iova, length=SMALL, count=count, gap=GAP))
        time.sleep(10 * GAP)
        done = nanoseconds(host.command("host", "clocked_writes", link=link))
        self._strict.kernel("nic", "release")
        return list(zip(began, done, strict=False))

    def _device(self, command: str, **arguments: Any) -> Any:
        return self._strict.supervisor.command(self._nic.name, command, **arguments)

    def _maps(self, setting: str, pages: int, count: int) -> Measurement:
        system = self.systems[setting]
        suffix = setting if pages == 1 else f"{setting}_{pages}"

        def measure() -> Series:
            taken = system.kernel("nic", "time_maps", pages=pages, count=count)
            return {f"{name}_{suffix}": nanoseconds(each) for name, each in taken.items()}

        return measure

    def _scattered(self) -> Series:
        taken = self._strict.kernel("nic", "time_scattered_maps", segments=SEGMENTS, count=4)
        return {f"{name}_sg_{SEGMENTS}": nanoseconds(each) for name, each in taken.items()}

    def _packets(self, setting: str) -> Measurement:
        system = self.systems[setting]
        return lambda: {f"io_{setting}": nanoseconds(system.kernel("nic", "time_packets", count=5))}

    def _pipeline(self, count: int = 384) -> Series:
        span = _STREAM_PAGES * PAGE
        iova = self._strict.kernel("nic", "hold", pages=_STREAM_PAGES)
        stream = {"address": iova, "length": PAGE, "span": span, "window": WINDOW}
        self._device("stream_dma_reads", **stream, count=_STREAM_PAGES)
        began, ended = self._device("stream_dma_reads", **stream, count=count)
        self._strict.kernel("nic", "release")
        return {"pipeline": [(ended - began) // count]}

    def _fan_in(self, count: int = CROWD_READS) -> Series:
        many = self.systems["many"].supervisor
        arguments = {
            name: {"address": iova, "length": SMALL, "span": SMALL, "count": count, "window": CROWD_WINDOW}
            for name, iova in self._crowd.items()
        }
        return {"fan_in": [_apiece(many.each(arguments, "stream_dma_reads"), count)]}

    # --- the floors

    def _bare(self, actors: tuple[str, ...], command: str, **arguments: Any) -> list[int]:
        return nanoseconds(self._floor.commands(actors, command, **arguments)[actors[0]])

    def _bare_posted(self) -> Series:
        taken = self._floor.commands(floors.LINK, "posted", count=20, length=SMALL, gap=GAP)
        began, done = (nanoseconds(taken[name]) for name in floors.LINK)
        return {"bare_posted": [end - start for start, end in zip(began, done, strict=True)]}

    def _bare_pipeline(self, count: int = 384) -> Series:
        taken = self._floor.commands(floors.LINK, "stream", count=count, length=PAGE, window=WINDOW)
        began, ended = taken[floors.DEVICE]
        return {"bare_pipeline": [(ended - began) // count]}

    def _bare_fan_in(self, count: int = CROWD_READS) -> Series:
        devices = floors.many(len(self._crowd))
        taken = self._floor.commands([floors.ROOT, *devices], "stream", count=count, length=SMALL, window=CROWD_WINDOW)
        return {"bare_fan_in": [_apiece({name: taken[name] for name in devices}, count)]}


def nanoseconds(taken: bytes) -> list[int]:
    """The times of an array('q')."""
    return array("q", taken).tolist()


def _apiece(spans: Mapping[str, tuple[int, int]], count: int) -> int:
    """Nanoseconds an operation where each of several did `count` from began to ended, at the same time."""
    whole = max(ended for _, ended in spans.values()) - min(began for began, _ in spans.values())
    return whole // (count * len(spans))
