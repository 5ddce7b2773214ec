"""Messages of all wires but the link (`wire.link`) and vhost (`wire.vhost`), wire by wire.

Requests of the vfio and kvm wires follow the ioctls of linux/vfio.h and linux/kvm.h one for one, so that a real user
of them can stand at either end. Addresses and sizes are in bytes.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from viommu_actors.spec import pci
from viommu_actors.spec.fields import U8, U16, U32, U64, AccessSize, Fits, Length, Range
from viommu_actors.spec.kvm import ROUTE_LIMIT
from viommu_actors.wire.codec import Codec, Plain

Handle = Annotated[int, Range(0, 0x7FFF_FFFF)]
Name = Annotated[str, Length(1, 64)]
Text = Annotated[str, Length(0, 4096)]
#: As many bytes as the `size` before it says.
Value = Annotated[int, Fits("size")]
#: An unguessable 16-byte capability to one BAR, or empty where the memory is RAM.
Token = Annotated[bytes, Length(0, 16)]
Tree = Annotated[object, Plain()]


# trap: guest -> hypervisor, a VM exit; the guest's CPU waits for the answer.


class TrapRead(NamedTuple):
    """MMIO read of an address that the hypervisor emulates."""

    address: U64
    size: AccessSize


class TrapWrite(NamedTuple):
    """MMIO write of an address that the hypervisor emulates."""

    address: U64
    size: AccessSize
    value: Value


class TrapLend(NamedTuple):
    """A user process has touched a BAR that was mapped for it: the kernel asks for what leads to this address of it.

    No access is done. What the kernel's page tables say in reality, which the CPU walks without leaving the guest.
    """

    address: U64


class TrapValue(NamedTuple):
    """The emulated read's value."""

    value: U64


class TrapDone(NamedTuple):
    """The emulated write is complete. `flush`: the address map changed, drop every direct window."""

    flush: bool


class TrapDirect(NamedTuple):
    """The address lies in a memory slot: the access is to be done again, straight to the device.

    What an EPT violation does that ends with a mapping instead of an exit to user space.
    """

    base: U64
    size: U64
    token: Token


class TrapLent(NamedTuple):
    """The address lies in a BAR that the hypervisor emulates: a user process's accesses to it come to the hypervisor.

    As DirectRead and DirectWrite with this token, answered by TrapValue and TrapDone. No token: no BAR is there.
    """

    base: U64
    size: U64
    token: Token


# direct: guest -> the parent kernel's fabric -> device. An application's to an emulated BAR go to the hypervisor.


class DirectRead(NamedTuple):
    """Read of a BAR that was lent; answered by DirectValue, all-ones after a completion timeout."""

    token: Token
    offset: U32
    size: AccessSize


class DirectWrite(NamedTuple):
    """Posted write to a BAR that was lent."""

    token: Token
    offset: U32
    size: AccessSize
    value: Value


class DirectValue(NamedTuple):
    """Value of a DirectRead."""

    value: U64


# vfio: a user process -> its kernel. Each is answered by its own reply or by Failed.


class Failed(NamedTuple):
    """The request's errno, and why."""

    errno: Annotated[int, Range(1, 4095)]
    reason: Text


class Done(NamedTuple):
    """Success; `value` is what the ioctl returns (a descriptor, bytes unmapped, an address)."""

    value: U64


class Content(NamedTuple):
    """Bytes read from a region, or a channel token."""

    data: Annotated[bytes, Length(0, 4096)]


class RegionInfo(NamedTuple):
    """VFIO_DEVICE_GET_REGION_INFO."""

    flags: U32
    size: U64
    offset: U64


class IrqInfo(NamedTuple):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    flags: U32
    vectors: U32


class OpenContainer(NamedTuple):
    """open("/dev/vfio/vfio")."""


class IommuGroup(NamedTuple):
    """readlink("/sys/bus/pci/devices/$DEVICE/iommu_group"): the number of the device's group."""

    device: Name


class OpenGroup(NamedTuple):
    """open("/dev/vfio/$GROUP")."""

    group: Handle


class SetContainer(NamedTuple):
    """VFIO_GROUP_SET_CONTAINER."""

    group: Handle
    container: Handle


