"""The machine's physical memory map: one for the host and for every guest, after QEMU's q35.

What a kernel may know of it, it reads from the firmware's tables; only firmware and the machine
itself use these constants.
"""

from __future__ import annotations

#: Linux boot parameters ("zero page"), command line and ACPI tables, all in the first MiB.
ZERO_PAGE = 0x7000
COMMAND_LINE = 0x2_0000
ACPI_TABLES = 0xE_0000
FIRMWARE_END = 0x10_0000

#: RAM below 4 GiB ends here at the latest; the rest begins at HIGH_MEMORY.
LOW_MEMORY_LIMIT = 0x8000_0000
HIGH_MEMORY = 0x1_0000_0000

#: PCI Express enhanced configuration space of segment 0, 1 MiB a bus.
ECAM_BASE = 0xB000_0000
ECAM_BUSES = 256

#: In a guest: the root bus of a second host bridge, for devices that its vIOMMU is not for (QEMU: pxb-pcie with
#: bypass_iommu=true).
BYPASSING_BUS = 1

#: 32-bit window for BARs, bounds inclusive.
MMIO_FIRST = 0xC000_0000
MMIO_LAST = 0xFEBF_FFFF

#: VT-d register file of the only remapping unit (QEMU: Q35_HOST_BRIDGE_IOMMU_ADDR).
REMAPPING_UNIT_BASE = 0xFED9_0000
REMAPPING_UNIT_SIZE = 0x1000

#: I/O APIC registers, and the requester ID of its interrupts (QEMU: Q35_PSEUDO_BUS_PLATFORM, no device on any link).
IOAPIC_BASE = 0xFEC0_0000
IOAPIC_SOURCE_ID = 0xFF00

#: Local APIC registers for a CPU, interrupt messages for a device.
LOCAL_APIC_BASE = 0xFEE0_0000
