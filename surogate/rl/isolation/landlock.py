"""Landlock: the files that a process may still read, and the folders in which it may write; everything else is closed.

The one idea: a kernel knows only the rights of its own ABI, so the set of rights, and the size of the structure that
names them, follow the version that it reports (Documentation/userspace-api/landlock.rst). What Landlock does not hide
is that a file exists, its size and its times.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_RULE_PATH_BENEATH = 1
_GET_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_OF_ABI_1 = (1 << 13) - 1
_SINCE = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""ABI and the file right that came with it: refer, truncate, ioctl on devices."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_TCP = 0b11
_SCOPES = 0b11
"""No abstract sockets and no signals to processes outside."""


def abi() -> int:
    """Return the kernel's Landlock ABI; 0 where it has none."""
    return max(0, _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_GET_VERSION)))


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Close every file and TCP port to this thread and what it starts, but for some.

    Args:
        readable: files and folders that may be read with all that is in them; those that don't exist are left out.
        writable: folders and devices in which everything but executing is allowed.

    Raises:
        OSError: the kernel refuses.
    """
    version = abi()
    rights = _OF_ABI_1 | sum(right for since, right in _SINCE.items() if version >= since)
    fields = [rights, *([_TCP] if version >= 4 else []), *([_SCOPES] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _checked(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for path in readable:
        _allow(ruleset, path, _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(ruleset, path, rights & ~_EXECUTE)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs = 38
    if libc.prctl(no_new_privs, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    _checked(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= _OF_FILES
    rule = struct.pack("=Qi", rights, place)
    _checked(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint(0))
    os.close(place)


def _syscall(number: int, *args: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *args))


def _checked(number: int, *args: object) -> int:
    result = _syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
