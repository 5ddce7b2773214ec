"""The virtual machines of a topology file as typed keys: vIOMMU, assigned and emulated devices, applications."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from viommu_actors.app.pci import UserDriver
from viommu_actors.topology.values import (
    MAX_APPS,
    MAX_CARDS,
    MAX_DEVICES,
    AddressWidth,
    CommandLineText,
    Dword,
    GuestSlot,
    Name,
    Operations,
    Size,
)


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


class VirtioNet(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A network card that the hypervisor emulates (virtio-net), served by a virtual switch of the host."""

    name: Annotated[
        Name, Meta(description="Name of the device: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["vnet0"])
    ]
    vswitch: Annotated[Name, Meta(description="The virtual switch that it has a port of.", examples=["ovs"])]
    slot: Annotated[
        GuestSlot | None,
        Meta(
            description="Where the guest sees it: guest 00:<slot>.0; the next free one from 3 where absent.",
            examples=[4],
        ),
    ] = None
    operations: Annotated[
        Operations,
        Meta(
            description=(
                "How many frames it sends to the next card of the same switch, each in a buffer of a page, and each"
                " verified there. 0: none."
            ),
            examples=[64],
        ),
    ] = 64
    rogue: Annotated[
        tuple[str, ...],
        Meta(
            description=(
                "Attacks that its back end plays, the virtual switch turned hostile at this port, by their ids in the"
                " catalogue (docs/attacks.md)."
            ),
            examples=[["A1", "A2"]],
        ),
    ] = ()


class AppPort(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A device that an application drives instead of its guest's kernel."""

    device: Annotated[
        Name, Meta(description="Name of the device, a nic or virtio-net that the VM has.", examples=["nic0"])
    ]
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
                " the device's interrupt wakes it: its MSI-X by VFIO, its INTx by UIO."
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
    virtio_net: Annotated[
        tuple[VirtioNet, ...],
        Meta(
            max_length=MAX_CARDS,
            description="The network cards that the hypervisor emulates, a [[vm.virtio_net]] each.",
        ),
    ] = ()
    app: Annotated[
        tuple[App, ...],
        Meta(max_length=MAX_APPS, description="The applications in the guest's user space, a [[vm.app]] each."),
    ] = ()
