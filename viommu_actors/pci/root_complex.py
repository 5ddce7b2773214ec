"""The root complex: bus 0 with its root ports, and the kernel's way to the devices behind them.

PCI Express Base 5.0 chapters 2 and 7. Nothing here waits: a request to a device is answered by calling what
came with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viommu_actors.memory import Memory
from viommu_actors.pci import config_space
from viommu_actors.pci.bridge import PciBridge
from viommu_actors.pci.bridge_function import BridgeFunction
from viommu_actors.pci.component import SwitchConfig, read_registers, write_registers
from viommu_actors.pci.link import Link, Outstanding, PortLog
from viommu_actors.pci.root_port import PortConfig, RootPort
from viommu_actors.pci.switch import Switch
from viommu_actors.pci.upstream import Interrupt, Translate, TranslationServices, Upstream
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.ats import encode_range
from viommu_actors.spec.ioapic import intx_line

#: What the root complex names itself by in invalidations.
_ROOT_ID = pci.bdf(0, 0, 0)


class RootComplex:
    """Bus 0 with its host bridge and root ports, and the way from each port to memory.

    `translate(requester, address, access)` is asked for each memory transaction, `interrupt(requester,
    address, data)` gets each message signalled interrupt and says what blocked it, if anything did. `ats` answers
    address translation services, where there are any. `line(number, asserted)` is told when a line of the I/O APIC goes
    up or down, which devices share that have INTx.
    """

    def __init__(
        self,
        memory: Memory,
        translate: Translate,
        interrupt: Interrupt,
        ports: Sequence[PortConfig],
        ats: TranslationServices | None = None,
        line: Callable[[int, bool], None] = lambda number, asserted: None,
    ) -> None:
        self._slots = {config.slot: RootPort(config) for config in ports}
        self._upstream = Upstream(memory, translate, interrupt, list(self._slots.values()), ats)
        #: By the name of the link: what each device's link ends at.
        self.ports: dict[str, Link] = {}
        #: What takes the messages of each link, and the link.
        self._receivers: dict[str, tuple[Callable[[Link, object], None], Link]] = {}
        self._line = line
        self._asserted: set[int] = set()
        #: (slot, number behind what stands in it) of each link
        self._places: dict[str, tuple[int, int]] = {}
        for config in ports:
            self._stand(config)
        self._host_bridge = config_space.endpoint_header(
            pci.VENDOR_REDHAT, pci.DEVICE_HOST_BRIDGE, pci.ClassCode.HOST_BRIDGE
        )

    def _stand(self, config: PortConfig) -> None:
        """Puts into a slot what is to stand in it."""
        port = self._slots[config.slot]
        if config.below is None:
            self.ports[port.name] = port
            self._receivers[port.name] = self._upstream.receive, port
            self._wire(port, config.slot, 0)
            return
        if isinstance(config.below, SwitchConfig):
            port.component = Switch(config.below, port, self._upstream, config.max_payload)
        else:
            port.component = PciBridge(config.below, port, self._upstream, config.max_payload)
        port.set_presence(True)
        for number, link in enumerate(port.component.links):
            self.ports[link.name] = link
            self._receivers[link.name] = port.component.receive, link
            self._wire(link, config.slot, number)

    def _wire(self, link: Link, slot: int, number: int) -> None:
        self._places[link.name] = slot, number
        link.wires_changed = self._settle_lines

    def _settle_lines(self) -> None:
        """Each port on the way up turns the wires by its device number (section 2.2.8.1), so that devices behind one
        component spread over the lines of its slot."""
        asserted = {
            intx_line(slot, pin + number)
            for name, (slot, number) in self._places.items()
            for pin in self.ports[name].wires
        }
        for line in sorted(asserted ^ self._asserted):
            self._line(line, line in asserted)
        self._asserted = asserted

    # --- links

    def attach(self, link: str, send: Callable[[tlp.Downstream], bool]) -> None:
        """A device stands at the end of the link; `send` returns False where that is full or gone."""
        port = self.ports[link]
        port.send = send
        port.start_over()
        port.set_presence(True)

    def take_over(self, link: str, send: Callable[[tlp.Downstream], bool]) -> None:
        """Other firmware answers for the device of the link, which stays up: nobody is told."""
        port = self.ports[link]
        was_down = port.send is None
        port.send = None
        port.abandon()
        port.send = send
        port.start_over()
        if was_down:
            port.recover()

    def detach(self, link: str) -> None:
        """The device is gone; what waits for it is answered all-ones."""
        port = self.ports[link]
        port.send = None
        port.set_presence(False)
        port.abandon()
        port.drop_wires()

    @property
    def outstanding(self) -> list[tuple[str, int]]:
        """(link, tag) of each request that waits for a device."""
        return [(link, tag) for link, port in self.ports.items() for tag in port.outstanding]

    def expire(self, link: str, tag: int) -> None:
        """Completion timeout of one request: all-ones."""
        self.ports[link].expire(tag)

    def start_log(self, link: str, capacity: int = 4096) -> PortLog:
        """Records what the link's device does from here on; the log is the caller's to read."""
        log = PortLog(capacity)
        self.ports[link].log = log
        return log

    def stop_log(self, link: str) -> None:
        self.ports[link].log = None

    # --- from a device

    def receive(self, link: str, message: object) -> None:
        """Carries out what the device of the link sent. Whatever it sent, this returns."""
        receive, port = self._receivers[link]
        receive(port, message)

    # --- to device-TLBs

    def invalidate_device(self, source: int, itag: int, first: int, shift: int) -> None:
        """Asks the function `source` to forget its translations of 2^shift bytes; lost where none is there."""
        link = self._device(source)
        if link is not None:
            link.post(tlp.InvalidateRequest(_ROOT_ID, itag, source, encode_range(first, shift)))

    # --- from the kernel

    def config_read(self, function: int, offset: int, size: int, done: Callable[[int], None]) -> None:
        """Configuration read of a BDF, 1, 2 or 4 bytes; all-ones where nothing answers."""
        absent = (1 << 8 * size) - 1
        if not pci.is_config_access(offset, size):
            done(absent)
        elif (here := self._function(function)) is not None:
            done(here.read(offset, size))
        elif (link := self._device(function)) is None:
            done(absent)
        else:
            bus, devfn = function >> 8, function & 0xFF
            link.request(Outstanding(size, done), lambda tag: tlp.CfgRead(tag, bus, devfn, offset, size))

    def config_write(self, function: int, offset: int, size: int, value: int, done: Callable[[], None]) -> None:
        """Configuration write of a BDF; `done` is called once the function has taken it, or nobody has.

        Of `value` the low `size` bytes are written.
        """
        valid = pci.is_config_access(offset, size)
        link = None
        if valid and not self._write_function(function, offset, size, value):
            link = self._device(function)
        if link is None:
            done()
        else:
            bus, devfn = function >> 8, function & 0xFF
            data = _low_bytes(value, size)
            waiting = Outstanding(0, lambda _: done())
            link.request(waiting, lambda tag: tlp.CfgWrite(tag, bus, devfn, offset, data))

    def mmio_read(self, address: int, size: int, done: Callable[[int], None]) -> None:
        """Read of a BAR, 1, 2, 4 or 8 bytes, naturally aligned; all-ones where nothing answers."""
        absent = (1 << 8 * size) - 1
        claimants = self._claimants(address, size)
        if len(claimants) == 1:
            claimants[0].request(Outstanding(size, done), lambda tag: tlp.MmioRead(tag, address, size))
        else:
            read_registers(claimants, address, size, done, lambda: done(absent))

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Posted write of a BAR, of the low `size` bytes of `value`; lost where nothing answers."""
        write_registers(self._claimants(address, size), address, _low_bytes(value, size))

    # --- routing

    def _function(self, bdf: int) -> config_space.ConfigSpace | None:
        """The registers of a function of the fabric itself."""
        if bdf == 0:
            return self._host_bridge
        bridge = self._bridge(bdf)
        return None if bridge is None else bridge.config

    def _bridge(self, bdf: int) -> BridgeFunction | None:
        """A root port, or a function of what stands in a slot."""
        if pci.bdf_bus(bdf) == 0:
            port = self._slots.get(pci.bdf_device(bdf))
            return port if port is not None and port.bdf == bdf else None
        below = self._port_of_bus(pci.bdf_bus(bdf))
        return None if below is None else below.function_at(bdf)

    def _write_function(self, bdf: int, offset: int, size: int, value: int) -> bool:
        """Writes a register of a function of the fabric itself; False where there is none."""
        if bdf == 0:
            self._host_bridge.write(offset, size, value)
            return True
        bridge = self._bridge(bdf)
        if bridge is not None and bridge.config_write(offset, size, value):
            bridge.reset_behind()
        return bridge is not None

    def _port_of_bus(self, bus: int) -> RootPort | None:
        return next((port for port in self._slots.values() if port.forwards_bus(bus)), None)

    def _device(self, bdf: int) -> Link | None:
        """The link that a configuration request to a device leaves by; bus 0 has none."""
        port = self._port_of_bus(pci.bdf_bus(bdf))
        return None if port is None else port.device_at(bdf)

    def _claimants(self, address: int, size: int) -> Sequence[Link]:
        """The links whose devices hear a naturally aligned access."""
        if size not in (1, 2, 4, 8) or address % size:
            return ()
        port = next((port for port in self._slots.values() if port.forwards_address(address)), None)
        return () if port is None else port.claimants(address)


def _low_bytes(value: int, size: int) -> bytes:
    """What a bus of `size` bytes carries of a value."""
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