class SetIommu(NamedTuple):
    """VFIO_SET_IOMMU."""

    container: Handle
    kind: U32


class GetDevice(NamedTuple):
    """VFIO_GROUP_GET_DEVICE_FD."""

    group: Handle
    device: Name


class MapDma(NamedTuple):
    """VFIO_IOMMU_MAP_DMA."""

    container: Handle
    flags: U32
    vaddr: U64
    iova: U64
    size: U64


class UnmapDma(NamedTuple):
    """VFIO_IOMMU_UNMAP_DMA; the answer is a barrier."""

    container: Handle
    iova: U64
    size: U64


class GetRegionInfo(NamedTuple):
    """VFIO_DEVICE_GET_REGION_INFO."""

    device: Handle
    region: U32


class GetIrqInfo(NamedTuple):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    device: Handle
    irq: U32


class RegionRead(NamedTuple):
    """pread() of a device region."""

    device: Handle
    region: U32
    offset: U64
    size: Annotated[int, Range(1, 4096)]


class RegionWrite(NamedTuple):
    """pwrite() of a device region."""

    device: Handle
    region: U32
    offset: U64
    data: Annotated[bytes, Length(1, 4096)]


class SetIrqs(NamedTuple):
    """VFIO_DEVICE_SET_IRQS with eventfds; -1 takes one away, none at all disables the index."""

    device: Handle
    irq: U32
    start: U32
    eventfds: Annotated[tuple[Annotated[int, Range(-1, 0x7FFF_FFFF)], ...], Length(0, pci.MSIX_MAX_VECTORS)]


class ActOnIrqs(NamedTuple):
    """VFIO_DEVICE_SET_IRQS without data: masks, unmasks or raises interrupts."""

    device: Handle
    irq: U32
    action: U8
    start: U32
    interrupts: U32


class ResetDevice(NamedTuple):
    """VFIO_DEVICE_RESET."""

    device: Handle


class MmapRegion(NamedTuple):
    """mmap() of a device region; answered with a user address."""

    device: Handle
    region: U32


class MmapRam(NamedTuple):
    """mmap() of one of the process's own memory slots, by name; answered with a user address."""

    slot: Name


class CloseHandle(NamedTuple):
    """close()."""

    handle: Handle


class Eventfd(NamedTuple):
    """eventfd()."""


# kvm: a hypervisor -> its kernel, beside vfio on the same socket.


class CreateVm(NamedTuple):
    """KVM_CREATE_VM."""

    name: Name


class SetMemory(NamedTuple):
    """KVM_SET_USER_MEMORY_REGION; size 0 takes the slot away. Answered with Content(token)."""

    vm: Handle
    slot: U16
    gpa: U64
    size: U64
    vaddr: U64


class SetRoutes(NamedTuple):
    """KVM_SET_GSI_ROUTING with MSI entries (gsi, address, data); replaces all."""

    vm: Handle
    routes: Annotated[tuple[tuple[U16, U64, U32], ...], Length(0, ROUTE_LIMIT)]


class BindIrqfd(NamedTuple):
    """KVM_IRQFD; `assign` False is KVM_IRQFD_FLAG_DEASSIGN."""

    vm: Handle
    eventfd: Handle
    gsi: U16
    assign: bool


class SignalMsi(NamedTuple):
    """KVM_SIGNAL_MSI: the hypervisor's own emulated devices raise an interrupt (vIOMMU faults)."""

    vm: Handle
    address: U64
    data: U32


# system calls of an application, beside vfio on the same socket.

#: Of a kernel's driver for PCI devices, as sysfs has it; empty for none.
DriverName = Annotated[str, Length(0, 64)]


class PciFunctions(NamedTuple):
    """What /sys/bus/pci/devices shows: name, vendor, device, driver, IOMMU group or -1, the IOMMU's address bits or 0,
    and the size of each BAR."""

    functions: Annotated[
        tuple[
            tuple[
                Name,
                U16,
                U16,
                DriverName,
                Annotated[int, Range(-1, 0x7FFF_FFFF)],
                U8,
                Annotated[tuple[U64, ...], Length(pci.ENDPOINT_BARS, pci.ENDPOINT_BARS)],
            ],
            ...,
        ],
        Length(0, 256),
    ]


