"""A script on an endpoint: the rogue's calls and hooks, as its driver and the root port see them."""

from __future__ import annotations

from typing import Any

from tests.devices.bench import Bench
from viommu_actors.devices.nic import Nic
from viommu_actors.devices.script import Script
from viommu_actors.spec import nic, tlp

HEAD = "from viommu_actors.rogue import Rogue\nclass Mine(Rogue):\n"
TARGETS: dict[str, Any] = {
    "memory": {},
    "canaries": {},
    "signature": b"",
    "own_page": 0,
    "interrupt": (0xFEE0_0000, 0x51),
    "requesters": (),
}


def _bench() -> tuple[Bench, Script]:
    bench = Bench()
    bench.endpoint = Nic(bench.send, mac=bytes(6))
    bench.enable(max_payload=128)
    return bench, Script(bench.endpoint, bench.serve)


def _run(script: Script, body: str) -> dict[str, Any]:
    return script.run(HEAD + body, "mine.py", TARGETS, 1)


def test_it_waits_for_what_it_reads_and_keeps_to_the_payload_size() -> None:
    bench, script = _bench()
    bench.memory[0x1000:0x1003] = b"abc"
    said = _run(
        script,
        "  def run(self):\n"
        "    self.report(self.dma_read(0x1000, 3))\n"
        "    self.dma_write(0x2000, b'd' * 300)\n"
        "    self.msi(*self.targets.interrupt)\n",
    )
    assert said == {"reports": ["b'abc'"], "error": ""}
    assert [len(message.data) for message in bench.sent] == [128, 128, 44, 4]
    bench.serve()
    assert bench.memory[0x2000:0x212C] == b"d" * 300 and bench.vectors == [0x51]


def test_spoofed_and_translated_requests() -> None:
    bench, script = _bench()
    body = (
        "  def run(self):\n"
        "    with self.spoof('07:00.1'):\n"
        "      self.dma_write(0, b'1234')\n"
        "    self.dma_write(0, b'5678')\n"
        "    self.translated_read(0x40, 4)\n"
    )
    written: list[Any] = []
    script._turn = lambda: (written.extend(bench.sent), bench.serve())[1]
    assert _run(script, body)["error"] == ""
    own = bench.endpoint.requester
    assert [(message.requester, message.at) for message in written] == [(0x701, 0), (own, 0), (own, 2)]
    assert isinstance(written[-1], tlp.MemRead)


def test_its_driver_sees_what_the_hooks_show() -> None:
    bench, script = _bench()
    body = (
        "  def run(self): pass\n"
        "  def on_mmio_read(self, bar, offset, size):\n"
        f"    return 0x0bad if offset == {nic.Reg.MAC_LOW:#x} else None\n"
        "  def on_mmio_write(self, bar, offset, size, value):\n"
        f"    return offset == {nic.Reg.TX_SIZE:#x}\n"
    )
    assert _run(script, body)["error"] == ""
    assert bench.read(nic.Reg.MAC_LOW) == 0x0BAD and bench.read(nic.Reg.CONTROL) == 0
    bench.write(nic.Reg.TX_SIZE, 8)
    bench.write(nic.Reg.RX_SIZE, 8)
    assert bench.read(nic.Reg.TX_SIZE) == 0 and bench.read(nic.Reg.RX_SIZE) == 8


def test_a_hook_that_fails_leaves_the_honest_device() -> None:
    bench, script = _bench()
    body = (
        "  def run(self): pass\n"
        "  def on_mmio_read(self, bar, offset, size): return 'no number'\n"
        "  def on_mmio_write(self, bar, offset, size, value): return 1 / 0\n"
    )
    assert _run(script, body)["error"] == ""
    bench.write(nic.Reg.RX_SIZE, 8)
    assert bench.read(nic.Reg.RX_SIZE) == 8


def test_reports_are_bounded() -> None:
    _, script = _bench()
    said = _run(script, "  def run(self):\n    for _ in range(1000): self.report('x' * 1000)\n")
    assert len(said["reports"]) == 64 and len(said["reports"][0]) == 200


def test_a_problem_that_cannot_be_told() -> None:
    _, script = _bench()
    body = (
        "  def run(self):\n"
        "    class Sly(Exception):\n"
        "      def __str__(self): raise ValueError\n"
        "    raise Sly\n"
    )
    assert _run(script, body)["error"] == "mine.py, line 6: Sly"
