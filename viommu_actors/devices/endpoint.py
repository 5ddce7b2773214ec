"""A PCI Express function: configuration space, BARs, and a DMA engine driven by generator tasks.

A device's work is written straight down, as generators that wait for the answer to a read:
`data = yield from self.dma_read(address, length)`. Between the steps of one task the function goes on
serving requests, so MMIO is answered while DMA is outstanding. PCI Express Base 5.0 chapters 2 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from viommu_actors.devices.device_tlb import DeviceTlb
from viommu_actors.devices.dma_engine import DmaEngine, Task, Transfer
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.pci.function import Function
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.tlp import AddressType, Completion, CompletionStatus, IntxMessage, MemWrite

#: Lines logged of each kind of complaint; all are counted.
_COMPLAINTS_LOGGED = 10


class FunctionState(NamedTuple):
    """What a kernel has set up of a function: its ID, its configuration space, its MSI-X table (4 dwords an entry)."""

    requester: int
    config: bytes
    vectors: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Any) -> FunctionState:
        """From plain values that came by a wire. Raises ValueError."""
        try:
            requester, config, vectors = values
            if type(requester) is int and type(config) is bytes and _dwords(vectors):
                return cls(requester, config, vectors)
        except (TypeError, ValueError):
            pass
        raise ValueError("no state of a function")


def _dwords(vectors: Any) -> bool:
    return type(vectors) is tuple and all(
        type(entry) is tuple and all(type(dword) is int for dword in entry) for entry in vectors
    )


class Interposer(Protocol):
    """Stands between a driver and the registers of a function, its interrupt table aside."""

    def read(self, bar: int, offset: int, size: int) -> int | None:
        """What the driver is to see; None: what the register holds."""

    def write(self, bar: int, offset: int, size: int, value: int) -> bool:
        """Whether it keeps a write from the register."""


class Endpoint(Function):
    """Type 0 function behind a link. `send` takes what goes upstream; `log` a line for the operator.

    When its device is reset, its tasks are gone already.
    """

    def __init__(
        self, config: ConfigSpace, send: Callable[[tlp.Upstream], None], log: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__(config, self._post_message)
        self.send = send
        self.log = log
        self.engine = DmaEngine(send, self.counters, self._advance)
        self.requester = 0
        self.interposer: Interposer | None = None
        #: how many answers are still to be withheld, and those that are
        self._withholding = 0
        self._withheld: list[Completion] = []
        ats = config.extended_capability(pci.ExtendedCapabilityId.ATS)
        #: Its address translation services, where it has the capability.
        self.device_tlb = None if ats is None else DeviceTlb(self, ats)
        self._tasks: set[Task] = set()
        self._latch()

    # --- for subclasses

    def complain(self, kind: str, line: str) -> None:
        """Counts what a driver or the fabric did wrong, and logs the first ones of each kind."""
        self.counters[kind] += 1
        if self.counters[kind] <= _COMPLAINTS_LOGGED:
            self.log(line)

    # --- handed over to other firmware

    def state(self) -> FunctionState:
        """What the kernel has set up of the function."""
        entries = [] if self._msix is None else self._msix.entries()
        return FunctionState(self.requester, self.config.dump(), tuple(tuple(entry) for entry in entries))

    def adopt(self, state: FunctionState) -> None:
        """Goes on with what the kernel has set up of other firmware's function. Raises ValueError for no such state."""
        vectors = 0 if self._msix is None else self._msix.vectors
        if len(state.config) != pci.CONFIG_SIZE or not 0 <= state.requester < 1 << 16:
            raise ValueError("no configuration of a function")
        if len(state.vectors) != vectors or any(
            len(entry) != 4 or not all(0 <= dword < 1 << 32 for dword in entry) for entry in state.vectors
        ):
            raise ValueError(f"no MSI-X table of {vectors} entries")
        self._reset()
        self.requester = state.requester
        self.config.load(state.config)
        if self._msix is not None:
            self._msix.load(state.vectors)
        self._latch()

    # --- from the link

    def receive(self, message: object) -> None:
        """Serves one message from the root port."""
        if isinstance(message, Completion):  # as nearly all of them are
            self.engine.completion(message)
            return
        match message:
            case tlp.MmioRead(tag, address, length):
                self._mmio_read(tag, address, length)
            case tlp.MmioWrite(address, data):
                self._mmio_write(address, data)
            case tlp.CfgRead(tag, _, devfn, offset, length):
                self._config_read(tag, devfn, offset, length)
            case tlp.CfgWrite(tag, bus, devfn, offset, data):
                self._config_write(tag, bus, devfn, offset, data)
            case tlp.InvalidateRequest() if self.device_tlb is not None:
                self.device_tlb.receive(message)
            case tlp.HotReset():
                self._reset()
                self.requester = 0
            case _:
                self.counters["unsupported"] += 1

    @property
    def outstanding(self) -> list[int]:
        """Tags of requests that wait for a completion, oldest first."""
        return self.engine.outstanding

    def expire(self, tag: int) -> None:
        """Completion timeout: the request failed; a late completion is unexpected."""
        self.engine.expire(tag)

    # --- tasks

    def start(self, task: Task) -> None:
        """Runs a task until it waits for the first time; it goes on as its transfers complete."""
        self._tasks.add(task)
        self._advance(task)

    def cancel_tasks(self) -> None:
        """Ends every task and forgets what is in flight; completions of it are unexpected from now on."""
        tasks, self._tasks = self._tasks, set()
        self.engine.abandon()
        for task in tasks:
            # One that is running now refuses to be closed, and ends at its next wait.
            with suppress(ValueError):
                task.close()

    def _advance(self, task: Task) -> None:
        for transfer in task:
            if task not in self._tasks:
                task.close()
                return
            if transfer.waiting:
                transfer.task = task
                return
        self._tasks.discard(task)

    # --- DMA, as an honest function does it: bus master enable, max payload, max read request

    def dma_read(self, address: int, length: int) -> Generator[Transfer, None, bytes | None]:
        """Reads `length` bytes; None where bus mastering is off or a part was refused or not answered."""
        if not self._bus_master:
            self.counters["no bus master"] += 1
            return None
        if self.device_tlb is not None and self.device_tlb.enabled:
            return (yield from self.device_tlb.read(address, length))
        transfer = self.engine.read(self.requester, address, length, self.max_read)
        yield transfer
        return transfer.data

    def dma_write(self, address: int, data: bytes) -> Generator[Transfer, None, bool]:
        """Writes `data`, posted: nobody tells whether it arrived. False where bus mastering is off, or where address
        translation services give no leave. It is sent when this is over, and waits for nothing else."""
        if not self._bus_master:
            self.counters["no bus master"] += 1
            return False
        if self.device_tlb is not None and self.device_tlb.enabled:
            return (yield from self.device_tlb.write(address, data))
        self.engine.write(self.requester, address, data, self.max_payload)
        return True

    def withhold(self, requests: int) -> None:
        """No honest function does: the next so many requests are not answered. What was withheld before is sent now."""
        late, self._withheld = self._withheld, []
        self._withholding = requests
        for completion in late:
            self.send(completion)

    def interrupt_otherwise(self, address: int, data: int) -> None:
        """Raises interrupt 0 with another message than the driver's: the table is the device's own."""
        if self._msix is not None and self._msix.enabled:
            self._msix.signal_otherwise(address, data)
        else:
            self._send_message(address, data)

    def drive_wire(self, pin: int, asserted: bool) -> None:
        self.send(IntxMessage(pin, asserted))

    def _post_message(self, address: int, data: int) -> None:
        payload = data.to_bytes(4, "little")
        self.send(MemWrite(self.requester, AddressType.UNTRANSLATED, address, 0xF, 0, payload))

    # --- registers

    def _mmio_read(self, tag: int, address: int, length: int) -> None:
        place = self.place(address, length)
        value = self.register_read(*place, length) if place else None
        if value is None:
            self._refuse(tag)
        else:
            data = (value & (1 << 8 * length) - 1).to_bytes(length, "little")
            self._answer(Completion(tag, CompletionStatus.SUCCESS, length, data))

    def _mmio_write(self, address: int, data: bytes) -> None:
        place = self.place(address, len(data))
        if place is None:
            self.counters["unsupported"] += 1
        else:
            self.register_write(*place, len(data), int.from_bytes(data, "little"))

    def _device_read(self, bar: int, offset: int, size: int) -> int | None:
        shown = None if self.interposer is None else self.interposer.read(bar, offset, size)
        return self.bar_read(bar, offset, size) if shown is None else shown

    def _device_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if self.interposer is None or not self.interposer.write(bar, offset, size, value):
            self.bar_write(bar, offset, size, value)

    def _config_read(self, tag: int, devfn: int, offset: int, length: int) -> None:
        if pci.bdf_function(devfn) or not pci.is_config_access(offset, length):
            self._refuse(tag)
        else:
            data = self.config.read(offset, length).to_bytes(length, "little")
            self._answer(Completion(tag, CompletionStatus.SUCCESS, length, data))

    def _config_write(self, tag: int, bus: int, devfn: int, offset: int, data: bytes) -> None:
        if pci.bdf_function(devfn) or not pci.is_config_access(offset, len(data)):
            self._refuse(tag)
            return
        # A function learns its ID from each type 0 configuration write (section 2.2.6.2).
        self.requester = bus << 8 | devfn
        self.configure(offset, len(data), int.from_bytes(data, "little"))
        self._answer(Completion(tag, CompletionStatus.SUCCESS, 0, b""))

    def _answer(self, completion: Completion) -> None:
        """The completion of a request of the root complex; withheld as long as a rogue wants that."""
        if self._withholding:
            self._withholding -= 1
            self._withheld.append(completion)
        else:
            self.send(completion)

    def _refuse(self, tag: int) -> None:
        self.counters["unsupported"] += 1
        self._answer(Completion(tag, CompletionStatus.UNSUPPORTED_REQUEST, 0, b""))

    def _reset(self) -> None:
        self.cancel_tasks()
        super()._reset()

    def _latch(self) -> None:
        read = self.config.read
        control = 0 if self._express is None else read(self._express + pci.EXP_DEVICE_CONTROL, 2)
        payload = (control & pci.DEVCTL_MAX_PAYLOAD_MASK) >> pci.DEVCTL_MAX_PAYLOAD_SHIFT
        self.max_payload = pci.payload_size(payload)
        self.max_read = pci.payload_size((control & pci.DEVCTL_MAX_READ_MASK) >> pci.DEVCTL_MAX_READ_SHIFT)
        if self.device_tlb is not None:
            self.device_tlb.latch()
        self.engine.extend_tags(bool(control & pci.DEVCTL_EXTENDED_TAG))
        super()._latch()
