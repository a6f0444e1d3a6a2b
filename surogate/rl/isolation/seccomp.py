"""Seccomp: the system calls that a process may still make; all others fail with EPERM.

The one idea: a list of what is allowed, so that a call that nobody thought of is refused. A process under it starts no
process and no thread, opens no socket, signals nobody, and changes no owner, mode or time of a file. Numbers are those
of Linux's asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

_TABLE = """
# files that are open
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, close 3 57, lseek 8 62
fstat 5 80, ftruncate 77 46, fsync 74 82, fdatasync 75 83, sendfile 40 71, copy_file_range 326 285
fadvise64 221 223, dup 32 23, dup2 33 -, dup3 292 24
# files by name, which Landlock looks after
stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439
readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50, getdents64 217 61, statfs 137 43
fstatfs 138 44, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -
renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, umask 95 166
# memory
mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214
# time and waiting
futex 202 98, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101
gettimeofday 96 169, time 201 -, sched_yield 24 124, select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73
epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, pause 34 -
restart_syscall 219 128, setitimer 38 103, getitimer 36 102, alarm 37 -
# pipes, and the sockets that socketpair makes
pipe 22 -, pipe2 293 59, recvfrom 45 207, getsockname 51 204, getpeername 52 205, getsockopt 55 209
shutdown 48 210
# signals to itself
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, sigaltstack 131 132
# what it is and where it runs
getpid 39 172, getppid 110 173, gettid 186 178, getpgrp 111 -, getpgid 121 155, getsid 124 156, getuid 102 174
geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150
uname 63 160, sysinfo 99 179, getrlimit 97 163, getrusage 98 165, times 100 153, sched_getaffinity 204 123
getcpu 309 168, getpriority 140 141, getrandom 318 278
# start and end
arch_prctl 158 -, set_tid_address 218 96, set_robust_list 273 99, rseq 334 293, exit 60 93, exit_group 231 94
"""
"""Name, number on x86_64, number on aarch64."""

_OPEN_TABLE = "open 2 -, openat 257 56"
_ARGUMENT_TABLE = "ioctl 16 29, fcntl 72 25, prlimit64 302 261, socketpair 53 199, sendto 44 206"

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 1, "aarch64": 2}

_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGS_AT = 0, 4, 16  # struct seccomp_data

_TRUNCATES, _ACCESS_MODE = 0o1000, 0o3
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; the others change files or terminals."""
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""Duplicating, flags and record locks; the others let the kernel send signals to any process."""
_UNIX, _STREAM, _TYPE = 1, 1, 0xF

Instruction = tuple[int, int, int, int]
"""Code, steps to jump over if true, if false, and the constant."""


def is_supported() -> bool:
    """Whether the filter is known for this kind of machine."""
    return platform.system() == "Linux" and platform.machine() in _AUDIT_ARCH


def filter_program(machine: str) -> list[Instruction]:
    """Return the filter as BPF.

    Args:
        machine: x86_64 or aarch64.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for number in _numbers(_TABLE, machine).values():
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, block in _checked_calls(machine):
        program += [(_JUMP_IF_EQUAL, 0, len(block), number), *block]
    return [*program, (_RETURN, 0, 0, _REFUSE)]


def restrict() -> None:
    """Install the filter in this thread, which must be the only one.

    Raises:
        OSError: the kernel refuses.
    """
    instructions = b"".join(struct.pack("=HBBI", *step) for step in filter_program(platform.machine()))
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privs, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, program, 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _numbers(table: str, machine: str) -> dict[str, int]:
    lines = (line for line in table.splitlines() if not line.startswith("#"))
    entries = [entry.split() for line in lines for entry in line.split(",") if entry.strip()]
    column = _COLUMN[machine]
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}


def _checked_calls(machine: str) -> list[tuple[int, list[Instruction]]]:
    """Return calls that are allowed with some arguments only, and the instructions that decide."""
    calls = _numbers(_ARGUMENT_TABLE, machine)
    rules = [
        (calls["ioctl"], _one_of(1, _IOCTLS)),
        (calls["fcntl"], _one_of(1, _FCNTLS)),
        (calls["prlimit64"], _one_of(0, (0,))),  # of itself
        (calls["socketpair"], [*_must_be(0, _UNIX, 0xFFFFFFFF), *_must_be(1, _STREAM, _TYPE), (_RETURN, 0, 0, _ALLOW)]),
        (calls["sendto"], [*_must_be(4, 0, 0xFFFFFFFF), *_must_be(4, 0, 0xFFFFFFFF, high=4), (_RETURN, 0, 0, _ALLOW)]),
    ]
    # Landlock before ABI 3 lets a file be emptied by opening it for reading; nobody means that.
    for name, number in _numbers(_OPEN_TABLE, machine).items():
        empties = [
            (_LOAD, 0, 0, _ARGS_AT + 8 * (1 if name == "open" else 2)),
            (_AND, 0, 0, _TRUNCATES | _ACCESS_MODE),
            (_JUMP_IF_EQUAL, 0, 1, _TRUNCATES),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
        rules.append((number, empties))
    return rules


def _one_of(argument: int, values: Sequence[int]) -> list[Instruction]:
    """Allow the call where the low half of an argument is one of some values."""
    load = (_LOAD, 0, 0, _ARGS_AT + 8 * argument)
    tests = [step for value in values for step in ((_JUMP_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [load, *tests, (_RETURN, 0, 0, _REFUSE)]


def _must_be(argument: int, value: int, mask: int, high: int = 0) -> list[Instruction]:
    """Refuse the call unless half of an argument, masked, is the value; `high` is 4 for the upper half."""
    return [
        (_LOAD, 0, 0, _ARGS_AT + 8 * argument + high),
        (_AND, 0, 0, mask),
        (_JUMP_IF_EQUAL, 1, 0, value),
        (_RETURN, 0, 0, _REFUSE),
    ]
