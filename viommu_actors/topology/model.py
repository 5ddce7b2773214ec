"""A topology file as typed keys. Each key's description is its documentation, here and in editors.

These types hold what one value may be, those of virtual machines in `vm`. What values must be together stands in
`refusals`, what is filled in where a key is absent in `resolve`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from viommu_actors.topology.values import (
    MAX_DEVICES,
    MAX_VMS,
    MAX_VSWITCHES,
    AddressWidth,
    CommandLineText,
    HostSlot,
    MaskBits,
    Name,
    Operations,
    Placement,
    SandboxMode,
    Size,
)
from viommu_actors.topology.vm import Vm


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
        Operations,
        Meta(
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


class Vswitch(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A virtual switch on the host, an application that serves the virtio-net cards which name it, a port each."""

    name: Annotated[
        Name, Meta(description="Name of the switch: 1 to 32 of a-z, 0-9 and -, not - first.", examples=["ovs"])
    ]
    on_death: Annotated[
        Literal["end", "contain", "restart"] | None,
        Meta(
            description=(
                "When its process dies: end the run, contain the loss, or restart it, so that its guests lose the link"
                " only for a while. Absent: as the topology's on_death."
            ),
            examples=["restart"],
        ),
    ] = None


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
    vswitch: Annotated[
        tuple[Vswitch, ...],
        Meta(max_length=MAX_VSWITCHES, description="The virtual switches of the host, a [[vswitch]] each."),
    ] = ()
    vm: Annotated[tuple[Vm, ...], Meta(max_length=MAX_VMS, description="The virtual machines, a [[vm]] each.")] = ()
