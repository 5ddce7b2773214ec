"""A topology file as typed keys. Each key's description is its documentation, here and in editors.

These types hold what one value may be. What values must be together stands in `refusals`, what
is filled in where a key is absent in `resolve`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from viommu_actors.app.pci import UserDriver

MAX_DEVICES = 16
MAX_VMS = 8
MAX_APPS = 8
#: Devices behind one switch or bridge.
MAX_BEHIND = 8
MAX_OPERATIONS = 1_000_000
CONFIG_SPACE = 4096

#: `$` alone would also let a trailing line feed pass.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$(?!\n)")]
Size = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,8}[KMG]$(?!\n)")]
#: Linux takes 2047 characters on x86 (COMMAND_LINE_SIZE).
CommandLineText = Annotated[str, Meta(pattern=r"^[ -~]*$(?!\n)", max_length=2047)]
AddressWidth = Literal[39, 48]
HostSlot = Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
GuestSlot = Annotated[int, Meta(ge=1, le=31)]
MaskBits = Annotated[int, Meta(ge=20, le=64)]
Dword = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]


class HostIommu(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The VT-d unit of the host, which stands in the way of every DMA."""

    aw_bits: Annotated[
        AddressWidth,
        Meta(
            description="Address width of its second-level tables: 39 (3 levels) or 48 (4 levels) bits.", examples=[48]
        ),
    ] = 48
    intremap: Annotated[
        bool,
        Meta(
            description="ECAP.IR: whether it remaps interrupts too, so that a device cannot forge those of others.",
            examples=[True],
        ),
    ] = True
    device_iotlb: Annotated[
        bool,
        Meta(
            description=(
                "ECAP.DT: whether devices may keep translations themselves (ATS). The host kernel then switches on the"
                " ATS of devices that have it, unless its command line says pci=noats."
            ),
            examples=[False],
        ),
    ] = False


class Host(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The physical machine and its kernel."""

    memory: Annotated[
        Size,
        Meta(
            description="RAM of the host itself, a multiple of 2 MiB; that of the VMs comes on top of it.",
            examples=["64M"],
        ),
    ] = "64M"
    cmdline: Annotated[
        CommandLineText,
        Meta(
            description="Command line of the host kernel; what is left to vfio-pci is added from the assignments.",
            examples=["intel_iommu=on"],
        ),
    ] = "intel_iommu=on"
    iommu: Annotated[HostIommu, Meta(description="The VT-d unit of the host.")] = HostIommu()
    acs: Annotated[
        bool,
        Meta(
            description=(
                "Whether the root ports have ACS, by which the kernel has them check requester IDs. false shows what a"
                " forged one then does."
            ),
            examples=[True],
        ),
    ] = True
    spare_slots: Annotated[
        int,
        Meta(
            ge=0,
            le=8,
            description="Empty hot-plug slots, after all that are in use: launch/rogue --slot plugs a device into one.",
            examples=[1],
        ),
    ] = 1


class Device(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A physical PCI device, a process of its own behind a root port of its own, or behind a switch or bridge.

    The host kernel drives it unless a VM takes it by `assign`.
    """

    name: Annotated[
        Name, Meta(description="Name of the device: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["nic0"])
    ]
    model: Annotated[
        Literal["nic", "edu"],
        Meta(
            description="nic: descriptor rings, transmit and receive; edu: QEMU's teaching device, one DMA at a time.",
            examples=["nic"],
        ),
    ]
    slot: Annotated[
        HostSlot | None,
        Meta(
            description="Slot of its root port, host 00:<slot>.0; the next free one where absent.",
            examples=[1],
        ),
    ] = None
    behind: Annotated[
        Name | None,
        Meta(
            description=(
                "The switch or bridge that it stands behind, in the order of the file, in place of a root port of its"
                " own."
            ),
            examples=["sw0"],
        ),
    ] = None
    peer: Annotated[
        Name | None,
        Meta(
            description="The nic at the other end of this nic's cable; both name each other. Absent: loopback.",
            examples=["nic1"],
        ),
    ] = None
    max_payload: Annotated[
        Literal[128, 256, 512, 1024, 2048, 4096],
        Meta(description="Largest payload of one TLP that the device supports, in bytes.", examples=[256]),
    ] = 4096
    dma_mask_bits: Annotated[
        MaskBits | None,
        Meta(description="How many address bits an edu's DMA engine drives; QEMU's has 28.", examples=[28]),
    ] = None
    operations: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_OPERATIONS,
            description=(
                "How much honest work its driver does, in operations: one single-page buffer mapped, transferred,"
                " verified and unmapped. A packet of a nic is two, one to transmit and one to receive. 0: none."
            ),
            examples=[64],
        ),
    ] = 64
    ats: Annotated[
        bool,
        Meta(
            description=(
                "Whether it has address translation services (ATS): it asks the IOMMU for translations, and uses"
                " them by itself."
            ),
            examples=[False],
        ),
    ] = False
    rogue: Annotated[
        tuple[str, ...],
        Meta(
            description="Attacks, by their id in the catalogue, that the device plays after its honest work.",
            examples=[["A1", "A2"]],
        ),
    ] = ()