class Window(NamedTuple):
    """What a page fault on a BAR ends with: its user addresses, and the channel that leads there.

    `emulated`: to the hypervisor, by an exit of the CPU, instead of straight to the device.
    """

    base: U64
    size: U64
    token: Token
    emulated: bool


class ListPci(NamedTuple):
    """Reads /sys/bus/pci/devices; answered by PciFunctions."""


class BindDriver(NamedTuple):
    """driver_override, unbind and bind of a device."""

    device: Name
    driver: DriverName


class NoiommuMode(NamedTuple):
    """Reads /sys/module/vfio/parameters/enable_unsafe_noiommu_mode."""


class OpenNoiommuGroup(NamedTuple):
    """open("/dev/vfio/noiommu-$GROUP")."""

    group: Handle


class Pagemap(NamedTuple):
    """Reads /proc/self/pagemap; answered with a physical address."""

    vaddr: U64


class OpenUio(NamedTuple):
    """open() of the /dev/uioN of a device."""

    device: Name


class UioConfigRead(NamedTuple):
    """pread() of the device's configuration space."""

    uio: Handle
    offset: U64
    size: Annotated[int, Range(1, 4096)]


class UioConfigWrite(NamedTuple):
    """pwrite() of the device's configuration space."""

    uio: Handle
    offset: U64
    data: Annotated[bytes, Length(1, 4096)]


class UioMmap(NamedTuple):
    """mmap() of the device's resourceN; answered with a user address."""

    uio: Handle
    bar: U32


class UioWrite(NamedTuple):
    """write() of /dev/uioN: 1 or 0 for interrupts on or off, where its driver knows that."""

    uio: Handle
    on: U32


class ReadCount(NamedTuple):
    """read() of an eventfd or of /dev/uioN, non-blocking; answered with its count."""

    descriptor: Handle


class PageFault(NamedTuple):
    """The first access to a BAR that was mapped; answered by Window."""

    vaddr: U64


# inject: a kernel -> guest, one way; notify: a kernel -> its user process, one way.


class Inject(NamedTuple):
    """An interrupt vector at the guest's local APIC."""

    vector: U8


class EventfdSignal(NamedTuple):
    """An eventfd that no irqfd consumes was signalled; or a device of UIO, by the descriptor of its open file."""

    eventfd: Handle


# control: launcher <-> everyone.


class Command(NamedTuple):
    """A command to an actor; answered by a Reply with its number."""

    number: U32
    name: Name
    arguments: Tree


class Reply(NamedTuple):
    """Answer to a Command: `error` empty on success."""

    number: U32
    error: Text
    result: Tree


TRAP = Codec({1: TrapRead, 2: TrapWrite, 3: TrapLend})
TRAP_ANSWER = Codec({1: TrapValue, 2: TrapDone, 3: TrapDirect, 4: TrapLent})
DIRECT = Codec({1: DirectRead, 2: DirectWrite})
DIRECT_ANSWER = Codec({1: DirectValue})
KERNEL_REQUESTS: tuple[type, ...] = (
    MapDma, UnmapDma, OpenContainer, OpenGroup, SetContainer, SetIommu, GetDevice, GetRegionInfo, GetIrqInfo,
    RegionRead, RegionWrite, SetIrqs, ResetDevice, MmapRegion, MmapRam, CloseHandle, Eventfd,
    CreateVm, SetMemory, SetRoutes, BindIrqfd, SignalMsi, IommuGroup,
    ListPci, BindDriver, NoiommuMode, OpenNoiommuGroup, Pagemap, OpenUio, UioConfigRead, UioConfigWrite, UioMmap,
    PageFault, ReadCount, ActOnIrqs, UioWrite,
)  # fmt: skip
VFIO = Codec(dict(enumerate(KERNEL_REQUESTS, start=1)))
VFIO_ANSWER = Codec({1: Done, 2: Failed, 3: Content, 4: RegionInfo, 5: IrqInfo, 6: PciFunctions, 7: Window})
INJECT = Codec({1: Inject})
NOTIFY = Codec({1: EventfdSignal})
CONTROL = Codec({1: Command})
CONTROL_ANSWER = Codec({1: Reply})
