"""What one value of a topology file may be: names, sizes, widths, and how many there may be of each."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

MAX_DEVICES = 16
MAX_VMS = 8
MAX_APPS = 8
MAX_VSWITCHES = 4
#: Emulated network cards of one VM, which with all devices find a slot.
MAX_CARDS = 8
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
Operations = Annotated[int, Meta(ge=0, le=MAX_OPERATIONS)]
Placement = Literal["pack", "spread", "free"]
SandboxMode = Literal["auto", "require", "off"]