class Switch(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A PCI Express switch behind a root port, with a downstream port for each device that names it by `behind`."""

    name: Annotated[
        Name, Meta(description="Name of the switch: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["sw0"])
    ]
    slot: Annotated[
        HostSlot | None,
        Meta(
            description="Slot of its root port, host 00:<slot>.0; the next free one where absent.",
            examples=[1],
        ),
    ] = None
    acs: Annotated[
        bool,
        Meta(
            description=(
                "Whether its downstream ports have ACS, by which the kernel keeps the devices apart. false: they reach"
                " each other past the IOMMU, and are one IOMMU group."
            ),
            examples=[True],
        ),
    ] = True


class Bridge(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A bridge from PCI Express to conventional PCI behind a root port. Its devices, those that name it by `behind`,
    have one requester ID between them, and are one IOMMU group."""

    name: Annotated[
        Name, Meta(description="Name of the bridge: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["br0"])
    ]
    slot: Annotated[
        HostSlot | None,
        Meta(
            description="Slot of its root port, host 00:<slot>.0; the next free one where absent.",
            examples=[1],
        ),
    ] = None


class Viommu(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The VT-d unit that the hypervisor emulates for a guest."""

    caching_mode: Annotated[
        bool,
        Meta(
            description=(
                "CAP.CM: the guest must invalidate after a map too, which is how the hypervisor learns of it."
                " An assigned device needs it."
            ),
            examples=[True],
        ),
    ] = True
    aw_bits: Annotated[
        AddressWidth,
        Meta(
            description="Address width of its second-level tables: 39 (3 levels) or 48 (4 levels) bits.", examples=[48]
        ),
    ] = 48
    pt: Annotated[
        bool,
        Meta(description="ECAP.PT: whether it can let a device pass untranslated (iommu=pt uses it).", examples=[True]),
    ] = True
    intremap: Annotated[
        bool, Meta(description="ECAP.IR: whether it remaps the interrupts of the guest's devices.", examples=[True])
    ] = True
    eim: Annotated[
        bool,
        Meta(description="ECAP.EIM: 32-bit interrupt destinations, for a guest with x2apic.", examples=[False]),
    ] = False
    quirks: Annotated[
        Literal["spec", "qemu"],
        Meta(
            description="spec: as the VT-d specification says; qemu: with QEMU's deviations, in unit and shadow.",
            examples=["spec"],
        ),
    ] = "spec"


class Edit(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One change to what the guest sees of a device's configuration space.

    Either `hide`, or `offset`, `mask` and `value` together.
    """

    hide: Annotated[
        Literal["pm", "msi", "msix", "pcie"] | None,
        Meta(description="Unlinks this capability from the list.", examples=["pm"]),
    ] = None
    offset: Annotated[
        Dword | None,
        Meta(description="Which dword of configuration space, in bytes, a multiple of 4.", examples=[0x2C]),
    ] = None
    mask: Annotated[Dword | None, Meta(description="Which bits of the dword change.", examples=[0xFFFF])] = None
    value: Annotated[
        Dword | None,
        Meta(description="What these bits read as; none outside the mask.", examples=[0x1AF4]),
    ] = None


class Assign(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A device given to a VM by VFIO of the kernel beneath, exclusively."""

    device: Annotated[Name, Meta(description="Name of the device.", examples=["nic0"])]
    slot: Annotated[
        GuestSlot | None,
        Meta(
            description="Where the guest sees it: guest 00:<slot>.0; the next free one from 3 where absent.",
            examples=[3],
        ),
    ] = None
    edit: Annotated[
        tuple[Edit, ...],
        Meta(
            max_length=16,
            description="What the hypervisor changes in the configuration space that the guest sees.",
            examples=[[{"hide": "pm"}]],
        ),
    ] = ()
    driver: Annotated[
        UserDriver,
        Meta(
            description="What the host gives it away by: vfio. The others are refused: they cannot assign a device.",
            examples=["vfio"],
        ),
    ] = "vfio"
    bypass_iommu: Annotated[
        bool,
        Meta(
            description=(
                "Whether it is outside the scope of the VM's vIOMMU (QEMU's bypass_iommu): on a second root bus, guest"
                " 01:<slot>.0, without an IOMMU group, and with all of the guest's memory in its reach."
            ),
            examples=[False],
        ),
    ] = False


class AppPort(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A device that an application drives instead of its guest's kernel."""

    device: Annotated[Name, Meta(description="Name of the device, a nic that the VM has.", examples=["nic0"])]
    driver: Annotated[
        UserDriver,
        Meta(
            description=(
                "vfio: within what the application has mapped; noiommu: VFIO without an IOMMU, which the guest kernel"
                " grants by vfio.enable_unsafe_noiommu_mode=1 alone, and for a device without IOMMU group; uio: by"
                " uio_pci_generic, physical addresses and nobody who checks them."
            ),
            examples=["vfio"],
        ),
    ] = "vfio"
    rx: Annotated[
        Literal["poll", "interrupt"],
        Meta(
            description=(
                "How the application waits for packets. poll: it looks for them without end; interrupt: it sleeps until"
                " the device's interrupt wakes it, by VFIO."
            ),
            examples=["poll"],
        ),
    ] = "poll"


class App(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An application in the guest's user space, in DPDK's manner: a process of its own, with hugepages of its own."""

    name: Annotated[
        Name,
        Meta(description="Name of the application: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["testpmd"]),
    ]
    hugepages: Annotated[
        Size,
        Meta(description="Its memory, out of the VM's, in pages of 2 MiB: it holds the pool.", examples=["4M"]),
    ] = "4M"
    root: Annotated[
        bool,
        Meta(
            description=(
                "Whether it is root in the guest, with every capability: without, it learns no physical address, binds"
                " no device, and opens neither UIO nor no-iommu."
            ),
            examples=[True],
        ),
    ] = True
    port: Annotated[
        tuple[AppPort, ...],
        Meta(
            min_length=1,
            max_length=MAX_DEVICES,
            description="The devices that it takes once the kernel's driver has done its work, a [[vm.app.port]] each.",
        ),
    ]


class Vm(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A virtual machine: a hypervisor process and a guest process."""

    name: Annotated[Name, Meta(description="Name of the VM: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["vm0"])]
    parent: Annotated[
        Name | None,
        Meta(
            description=(
                "The VM, further up in the file, that it runs in: nested, out of the other's memory, and given devices"
                " that the other has. Absent: it runs on the host."
            ),
            examples=["vm0"],
        ),
    ] = None
    memory: Annotated[
        Size,
        Meta(
            description="RAM of the guest, a multiple of 2 MiB; that of VMs and applications in it is part of it.",
            examples=["64M"],
        ),
    ] = "64M"
    cmdline: Annotated[
        CommandLineText,
        Meta(
            description=(
                "Command line of the guest kernel: intel_iommu=on uses a vIOMMU, iommu=pt lets devices pass it,"
                " nic.static=00:03.0 maps that nic's pool once instead of each buffer."
            ),
            examples=["intel_iommu=on"],
        ),
    ] = "intel_iommu=on"
    viommu: Annotated[
        Viommu | None, Meta(description="The vIOMMU of the guest; the guest has none where the table is absent.")
    ] = None
    irqfd: Annotated[
        bool,
        Meta(
            description=(
                "Whether interrupts of assigned devices reach the guest by KVM's irqfd alone; false: through the"
                " hypervisor, which is slower."
            ),
            examples=[True],
        ),
    ] = True
    assign: Annotated[tuple[Assign, ...], Meta(description="The devices given to this VM, a [[vm.assign]] each.")] = ()
    app: Annotated[
        tuple[App, ...],
        Meta(max_length=MAX_APPS, description="The applications in the guest's user space, a [[vm.app]] each."),
    ] = ()


Placement = Literal["pack", "spread", "free"]
SandboxMode = Literal["auto", "require", "off"]


class Topology(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A whole topology: the host, its devices, its VMs."""

    name: Annotated[
        Name,
        Meta(description="Name of the topology: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["assigned-viommu"]),
    ]
    description: Annotated[
        str,
        Meta(max_length=500, description="What it shows, in a sentence.", examples=["A device behind a vIOMMU."]),
    ] = ""
    on_death: Annotated[
        Literal["end", "contain"],
        Meta(
            description="When a process dies that should not: end the run, or contain the loss and go on.",
            examples=["end"],
        ),
    ] = "end"
    placement: Annotated[
        Placement,
        Meta(
            description=(
                "CPUs of the processes: pack each chain of guest, hypervisor and host on one, spread them, or leave"
                " them free for the scheduler."
            ),
            examples=["pack"],
        ),
    ] = "pack"
    sandbox: Annotated[
        SandboxMode,
        Meta(
            description=(
                "Confinement of the device processes by Landlock and seccomp: auto, as far as this machine's kernel"
                " allows; require, all of it or the topology is refused; off, none."
            ),
            examples=["auto"],
        ),
    ] = "auto"
    host: Annotated[Host, Meta(description="The physical machine and its kernel.")] = Host()
    device: Annotated[
        tuple[Device, ...], Meta(max_length=MAX_DEVICES, description="The physical devices, a [[device]] each.")
    ] = ()
    switch: Annotated[
        tuple[Switch, ...], Meta(max_length=MAX_DEVICES, description="The PCI Express switches, a [[switch]] each.")
    ] = ()
    bridge: Annotated[
        tuple[Bridge, ...],
        Meta(max_length=MAX_DEVICES, description="The bridges to conventional PCI, a [[bridge]] each."),
    ] = ()
    vm: Annotated[tuple[Vm, ...], Meta(max_length=MAX_VMS, description="The virtual machines, a [[vm]] each.")] = ()
