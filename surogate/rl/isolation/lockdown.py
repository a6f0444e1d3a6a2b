"""Lockdown: limits, namespaces, Landlock and seccomp in the order in which they can be had.

The one idea: seccomp and Landlock are needed, and every process may have them; namespaces add a second wall (no network
interface at all, a folder in memory that ends with the process) where the machine lets a user make them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable
from typing import NamedTuple

from surogate.rl.isolation import landlock, seccomp

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_NO_SETUID, _NO_DEVICES, _NO_EXECUTION = 2, 4, 8
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_HARMLESS = ("/usr/share/zoneinfo", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")


class Bounds(NamedTuple):
    """What a process may use; no dataclass, whose import would double the time that a sandbox takes to start.

    Attributes:
        cpu_seconds: of CPU; whole ones.
        memory_bytes: of address space.
        file_bytes: of the longest file that it writes.
        folder_bytes: of all of them together; only with namespaces.
        open_files: at once.
    """

    cpu_seconds: int = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 8 << 20
    folder_bytes: int = 16 << 20
    open_files: int = 64


def interpreter_files() -> list[str]:
    """Return what a Python program reads to run: the standard library and the system's shared libraries."""
    paths = sysconfig.get_paths()
    own = [paths["stdlib"], paths["platstdlib"], os.path.join(sys.base_prefix, "lib")]
    return [*dict.fromkeys(os.path.realpath(path) for path in own), *_LIBRARIES, *_HARMLESS]


def lock_down(bounds: Bounds, folder: str, *, namespaces: bool, readable: list[str]) -> None:
    """Give up everything but the interpreter, some files to read and a folder to write in; cannot be undone.

    Args:
        bounds: what may be used.
        folder: becomes the working directory; with namespaces something fresh in memory is put in its place.
        namespaces: leave the network and the folders of the machine too.
        readable: files and folders, with all that is in them.

    Raises:
        OSError: the kernel refuses a part of it.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError("a process with several threads cannot be locked down, since only one of them would be")
    if namespaces:
        _leave(folder, bounds.folder_bytes)
    os.chdir(folder)
    _drop_capabilities()
    limits = {
        resource.RLIMIT_CPU: bounds.cpu_seconds,
        resource.RLIMIT_AS: bounds.memory_bytes,
        resource.RLIMIT_FSIZE: bounds.file_bytes,
        resource.RLIMIT_NOFILE: bounds.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    landlock.restrict(readable, [folder, "/dev/null"])
    seccomp.restrict()


def die_with(parent: int) -> None:
    """End this process when its parent ends, whichever way, and not before.

    A batch system signals all processes of a job ahead of its end; what that means is the parent's business.

    Args:
        parent: the process that should be the parent; where it is not any more, this one ends at once.
    """
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)


def can_have_namespaces(folder: str) -> bool:
    """Whether this machine lets the user have namespaces, tried in a process of its own."""
    return _succeeds(lambda: _leave(folder, 1 << 20))


def can_have_seccomp() -> bool:
    """Whether this machine lets the user install the filter, tried in a process of its own."""
    return seccomp.is_supported() and _succeeds(seccomp.restrict)


def _succeeds(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _leave(folder: str, size: int) -> None:
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NET | _NEW_IPC | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no namespaces")
    for name, text in (("uid_map", f"{user} {user} 1"), ("setgroups", "deny"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    options = f"size={size},nr_inodes=1024,mode=700".encode()
    flags = _NO_SETUID | _NO_DEVICES | _NO_EXECUTION
    if libc.mount(b"surogate", os.fsencode(folder), b"tmpfs", flags, options):
        raise OSError(ctypes.get_errno(), "no folder in memory")


def _drop_capabilities() -> None:
    """Drop what a root user, or the first process of a user namespace, may do beyond others."""
    version_3 = 0x20080522
    nothing = struct.pack("=6I", *[0] * 6)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("=Ii", version_3, 0), nothing):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
