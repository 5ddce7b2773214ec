"""Limits of KVM on x86: linux/kvm_host.h and arch/x86/include/asm/kvm_host.h."""

from __future__ import annotations

from typing import Final

#: KVM_USER_MEM_SLOTS.
SLOT_LIMIT: Final = 32764
#: KVM_MAX_IRQ_ROUTES: lines (gsi) that can have a route.
ROUTE_LIMIT: Final = 4096
#: Lines of the I/O APIC, which come first.
IOAPIC_LINES: Final = 24
