"""lspci as an outside judge of what stands in configuration space."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.judges import require
from tests.pci.tree import BRIDGE, DOWNSTREAM_PORTS, UPSTREAM_PORT, Tree, bridge, switch
from viommu_actors.devices.edu import Edu
from viommu_actors.devices.nic import Nic
from viommu_actors.pci.config_space import ConfigSpace
from viommu_actors.pci.dump import dump, dump_function
from viommu_actors.pci.root_port import PortConfig, RootPort
from viommu_actors.spec import pci

COMPLAINTS = re.compile(r"broken|unknown|invalid|<chain looped>|\[virtual\]|!!!", re.IGNORECASE)


def spaces() -> dict[str, ConfigSpace]:
    return {
        "edu": Edu(lambda _: None, max_payload=256).config,
        "nic": Nic(lambda _: None, mac=bytes(6)).config,
        "nic without MSI-X": Nic(lambda _: None, mac=bytes(6), msix=False).config,
        "port": RootPort(PortConfig(3)).config,
        "port without ACS": RootPort(PortConfig(3, acs=False)).config,
        "upstream port": registers(switch(), UPSTREAM_PORT),
        "downstream port": registers(switch(), DOWNSTREAM_PORTS[1]),
        "downstream port without ACS": registers(switch(acs=False), DOWNSTREAM_PORTS[1]),
        "PCI bridge": registers(bridge(), BRIDGE),
    }


def registers(tree: Tree, bdf: int) -> ConfigSpace:
    """Of a function of the fabric itself."""
    space = ConfigSpace()
    for offset in range(0, pci.CONFIG_SIZE, 4):
        tree.root.config_read(bdf, offset, 4, lambda value, offset=offset: space.set(offset, 4, value))
    return space


def lspci(folder: Path, space: ConfigSpace) -> str:
    program = require("lspci")
    file = folder / "dump.txt"
    file.write_text(dump_function(pci.bdf(0, 3, 0), space.dump()))
    done = subprocess.run([program, "-F", str(file), "-vvv", "-nn"], capture_output=True, text=True, timeout=20)
    # libkmod is asked for names of driver modules, which a container may lack.
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if "libkmod" not in line]
    return done.stdout


@pytest.mark.judge("lspci")
@pytest.mark.parametrize("name", sorted(spaces()))
def test_lspci_has_no_complaint(tmp_path: Path, name: str) -> None:
    text = lspci(tmp_path, spaces()[name])
    assert not [line for line in text.splitlines() if COMPLAINTS.search(line)]


@pytest.mark.judge("lspci")
def test_lspci_decodes_an_endpoint(tmp_path: Path) -> None:
    space = spaces()["edu"]
    space.write(pci.BAR0, 4, 0xC000_0000)
    space.write(pci.COMMAND, 2, pci.Command.MEMORY | pci.Command.BUS_MASTER)
    text = lspci(tmp_path, space)
    for expected in (
        "[1234:11e8] (rev 10)",
        "Control: I/O- Mem+ BusMaster+",
        "Region 0: Memory at c0000000 (32-bit, non-prefetchable)",
        "MSI: Enable- Count=1/1 Maskable- 64bit+",
        "Power Management version 3",
        "Express (v2) Endpoint",
        "MaxPayload 256 bytes",
        "FLReset+",
        "MaxReadReq 512 bytes",
    ):
        assert expected in text


@pytest.mark.judge("lspci")
def test_lspci_decodes_msix(tmp_path: Path) -> None:
    space = spaces()["nic"]
    space.write(pci.BAR0 + 8, 4, 0xC000_1000)
    offset = space.capability(pci.CapabilityId.MSIX)
    assert offset is not None
    space.write(offset + pci.MSIX_CONTROL, 2, pci.MSIX_ENABLE)
    text = lspci(tmp_path, space)
    for expected in (
        "Region 2: Memory at c0001000 (32-bit, non-prefetchable)",
        "MSI: Enable- Count=1/1 Maskable- 64bit+",
        "MSI-X: Enable+ Count=3 Masked-",
        "Vector table: BAR=2 offset=00000000",
        "PBA: BAR=2 offset=00000800",
    ):
        assert expected in text


@pytest.mark.judge("lspci")
def test_lspci_decodes_a_root_port(tmp_path: Path) -> None:
    port = RootPort(PortConfig(3))
    port.config_write(pci.PRIMARY_BUS, 4, 0x00_0301_00)
    port.config_write(pci.MEMORY_BASE, 4, 0xC010_C000)
    port.set_presence(True)
    text = lspci(tmp_path, port.config)
    for expected in (
        "PCI bridge [0604]: Red Hat, Inc. QEMU PCIe Root port [1b36:000c]",
        "Bus: primary=00, secondary=01, subordinate=03",
        "Memory behind bridge: c0000000-c01fffff",
        "Express (v2) Root Port (Slot+)",
        "LnkCap:\tPort #3, Speed 8GT/s, Width x4",
        "DLActive+",
        "Slot #3",
        "HotPlug+ Surprise+",
        "PresDet+",
        "128bitCAS+",
        "Access Control Services",
        "ACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-",
        "ACSCtl:\tSrcValid+",
    ):
        assert expected in text


@pytest.mark.judge("lspci")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("upstream port", ["Texas Instruments XIO3130 PCI Express Switch (Upstream) [104c:8232]", "Upstream Port"]),
        (
            "downstream port",
            [
                "Texas Instruments XIO3130 PCI Express Switch (Downstream) [104c:8233]",
                "Bus: primary=00, secondary=05, subordinate=05",
                "Memory behind bridge: c0200000-c02fffff",
                "Express (v2) Downstream Port (Slot-)",
                "Port #1",
                "DLActive+",
                "ACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+",
                "ACSCtl:\tSrcValid- TransBlk- ReqRedir-",
            ],
        ),
        ("PCI bridge", ["[1b36:000e]", "Express (v2) PCI-Express to PCI/PCI-X Bridge"]),
    ],
)
def test_lspci_decodes_what_stands_in_slots(tmp_path: Path, name: str, words: list[str]) -> None:
    text = lspci(tmp_path, spaces()[name])
    assert not [each for each in words if each not in text], text


def test_a_dump_has_every_byte() -> None:
    space = spaces()["nic"]

    class Function:
        bdf = pci.bdf(1, 0, 0)

        def config_read(self, offset: int, size: int) -> int:
            return space.read(offset, size)

    first, *lines = dump([Function()]).splitlines()
    assert first.startswith("01:00.0 ")
    assert b"".join(bytes.fromhex(line.split(": ")[1]) for line in lines) == space.dump()
