"""Every bad input is refused in one line that names the file, the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from viommu_actors.topology.errors import Refusal, TopologyError
from viommu_actors.topology.load import parse

TOP = 'name = "t"\n'


def device(name: str = "nic0", model: str = "nic", *keys: str) -> str:
    return "\n".join(["[[device]]", f'name = "{name}"', f'model = "{model}"', *keys, ""])


def vm(name: str = "vm0", *keys: str) -> str:
    return "\n".join(["[[vm]]", f'name = "{name}"', *keys, ""])


def assign(name: str = "nic0", *keys: str) -> str:
    return "\n".join(["[[vm.assign]]", f'device = "{name}"', *keys, ""])


def edited(edit: str) -> str:
    return TOP + device() + vm() + assign("nic0", f"edit = [{edit}]")


def component(kind: str, name: str, keys: str = "") -> str:
    return f'[[{kind}]]\nname = "{name}"\n{keys}\n'


def behind(name: str, where: str = "x", keys: str = "") -> str:
    return device(name, "nic", f'behind = "{where}"', keys)


def pair(kind: str, keys: str = "") -> str:
    """Two devices behind one component."""
    return TOP + behind("a") + behind("b") + component(kind, "x", keys)


def app(name: str = "app", port: str = "nic0", *keys: str) -> str:
    return "\n".join(["[[vm.app]]", f'name = "{name}"', *keys, "[[vm.app.port]]", f'device = "{port}"', ""])


def card(name: str = "vnet0", vswitch: str = "ovs", keys: str = "") -> str:
    return f'[[vm.virtio_net]]\nname = "{name}"\nvswitch = "{vswitch}"\n{keys}\n'


def cabled(name: str, peer: str) -> str:
    return device(name, "nic", f'peer = "{peer}"')


ONE = TOP + device()
OVS = '[[vswitch]]\nname = "ovs"\n'
TAKEN = ONE + vm() + assign()

CASES = {
    # the file as a whole
    "empty": ("", "is empty"),
    "blank": (" \n\t\n", "is empty"),
    "truncated": (TOP + "[[dev", "is not TOML"),
    "binary": ("\x00\x01\x02", "is not TOML"),
    "nested deeply": ("a = " + "[\n" * 20_000, "is nested too deeply"),
    "long line": ("a." * 3000 + "b = 1", "line 1: is longer than 4096 characters"),
    "long integer": ("a = " + "9" * 4090 + "\n" + "b = 1", "a: unknown key"),
    "key twice": (TOP + TOP, "is not TOML: Cannot overwrite a value"),
    # keys
    "unknown key": ('nmae = "t"\n', 'nmae: unknown key; did you mean "name"?'),
    "unknown key, nothing near": (TOP + "zzz = 1\n", "zzz: unknown key; known here are name, description"),
    "unknown key within": (
        TOP + device("nic0", "nic", "slott = 1"),
        'device[0].slott: unknown key; did you mean "slot"',
    ),
    "unknown table": (ONE + vm() + "[vm.viomu]\n", 'vm[0].viomu: unknown key; did you mean "viommu"?'),
    "key missing": (TOP + '[[device]]\nmodel = "nic"\n', "device[0].name: is missing; write, for example, name ="),
    "name missing": (device(), "name: is missing"),
    # types
    "number for a string": ("name = 3\n", "name: expected a string, got an integer; write, for example, name ="),
    "string for a number": (
        TOP + device("n", "nic", 'slot = "1"'),
        "device[0].slot: expected an integer, got a string",
    ),
    "point in a number": (TOP + device("n", "nic", "slot = 1.0"), "device[0].slot: expected an integer, got a number"),
    "true for a number": (TOP + device("n", "nic", "slot = true"), "device[0].slot: expected an integer, got true or"),
    "date": ("name = 2017-12-07\n", "name: expected a string, got a date"),
    "table for an array": (TOP + '[device]\nname = "n"\n', "device: expected an array, got a table; write [[device]]"),
    "table for an array within": (
        ONE + vm() + '[vm.assign]\ndevice = "nic0"\n',
        "vm[0].assign: expected an array, got a table; write [[vm.assign]] with two brackets",
    ),
    "string for a table": (ONE + 'vm = "vm0"\n', "device[0].vm: unknown key"),
    "number for a table": (TOP + "host = 3\n", "host: expected a table, got an integer; write [host]"),
    # names
    "bad name": (TOP + device("Nic 0"), "device[0].name: is not of the right form; use 1 to 32 of a-z"),
    "name that looks like an option": (TOP + device("-n"), "device[0].name: is not of the right form"),
    "long name": (TOP + device("n" * 33), "device[0].name: is not of the right form"),
    "name with a line feed": ('name = "t\\n"\n', "name: is not of the right form"),
    "names twice": (ONE + device(), 'device[1].name: "nic0" is taken by device[0]'),
    "vm named as a device": (ONE + vm("nic0"), 'vm[0].name: "nic0" is taken by device[0]'),
    "reserved name": (TOP + device("host"), 'device[0].name: "host" is taken by every run'),
    # models and sizes
    "unknown model": (TOP + device("n", "e1000"), 'device[0].model: "e1000" is not known here; use "edu" or "nic"'),
    "model nearly": (TOP + device("n", "nics"), 'device[0].model: "nics" is not known here; did you mean "nic"?'),
    "bad size": (
        ONE + vm("vm0", 'memory = "64MB"'),
        "vm[0].memory: is not of the right form; write a size in K, M or G",
    ),
    "size as a number": (ONE + vm("vm0", "memory = 64"), "vm[0].memory: expected a string, got an integer"),
    "memory too small": (
        ONE + vm("vm0", 'memory = "4M"'),
        "vm[0].memory: 4M is too small for vm0; give it at least 8M",
    ),
    "memory too large": (ONE + vm("vm0", 'memory = "9G"'), "vm[0].memory: 9G is too large; give vm0 at most 8G"),
    "memory uneven": (ONE + vm("vm0", 'memory = "9M"'), "vm[0].memory: 9M is not a multiple of 2 MiB"),
    "host memory too small": (ONE + '[host]\nmemory = "2M"\n', "host.memory: 2M is too small for the host"),
    "bad payload": (TOP + device("n", "nic", "max_payload = 100"), "max_payload: 100 is not known here; use 128, 256"),
    "mask of a nic": (TOP + device("n", "nic", "dma_mask_bits = 28"), "device[0].dma_mask_bits: a nic has no DMA mask"),
    "mask too short": (
        TOP + device("n", "edu") + vm("vm0", 'memory = "512M"') + assign("n"),
        "dma_mask_bits: 28 bits do not reach all memory of vm0, and no IOMMU translates; set it to 29 or more",
    ),
    "mask too short for the hole": (
        TOP + device("n", "edu", "dma_mask_bits = 32") + vm("vm0", 'memory = "3G"') + assign("n"),
        "dma_mask_bits: 32 bits do not reach all memory of vm0, and no IOMMU translates; set it to 33 or more",
    ),
    "mask too short for the host": (
        TOP + '[host]\ncmdline = ""\n' + device("n", "edu"),
        "dma_mask_bits: 28 bits do not reach all memory of the host, and no IOMMU translates; set it to 37 or more",
    ),
    "operations below zero": (TOP + device("n", "nic", "operations = -2"), "operations: must be at least 0"),
    "half a packet": (TOP + device("n", "nic", "operations = 5"), "operations: 5 is odd"),
    "bad on_death": ('on_death = "ignore"\n' + ONE, 'on_death: "ignore" is not known here; use "contain" or "end"'),
    "bad address width": (ONE + vm() + "[vm.viommu]\naw_bits = 57\n", "aw_bits: 57 is not known here; use 39 or 48"),
    "bad command line": (
        ONE + vm("vm0", 'cmdline = "\\u0007"'),
        "vm[0].cmdline: is not of the right form; use printable",
    ),
    # how many
    "no devices": (TOP, "device: the topology has no devices; add a [[device]]"),
    "17 devices": (TOP + "".join(device(f"n{i}") for i in range(17)), "device: has more than 16 entries"),
    "9 vms": (ONE + "".join(vm(f"v{i}") for i in range(9)), "vm: has more than 8 entries"),
    # slots
    "slot 0": (TOP + device("n", "nic", "slot = 0"), "device[0].slot: must be at least 1"),
    "slot 17": (TOP + device("n", "nic", "slot = 17"), "device[0].slot: must be at most 16"),
    "slot taken": (
        TOP + device("a", "nic", "slot = 2") + device("b", "nic", "slot = 2"),
        'device[1].slot: slot 2 is taken by "a"; give each device a root port of its own',
    ),
    "guest slot taken": (
        TOP + device("a") + device("b") + vm() + assign("a", "slot = 4") + assign("b", "slot = 4"),
        'vm[0].assign[1].slot: slot 4 of "vm0" is taken by "a"',
    ),
    "guest slot 0": (ONE + vm() + assign("nic0", "slot = 0"), "vm[0].assign[0].slot: must be at least 1"),
    # switches and bridges
    "behind nothing": (
        TOP + behind("a", "sw1") + component("switch", "sw0"),
        'device[0].behind: there is no switch or bridge "sw1"; did you mean "sw0"?',
    ),
    "behind a device": (TOP + device("a") + behind("b", "a"), 'behind: "a" is a device; name a [[switch]] or a [['),
    "behind and in a slot": (
        TOP + behind("b", "x", "slot = 3") + component("switch", "x"),
        'device[0].slot: "b" is behind "x", which has the root port; leave slot out, or behind',
    ),
    "too many behind one": (
        TOP + "".join(behind(f"d{i}") for i in range(9)) + component("switch", "x"),
        'device[8].behind: "x" has 8 devices behind it already',
    ),
    "nothing behind a switch": (
        ONE + component("switch", "x"),
        'switch[0]: nothing is behind "x"; give a device behind = "x", or take it out',
    ),
    "nothing behind a bridge": (ONE + component("bridge", "x"), 'bridge[0]: nothing is behind "x"'),
    "slot of a switch taken": (
        TOP + device("a", "nic", "slot = 2") + behind("b") + component("switch", "x", "slot = 2"),
        'switch[0].slot: slot 2 is taken by "a"; give each device a root port of its own',
    ),
    "name of a bridge taken": (ONE + component("bridge", "nic0"), 'bridge[0].name: "nic0" is taken by device[0]'),
    "ATS behind a bridge": (
        TOP + behind("a", "x", "ats = true") + component("bridge", "x"),
        'device[0].ats: "a" is behind "x", and conventional PCI has no address types; leave ats out, or put it behind',
    ),
    "ACS of a bridge": (TOP + behind("a") + component("bridge", "x", "acs = true"), "bridge[0].acs: unknown key"),
    "half a group, the rest the host's": (
        pair("bridge") + vm() + assign("a"),
        'vm[0].assign[0].device: "a" is in one IOMMU group with "b", which the host has: they share the requester ID of'
        ' their bridge; assign all that is behind "x" to "vm0"',
    ),
    "half a group, the rest another's": (
        pair("switch", "acs = false") + vm() + assign("a") + vm("vm1") + assign("b"),
        'vm[0].assign[0].device: "a" is in one IOMMU group with "b", which "vm1" has: no ACS of the switch keeps them',
    ),
    "a group by the root port": (
        pair("switch") + "[host]\nacs = false\n" + vm() + assign("b"),
        'vm[0].assign[0].device: "b" is in one IOMMU group with "a", which the host has: no ACS of the root port keeps',
    ),
    "a group behind a vIOMMU": (
        pair("bridge") + vm() + "[vm.viommu]\n" + assign("a") + assign("b"),
        'vm[0].assign[0].device: "a" is in one IOMMU group with "b", and behind a vIOMMU each has an address space of',
    ),
    # assignments
    "no such device": (ONE + vm() + assign("nic1"), 'vm[0].assign[0].device: there is no device "nic1"; did you mean'),
    "assigned twice in one": (
        ONE + vm() + assign() + assign(),
        'vm[0].assign[1].device: "nic0" is assigned to "vm0" already; a device has one user',
    ),
    "assigned to two": (
        ONE + vm() + assign() + vm("vm1") + assign(),
        'vm[1].assign[0].device: "nic0" is assigned to "vm0" already; a device has one user',
    ),
    "no caching mode": (
        ONE + vm() + "[vm.viommu]\ncaching_mode = false\n" + assign(),
        "vm[0].viommu.caching_mode: We need to set caching-mode=on for intel-iommu to enable device assignment"
        " with IOMMU protection; set caching_mode = true",
    ),
    "vIOMMU wider than the IOMMU": (
        ONE + "[host.iommu]\naw_bits = 39\n" + vm() + "[vm.viommu]\n" + assign(),
        "vm[0].viommu.aw_bits: the host's IOMMU has 39 bits",
    ),
    "host without its IOMMU": (
        TOP + '[host]\ncmdline = "quiet"\n' + device() + vm() + assign(),
        "host.cmdline: VFIO cannot assign a device without the host's IOMMU; add intel_iommu=on",
    ),
    "interrupts not allowed": (
        TOP + "[host]\niommu = { intremap = false }\n" + device() + vm() + assign(),
        "host.cmdline: No interrupt remapping support",
    ),
    "vfio-pci.ids by hand": (
        TOP + '[host]\ncmdline = "intel_iommu=on vfio-pci.ids=01:00.0"\n' + device(),
        "host.cmdline: vfio-pci.ids is filled in from the assignments; leave it out",
    ),
    "limit that is no number": (
        TOP + '[host]\ncmdline = "vfio_iommu_type1.dma_entry_limit=many"\n' + device(),
        'host.cmdline: vfio_iommu_type1.dma_entry_limit="many" is no number; write one',
    ),
    "static pool of nothing": (
        ONE + vm("vm0", 'cmdline = "nic.static=00:04.0"') + assign(),
        'vm[0].cmdline: nic.static names "00:04.0", and no such nic is there; "vm0" has 00:03.0 (nic)',
    ),
    # cables
    "peer of itself": (TOP + device("a", "nic", 'peer = "a"'), 'device[0].peer: "a" is its own peer'),
    "peer missing": (TOP + device("a", "nic", 'peer = "b"'), 'device[0].peer: there is no device "b"'),
    "peer not mutual": (
        TOP + device("a", "nic", 'peer = "b"') + device("b"),
        'device[0].peer: "b" does not name "a" as its peer; give it peer = "a"',
    ),
    "peer of an edu": (TOP + device("a", "edu", 'peer = "b"'), "device[0].peer: an edu has no cable"),
    "peer is an edu": (TOP + device("a", "nic", 'peer = "b"') + device("b", "edu"), 'device[0].peer: "b" is an edu'),
    # edits
    "unknown capability": (edited('{hide = "msiy"}'), 'edit[0].hide: "msiy" is not known here; did you mean "msi'),
    "interrupts turned off": (
        TOP + '[host]\ncmdline = "intel_iommu=on intremap=off"\n' + device() + vm() + assign(),
        "host.cmdline: No interrupt remapping support",
    ),
    "eim without remapping": (
        TOP + device() + vm() + "[vm.viommu]\nintremap = false\neim = true\n" + assign(),
        "viommu.eim: is a mode of interrupt remapping",
    ),
    "edit out of space": (edited("{offset = 0x1000, mask = 1, value = 0}"), "offset: 0x1000 is no dword"),
    "edit unaligned": (edited("{offset = 2, mask = 1, value = 0}"), "edit[0].offset: 0x2 is no dword"),
    "edit outside its mask": (edited("{offset = 0, mask = 1, value = 2}"), "value: 0x2 has bits outside the mask 0x1"),
    "edit of nothing": (edited("{}"), "edit[0]: is neither one capability to hide nor one dword to change"),
    "edit by half": (edited("{offset = 0}"), "edit[0]: is neither one capability to hide nor one dword to change"),
    # what gives a device away
    "c8: no-iommu assigns nothing": (
        ONE + vm() + assign("nic0", 'driver = "noiommu"'),
        "vm[0].assign[0].driver: VFIO no-iommu cannot assign a device to a VM: it maps nothing",
    ),
    "c8: uio assigns nothing": (
        ONE + vm() + assign("nic0", 'driver = "uio"'),
        "vm[0].assign[0].driver: UIO cannot assign a device to a VM: it has no map for DMA",
    ),
    "nothing to bypass": (ONE + vm() + assign("nic0", "bypass_iommu = true"), '"vm0" has no vIOMMU to bypass'),
    # applications
    "app of a device's name": (TAKEN + app("nic0"), 'vm[0].app[0].name: "nic0" is taken by device[0]'),
    "two apps of a name": (TAKEN + app() + app(), 'vm[0].app[1].name: "app" is taken by vm[0].app[0]'),
    "app without ports": (TAKEN + '[[vm.app]]\nname = "a"\n', "vm[0].app[0]"),
    "port of nobody": (TAKEN + app("a", "nic1"), 'port[0].device: "vm0" has no device "nic1"; assign it to the VM; it'),
    "port of a vm without devices": (ONE + vm() + app(), 'has no device "nic0"; assign it to the VM; it has none'),
    "port taken": (TAKEN + app("a") + app("b"), 'vm[0].app[1].port[0].device: "nic0" is a port of "a" already'),
    "port twice": (TAKEN + app("a") + '[[vm.app.port]]\ndevice = "nic0"\n', '"nic0" is a port of "a" already'),
    "port that is an edu": (
        TOP + device("e", "edu") + vm() + assign("e") + app("a", "e"),
        '"e" is an edu, and an application drives nics',
    ),
    "port with a cable": (
        TOP + device("a", "nic", 'peer = "b"') + device("b", "nic", 'peer = "a"') + vm() + assign("a") + app("x", "a"),
        'port[0].device: "a" has a cable',
    ),
    "ports at both ends of a cable": (
        TOP
        + device("a", "nic", 'peer = "b"')
        + device("b", "nic", 'peer = "a"')
        + vm()
        + assign("a")
        + assign("b")
        + app("x", "a")
        + 'rx = "interrupt"\n'
        + app("y", "b")
        + 'rx = "interrupt"\n',
        'port[0].device: "a" has a cable to "b", which an application has too',
    ),
    "unknown way": (TAKEN + app() + 'driver = "igb_uio"\n', "vm[0].app[0].port[0].driver"),
    "part of a hugepage": (TAKEN + app("a", "nic0", 'hugepages = "3M"'), "hugepages: 3M is not a multiple of 2 MiB"),
    "hugepages too few for the pool": (
        TOP
        + "".join(device(f"n{i}", "nic") for i in range(7))
        + vm()
        + "".join(assign(f"n{i}") for i in range(7))
        + app("a", "n0")
        + "".join(f'[[vm.app.port]]\ndevice = "n{i}"\n' for i in range(1, 7)),
        "vm[0].app[0].hugepages: 4M holds no pool for 7 devices; give it at least 6M",
    ),
    "more hugepages than memory": (
        ONE + vm("vm0", 'memory = "16M"') + assign() + app("a", "nic0", 'hugepages = "10M"'),
        'vm[0].app[0].hugepages: "vm0" with 16M has room for 8M of hugepages; ask for less, or give the VM more memory',
    ),
    "hugepages of all apps": (
        ONE + vm("vm0", 'memory = "16M"') + assign() + app("a", "nic0", 'hugepages = "6M"') + app("b", "nic1"),
        "vm[0].app[1]",
    ),
    "hugepages by the command line": (
        ONE + vm("vm0", 'cmdline = "hugepages=8"') + assign() + app(),
        "vm[0].cmdline: hugepages is filled in from the applications",
    ),
    # virtual switches
    "no such switch": (TOP + vm() + card("vnet0", "osv") + OVS, 'no virtual switch "osv"; did you mean "ovs"?'),
    "no switch at all": (TOP + vm() + card(), 'there is no virtual switch "ovs"; add a [[vswitch]] of this name'),
    "a switch without ports": (ONE + OVS, 'vswitch[0]: "ovs" has no ports'),
    "nobody to talk to": (TOP + OVS + vm() + card(), 'virtio_net[0].operations: "vnet0" is alone on "ovs"'),
    "a slot of an assigned device": (
        TAKEN.replace('device = "nic0"', 'device = "nic0"\nslot = 4') + card("vnet0", "ovs", "slot = 4") + OVS,
        'vm[0].virtio_net[0].slot: slot 4 of "vm0" is taken by "nic0"',
    ),
    "a name of a device": (TAKEN + card("nic0") + OVS, 'virtio_net[0].name: "nic0" is taken by device[0]'),
    "a card in a nested VM": (
        TOP + OVS + vm() + vm("vm1", 'parent = "vm0"') + card(),
        'vm[1].virtio_net[0]: "vm1" runs in "vm0"',
    ),
    "a static nic that is a card": (
        TOP + OVS + vm("vm0", 'cmdline = "nic.static=00:03.0"') + card("vnet0", "ovs", "operations = 0"),
        '"vm0" has 00:03.0 (virtio-net)',
    ),
    "a static card that is a nic": (
        ONE + vm("vm0", 'cmdline = "virtio_net.static=00:03.0"') + assign(),
        'virtio_net.static names "00:03.0", and no such virtio-net is there; "vm0" has 00:03.0 (nic)',
    ),
    "a cable, and nowhere to forward to": (
        TOP + cabled("a", "b") + cabled("b", "a") + vm() + assign("a") + app("app", "a"),
        'vm[0].app[0].port[0].device: "a" has a cable',
    ),
    "another word on death": (ONE + OVS + 'on_death = "again"\n', "vswitch[0].on_death"),
    # attacks
    "unknown attack": (TOP + device("n", "nic", 'rogue = ["A99"]'), 'rogue[0]: there is no attack "A99"'),
    "attack in small letters": (TOP + device("n", "nic", 'rogue = ["a2"]'), 'did you mean "A2"?'),
    "attack twice": (TOP + device("n", "nic", 'rogue = ["A1", "A1"]'), 'rogue[1]: "A1" stands there twice'),
    "nobody to attack": (TOP + device("n", "nic", 'rogue = ["A12"]'), "aims at another guest, and there is none"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    text, words = CASES[case]
    with pytest.raises(Refusal) as refused:
        parse(text)
    line = str(TopologyError("my.toml", refused.value))
    assert line.startswith("my.toml: ")
    assert words in line
    assert refused.value.remedy
    assert line.isprintable(), "one line, nothing that a terminal would act on"


def test_a_name_that_breaks_the_line_is_escaped() -> None:
    error = TopologyError("a\nb\x1b[31m.toml", Refusal("", "is empty", "fill it"))
    assert str(error) == "a\\nb\\x1b[31m.toml: is empty; fill it"


def test_an_exotic_file_name_stays_readable() -> None:
    assert str(TopologyError(str(Path("gerät.toml")), Refusal("", "is empty", "fill it"))).startswith("gerät.toml: ")
