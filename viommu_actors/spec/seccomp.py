"""Seccomp filters: linux/seccomp.h, and the classic BPF they are written in, linux/filter.h and linux/bpf_common.h."""

from __future__ import annotations

import struct
from typing import Final

SET_MODE_FILTER: Final = 1
GET_ACTION_AVAIL: Final = 2

#: The filter holds for all threads that are there, not for the calling one alone.
FILTER_FLAG_TSYNC: Final = 1 << 0
#: Before Linux 5.16 a filter without it also turned off the CPU's memory disambiguation, which slows all code down.
FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2

RET_ERRNO: Final = 0x0005_0000
RET_ALLOW: Final = 0x7FFF_0000

#: struct seccomp_data: number, AUDIT_ARCH, instruction pointer, six arguments of 64 bits.
DATA: Final = struct.Struct("=iIQ6Q")
DATA_NUMBER: Final = 0
DATA_ARCH: Final = 4
DATA_ARGUMENTS: Final = 16

#: linux/audit.h. Both are little-endian: the low half of an argument comes first.
AUDIT_ARCH_X86_64: Final = 0xC000_003E
AUDIT_ARCH_AARCH64: Final = 0xC000_00B7

#: struct sock_filter: code, jump if true, jump if false, k.
INSTRUCTION: Final = struct.Struct("=HBBI")
MAX_INSTRUCTIONS: Final = 4096

#: BPF_LD | BPF_W | BPF_ABS, BPF_RET | BPF_K, and BPF_JMP | BPF_K with each condition.
LOAD: Final = 0x20
RETURN: Final = 0x06
JUMP: Final = 0x05
JUMP_EQUAL: Final = 0x15
JUMP_GREATER: Final = 0x25
JUMP_GREATER_EQUAL: Final = 0x35
JUMP_ANY_BIT: Final = 0x45
#: struct sock_fprog: how many instructions, and where, in the layout of this machine.
PROGRAM: Final = struct.Struct("@HP")
