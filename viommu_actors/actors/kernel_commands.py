"""Control commands of a kernel, the same for the host's and a guest's: boot, I/O, canaries, evidence.

The launcher orders what happens; the kernel that owns the memory places the canaries and says
whether they still stand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from viommu_actors.attacks.guard import Guard
from viommu_actors.attacks.offers import Offers
from viommu_actors.attacks.registers import RegisterGuard
from viommu_actors.kernel.driver import Driver
from viommu_actors.kernel.drivers.binding import NetDriver
from viommu_actors.kernel.kernel import Kernel
from viommu_actors.kernel.vfio.reset import reset_function
from viommu_actors.netdev import NetCommands, Netdev
from viommu_actors.spec import pci, platform
from viommu_actors.spec.vtd_interrupts import InterruptRequest


class KernelCommands:
    """Commands of one kernel. BDFs are texts like `00:03.0`, addresses this kernel's physical ones."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._guard = Guard(kernel, os.urandom)
        self._served = ""
        self._offers = Offers(kernel, self._guard)
        self._registers = RegisterGuard(kernel, os.urandom)

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By command name."""
        return {
            "boot": self.boot,
            "io": self.io,
            "rebind": self.rebind,
            "service": self.service,
            "reset": self.reset,
            "unbind": self.unbind,
            "counters": self.counters,
            "guard": self.guard,
            "guard_memory": self.guard_memory,
            "digest": self._guard.digest,
            "expect": self._guard.expect,
            "restore": self._guard.restore,
            "mapped": self.mapped,
            "offer": self.offer,
            "take_back": self._offers.take_back,
            "clear_entry": self.clear_entry,
            "end_offer": self._offers.end,
            "guard_liveness": lambda bdf: self._registers.guard_liveness(pci.parse_bdf(bdf)),
            "guard_interrupt_line": lambda bdf: self._registers.guard_interrupt_line(pci.parse_bdf(bdf)),
            "register_digest": self._registers.digest,
            "restore_register": self._registers.restore,
            "offer_control": self.offer_control,
            "check_control": self.check_control,
            "end_control": self.end_control,
            "faults": self.faults,
            "forget_interrupts": self.forget_interrupts,
            "config_space": self.config_space,
            **NetCommands(self._netdev, time.perf_counter).handlers(),
            "serve": self.serve,
            "served": lambda: self._served,
            "end_serve": self.end_serve,
        }

    def boot(self) -> dict[str, Any]:
        """Boots; tells what the kernel found and which driver took what."""
        kernel = self._kernel
        kernel.boot(platform.ZERO_PAGE)
        return {
            "devices": [
                {
                    "bdf": pci.format_bdf(device.bdf),
                    "vendor": device.vendor,
                    "device": device.device,
                    "driver": _driver_name(kernel, device.bdf),
                }
                for device in kernel.pci
            ],
            "iommu": kernel.iommu is not None,
        }

    def io(self, bdf: str, operations: int) -> dict[str, Any]:
        """Honest work of one device, verified byte for byte, and the seconds that it took."""
        driver = self._driver(bdf)
        began = time.perf_counter()
        result = driver.run_io(operations)
        return {
            "seconds": time.perf_counter() - began,
            "failed": "",
            "operations": result.operations,
            "bytes": result.bytes,
            "verified": result.verified,
            "mapping": result.mapping,
        }

    def rebind(self, bdf: str) -> None:
        """Unbinds the driver of a device, where it has one, and binds it again: a tear-down and a set-up."""
        if pci.parse_bdf(bdf) in self._kernel.drivers:
            self.unbind(bdf)
        self.bind(bdf)

    def unbind(self, bdf: str) -> None:
        """Takes the driver away from a device."""
        self._driver(bdf)
        self._kernel.unbind(pci.parse_bdf(bdf))

    def bind(self, bdf: str) -> None:
        """Gives a device to the driver that takes it."""
        self._kernel.bind(pci.parse_bdf(bdf))

    def service(self, bdf: str, operations: int) -> str:
        """What a device's user gets: so much honest work, and whether it was verified."""
        try:
            verified = self._driver(bdf).run_io(operations).verified
        except OSError as error:
            return f"{bdf}: {error.strerror}"
        return f"{bdf}: {operations} operations {'verified' if verified else 'WRONG'}"

    def serve(self, bdf: str, operations: int) -> None:
        """The same, told later by `served`."""
        self._served = self.service(bdf, operations)

    def end_serve(self) -> None:
        """Nobody asks for it any more."""
        self._served = ""

    def reset(self, bdf: str) -> None:
        """Resets a function, which its driver is not told of."""
        device = self._kernel.device(pci.parse_bdf(bdf))
        reset_function(device)
        if self._kernel.iommu is not None:
            self._kernel.iommu.was_reset(device)

    def _driver(self, bdf: str) -> Driver:
        driver = self._kernel.drivers.get(pci.parse_bdf(bdf))
        if driver is None:
            raise ValueError(f"no driver took {bdf}: the kernel's log says why")
        return driver

    def counters(self) -> dict[str, int]:
        """The kernel's counters."""
        return dict(self._kernel.counters)

    # --- what a rogue is after

    def guard(self, what: str) -> dict[str, Any]:
        """Guards "canaries", "page tables", "structures" or the "first page": the pages, and how they stand."""
        choices = {
            "canaries": self._guard.place_canaries,
            "page tables": self._guard.guard_page_tables,
            "structures": self._guard.guard_structures,
            "first page": self._guard.guard_first_page,
        }
        return {"pages": choices[what](), "digest": self._guard.digest()}

    def guard_memory(self, pages: tuple[int, ...]) -> dict[str, Any]:
        """Guards pages that nobody uses, as before the boot."""
        return {"pages": self._guard.guard_afresh(list(pages)), "digest": self._guard.digest()}

    def mapped(self, bdf: str) -> list[tuple[int, int]]:
        """See `Guard.mapped`."""
        return self._guard.mapped(pci.parse_bdf(bdf))

    def offer(self, bdf: str, kind: str, avoid: tuple[tuple[int, int], ...] = ()) -> dict[str, Any]:
        """See `Offers.offer`: the device's address of the buffer, the guarded pages, and how they stand."""
        offer = self._offers.offer(pci.parse_bdf(bdf), kind, avoid)
        return {"iova": offer.iova, "pages": offer.pages, "digest": self._guard.digest()}

    def clear_entry(self, bdf: str, iova: int) -> None:
        """See `Offers.clear_entry`."""
        self._offers.clear_entry(pci.parse_bdf(bdf), iova)

    def offer_control(self, bdf: str) -> dict[str, Any]:
        """A page legally mapped for the device, for its positive control: where to write what, and where it lies."""
        self._driver(bdf)
        device = pci.parse_bdf(bdf)
        iova, data = self._guard.offer_control(device)
        return {"iova": iova, "data": data, "paddr": self._guard.control_page(device)}

    def check_control(self, bdf: str) -> bool:
        """Whether the device's legal write has arrived."""
        return self._guard.control_arrived(pci.parse_bdf(bdf))

    def end_control(self, bdf: str) -> None:
        """Unmaps the control page."""
        self._guard.end_control(pci.parse_bdf(bdf))

    def faults(self) -> dict[str, Any]:
        """Fault records since the last call, and how many were lost."""
        iommu = self._kernel.iommu
        if iommu is None:
            return {"records": [], "lost": 0}
        records, lost = iommu.take_faults()
        return {
            "records": [
                {
                    "source": pci.format_bdf(record.source),
                    "place": f"{record.address if record.entry is None else record.entry:#x}",
                    "interrupt": record.entry is not None,
                    "write": record.write,
                    "reason": int(record.reason),
                    "text": record.reason.text,
                }
                for record in records
            ],
            "lost": lost,
        }

    def forget_interrupts(self, bdf: str) -> None:
        """Frees a device's interrupt entries while it still uses them, as a buggy kernel would."""
        remapping = self._kernel.irq.remapping
        if remapping is None:
            raise ValueError("this kernel does not remap interrupts")
        for _, address, data in self._kernel.irq.messages_of(pci.parse_bdf(bdf)):
            remapping.free(InterruptRequest.decode(address, data).entry, 1)

    def config_space(self, bdf: str) -> bytes:
        """The conventional configuration space of a function, 256 bytes, as this kernel reads it."""
        device = self._kernel.device(pci.parse_bdf(bdf))
        return b"".join(device.config_read(at, 4).to_bytes(4, "little") for at in range(0, pci.CONVENTIONAL_SIZE, 4))

    def _netdev(self, bdf: str) -> Netdev:
        driver = self._driver(bdf)
        if not isinstance(driver, NetDriver):
            raise ValueError(f"{bdf} is no network device")
        return driver


def _driver_name(kernel: Kernel, bdf: int) -> str:
    driver = kernel.drivers.get(bdf)
    return "" if driver is None else driver.name
