"""INTx by VFIO: masks itself, is unmasked, and shares index, line and interrupt disable with what else there is."""

from __future__ import annotations

from errno import EINVAL, ENOTTY

import pytest

from tests.kernel.user_intx import VfioUser
from viommu_actors.kernel.lines import UNHANDLED_LIMIT
from viommu_actors.spec import pci
from viommu_actors.spec.ioapic import intx_line
from viommu_actors.spec.tlp import IntxMessage
from viommu_actors.spec.vfio import IRQ_COUNT, IrqAction, IrqFlags, IrqIndex

DISABLE = pci.Command.INTX_DISABLE


def started() -> tuple[VfioUser, int]:
    user = VfioUser()
    eventfd = user.vfio.eventfd(user.process)
    user.set_irqs(IrqIndex.INTX, eventfd)
    return user, eventfd


def test_info() -> None:
    user = VfioUser()
    info = user.vfio.irq_info(user.process, user.handle, IrqIndex.INTX)
    assert info.count == 1 and info.flags == IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED


def test_it_masks_itself_until_it_is_unmasked() -> None:
    user, eventfd = started()
    user.ring()
    user.settle()
    assert user.woken == [eventfd] and not user.wire
    user.see_to_it()
    user.act(IrqAction.UNMASK)
    user.ring()
    user.settle()
    assert user.woken == [eventfd] * 2


def test_one_that_was_not_seen_to_is_signalled_as_it_is_unmasked() -> None:
    user, eventfd = started()
    user.ring()
    user.settle()
    user.act(IrqAction.UNMASK)
    # At once, and without the wire.
    assert user.woken == [eventfd] * 2 and not user.wire


def test_the_user_may_mask_it_too() -> None:
    user, eventfd = started()
    user.act(IrqAction.MASK)
    user.ring()
    user.settle()
    assert user.woken == []
    user.act(IrqAction.UNMASK)
    assert user.woken == [eventfd]


def test_trigger_is_as_if_the_device_had_raised_it() -> None:
    user, eventfd = started()
    user.act(IrqAction.TRIGGER)
    assert user.woken == [eventfd]
    user.set_command(DISABLE, DISABLE)
    user.act(IrqAction.TRIGGER)
    assert user.woken == [eventfd]


def test_the_users_interrupt_disable_is_virtual() -> None:
    user, eventfd = started()
    assert not user.command() & DISABLE
    user.set_command(DISABLE, DISABLE)
    user.ring()
    user.settle()
    assert user.woken == []
    assert user.command() & DISABLE and user.command() >> 16 & pci.Status.INTX
    user.act(IrqAction.UNMASK)
    assert user.woken == [], "as long as he has disabled it"
    user.set_command(0, DISABLE)
    assert user.woken == [eventfd] and not user.command() & DISABLE


def test_disabled_and_closed_it_is_over() -> None:
    user, _ = started()
    user.set_irqs(IrqIndex.INTX)
    assert user.rig.ioapic.masked(intx_line(1, 0))
    user.ring()
    user.settle()
    assert user.woken == []
    user.set_irqs(IrqIndex.INTX, user.vfio.eventfd(user.process))
    user.process.exit()
    assert user.rig.ioapic.masked(intx_line(1, 0)) and not user.wire


def test_one_kind_is_on_at_a_time() -> None:
    user, eventfd = started()
    with pytest.raises(OSError, match="are on") as caught:
        user.set_irqs(IrqIndex.MSI, eventfd)
    assert caught.value.errno == EINVAL
    user.set_irqs(IrqIndex.INTX)
    user.set_irqs(IrqIndex.MSI, eventfd)
    with pytest.raises(OSError, match="are on"):
        user.set_irqs(IrqIndex.INTX, eventfd)


@pytest.mark.parametrize(
    ("index", "action", "start", "count", "errno"),
    [
        (IrqIndex.INTX, IrqAction.UNMASK, 1, 1, EINVAL),
        (IrqIndex.INTX, IrqAction.UNMASK, 0, 2, EINVAL),
        (IrqIndex.INTX, IrqAction.UNMASK, 0, 0, EINVAL),
        (IrqIndex.MSI, IrqAction.TRIGGER, 0, 1, EINVAL),
        (IrqIndex.MSI, IrqAction.MASK, 0, 1, ENOTTY),
        (IrqIndex.MSI, IrqAction.MASK, 0, 99, EINVAL),
        (IrqIndex.MSIX, IrqAction.MASK, 0, 1, EINVAL),
        (IRQ_COUNT, IrqAction.MASK, 0, 1, EINVAL),
        (IrqIndex.INTX, 7, 0, 1, ENOTTY),
    ],
)
def test_refused(index: int, action: IrqAction, start: int, count: int, errno: int) -> None:
    user, _ = started()
    with pytest.raises(OSError) as caught:
        user.act(action, index, start, count)
    assert caught.value.errno == errno


def test_msi_is_raised_by_its_user_but_not_masked() -> None:
    user = VfioUser()
    eventfd = user.vfio.eventfd(user.process)
    with pytest.raises(OSError, match="are not on"):
        user.act(IrqAction.TRIGGER, IrqIndex.MSI)
    user.set_irqs(IrqIndex.MSI, eventfd)
    user.act(IrqAction.TRIGGER, IrqIndex.MSI)
    assert user.woken == [eventfd]
    with pytest.raises(OSError) as caught:
        user.act(IrqAction.MASK, IrqIndex.MSI)
    assert caught.value.errno == ENOTTY


def test_a_reset_keeps_it_on() -> None:
    user, eventfd = started()
    user.vfio.reset(user.process, user.handle)
    user.set_command(pci.Command.MEMORY, pci.Command.MEMORY)
    user.ring()
    user.settle()
    assert user.woken == [eventfd]


def test_a_device_that_ignores_interrupt_disable_loses_its_line() -> None:
    """Masked as it is, the interrupt is nobody's, and comes for as often as the kernel puts up with that."""
    user, eventfd = started()
    user.ring()
    user.settle()
    user.rig.root.receive("slot1", IntxMessage(0, True))
    before = user.kernel.counters["interrupts"]
    while user.rig.wait_for_interrupt(0):
        assert user.kernel.counters["interrupts"] - before <= UNHANDLED_LIMIT
    assert user.woken == [eventfd]
    assert any("nobody cared" in line for line in user.rig.lines)


def test_a_wire_that_goes_up_for_nothing_is_nobodys() -> None:
    user, _ = started()
    user.rig.root.receive("slot1", IntxMessage(0, True))
    while user.rig.wait_for_interrupt(0):
        pass
    assert user.woken == []
    assert user.kernel.counters["interrupts"] == UNHANDLED_LIMIT
