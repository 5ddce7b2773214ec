"""The root complex: bus 0 with its root ports, and the kernel's way to the devices behind them.

PCI Express Base 5.0 chapters 2 and 7. Nothing here waits: a request to a device is answered by calling what
came with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viommu_actors.memory import Memory
from viommu_actors.pci import config_space
from viommu_actors.pci.link import Outstanding, PortLog
from viommu_actors.pci.root_port import PortConfig, RootPort
from viommu_actors.pci.upstream import Interrupt, Translate, TranslationServices, Upstream
from viommu_actors.spec import pci, tlp
from viommu_actors.spec.ats import encode_range

#: What the root complex names itself by in invalidations.
_ROOT_ID = pci.bdf(0, 0, 0)


class RootComplex:
    """Bus 0 with its host bridge and root ports, and the way from each port to memory.

    `translate(requester, address, access)` is asked for each memory transaction, `interrupt(requester,
    address, data)` gets each message signalled interrupt and says what blocked it, if anything did. `ats` answers
    address translation services, where there are any.
    """

    def __init__(
        self,
        memory: Memory,
        translate: Translate,
        interrupt: Interrupt,
        ports: Sequence[PortConfig],
        ats: TranslationServices | None = None,
    ) -> None:
        #: By the name of the link.
        self.ports = {config.name: RootPort(config) for config in ports}
        self._slots = {port.slot: port for port in self.ports.values()}
        self._upstream = Upstream(memory, translate, interrupt, self.ports, ats)
        self._host_bridge = config_space.endpoint_header(
            pci.VENDOR_REDHAT, pci.DEVICE_HOST_BRIDGE, pci.ClassCode.HOST_BRIDGE
        )

    # --- links

    def attach(self, link: str, send: Callable[[tlp.Downstream], bool]) -> None:
        """A device stands at the end of the link; `send` returns False where that is full or gone."""
        port = self.ports[link]
        port.send = send
        port.start_over()
        port.set_presence(True)

    def detach(self, link: str) -> None:
        """The device is gone; what waits for it is answered all-ones."""
        port = self.ports[link]
        port.send = None
        port.set_presence(False)
        port.abandon()

    def hot_reset(self, link: str) -> None:
        """Resets the device of the link, as bridge control's secondary bus reset does."""
        self.ports[link].start_over()
        self.ports[link].post(tlp.HotReset(0))

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
        self._upstream.receive(self.ports[link], message)

    # --- to device-TLBs

    def invalidate_device(self, source: int, itag: int, first: int, shift: int) -> None:
        """Asks the function `source` to forget its translations of 2^shift bytes; lost where none is there."""
        port = self._port_of_bus(pci.bdf_bus(source))
        if port is not None:
            port.post(tlp.InvalidateRequest(_ROOT_ID, itag, source, encode_range(first, shift)))

    # --- from the kernel

    def config_read(self, function: int, offset: int, size: int, done: Callable[[int], None]) -> None:
        """Configuration read of a BDF, 1, 2 or 4 bytes; all-ones where nothing answers."""
        absent = (1 << 8 * size) - 1
        if not pci.is_config_access(offset, size):
            done(absent)
        elif pci.bdf_bus(function) == 0:
            space = self._root_function(function)
            done(space.read(offset, size) if space else absent)
        elif (port := self._port_of_device(function)) is None:
            done(absent)
        else:
            bus, devfn = function >> 8, function & 0xFF
            port.request(Outstanding(size, done), lambda tag: tlp.CfgRead(tag, bus, devfn, offset, size))

    def config_write(self, function: int, offset: int, size: int, value: int, done: Callable[[], None]) -> None:
        """Configuration write of a BDF; `done` is called once the function has taken it, or nobody has.

        Of `value` the low `size` bytes are written.
        """
        if not pci.is_config_access(offset, size):
            done()
        elif pci.bdf_bus(function) == 0:
            self._root_write(function, offset, size, value)
            done()
        elif (port := self._port_of_device(function)) is None:
            done()
        else:
            bus, devfn = function >> 8, function & 0xFF
            data = _low_bytes(value, size)
            waiting = Outstanding(0, lambda _: done())
            port.request(waiting, lambda tag: tlp.CfgWrite(tag, bus, devfn, offset, data))

    def mmio_read(self, address: int, size: int, done: Callable[[int], None]) -> None:
        """Read of a BAR, 1, 2, 4 or 8 bytes, naturally aligned; all-ones where nothing answers."""
        port = self._port_of_address(address, size)
        if port is None:
            done((1 << 8 * size) - 1)
        else:
            port.request(Outstanding(size, done), lambda tag: tlp.MmioRead(tag, address, size))

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Posted write of a BAR, of the low `size` bytes of `value`; lost where nothing answers."""
        port = self._port_of_address(address, size)
        if port is not None:
            port.post(tlp.MmioWrite(address, _low_bytes(value, size)))

    # --- routing

    def _root_function(self, function: int) -> config_space.ConfigSpace | None:
        if function == 0:
            return self._host_bridge
        port = self._slots.get(pci.bdf_device(function))
        return port.config if port is not None and port.bdf == function else None

    def _root_write(self, function: int, offset: int, size: int, value: int) -> None:
        port = self._slots.get(pci.bdf_device(function))
        if function == 0:
            self._host_bridge.write(offset, size, value)
        elif port is not None and port.bdf == function and port.config_write(offset, size, value):
            self.hot_reset(port.name)

    def _port_of_bus(self, bus: int) -> RootPort | None:
        return next((port for port in self.ports.values() if port.forwards_bus(bus)), None)

    def _port_of_device(self, function: int) -> RootPort | None:
        """A link leads to device 0 of its bus only (section 7.3.1)."""
        port = self._port_of_bus(pci.bdf_bus(function))
        here = port is not None and port.first_bus == pci.bdf_bus(function) and pci.bdf_device(function) == 0
        return port if here else None

    def _port_of_address(self, address: int, size: int) -> RootPort | None:
        if size not in (1, 2, 4, 8) or address % size:
            return None
        return next((port for port in self.ports.values() if port.forwards_address(address)), None)


def _low_bytes(value: int, size: int) -> bytes:
    """What a bus of `size` bytes carries of a value."""
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
