"""The filter as a program, run by a small BPF machine, so that both processors' versions are looked at on either."""

from __future__ import annotations

import struct

import pytest

from surogate.rl.isolation.seccomp import filter_program

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": dict(
        read=0, openat=257, ioctl=16, fcntl=72, prlimit64=302, socketpair=53, sendto=44, getpid=39, socket=41, clone=56,
        clone3=435, fork=57, vfork=58, execve=59, execveat=322, kill=62, tgkill=234, ptrace=101, mount=165, unshare=272,
        connect=42, sendmsg=46, bpf=321, io_uring_setup=425, chmod=90, fchmod=91, fchmodat=268, chown=92, utimensat=280,
        truncate=76, openat2=437, process_vm_readv=310, pidfd_send_signal=424, setxattr=188, shmget=29, mq_open=240,
        prctl=157, memfd_create=319, userfaultfd=323, perf_event_open=298, keyctl=250, seccomp=317,
    ),
    "aarch64": dict(
        read=63, openat=56, ioctl=29, fcntl=25, prlimit64=261, socketpair=199, sendto=206, getpid=172, socket=198,
        clone=220, clone3=435, execve=221, execveat=281, kill=129, tgkill=131, ptrace=117, mount=40, unshare=97,
        connect=203, sendmsg=211, bpf=280, io_uring_setup=425, fchmod=52, fchmodat=53, fchownat=54, utimensat=88,
        truncate=45, openat2=437, process_vm_readv=270, pidfd_send_signal=424, setxattr=5, shmget=194, mq_open=180,
        prctl=167, memfd_create=279, userfaultfd=282, perf_event_open=241, keyctl=219, seccomp=277,
    ),
}  # fmt: skip
"""From Linux's asm/unistd_64.h and asm-generic/unistd.h."""
CHECKED = {"read", "getpid", "openat", "ioctl", "fcntl", "prlimit64", "socketpair", "sendto"}
O_TRUNC, O_WRONLY, O_CREAT = 0o1000, 1, 0o100


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request) -> str:
    return request.param


def decide(machine: str, call: str, *args: int, arch: int | None = None) -> int:
    """Run the filter on one call."""
    data = struct.pack("=IIQ6Q", NUMBERS[machine][call], arch or ARCH[machine], 0, *args, *[0] * (6 - len(args)))
    program, at, accumulator = filter_program(machine), 0, 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x15:
            at += if_true if accumulator == constant else if_false
        else:
            assert code == 0x06
            return constant


def test_only_known_calls_are_allowed(machine: str):
    for call in NUMBERS[machine].keys() - CHECKED:
        assert decide(machine, call) == REFUSE, call
    assert decide(machine, "read") == decide(machine, "getpid") == ALLOW


def test_calls_of_another_architecture_end_the_process(machine: str):
    assert decide(machine, "read", arch=0x40000003) == KILL


def test_a_file_cannot_be_emptied_by_opening_it_for_reading(machine: str):
    assert decide(machine, "openat", 0, 0, O_TRUNC) == REFUSE
    assert decide(machine, "openat", 0, 0, O_TRUNC | O_WRONLY | O_CREAT) == ALLOW
    assert decide(machine, "openat", 0, 0, 0) == ALLOW


def test_arguments_that_reach_beyond_the_process_are_refused(machine: str):
    assert decide(machine, "ioctl", 0, 0x5401) == ALLOW
    assert decide(machine, "ioctl", 0, 0x5412) == REFUSE  # TIOCSTI types into a terminal
    assert decide(machine, "fcntl", 0, 1030) == ALLOW
    assert decide(machine, "fcntl", 0, 8) == REFUSE  # F_SETOWN sends signals
    assert decide(machine, "prlimit64", 0) == ALLOW
    assert decide(machine, "prlimit64", 1) == REFUSE
    assert decide(machine, "socketpair", 1, 1 | 0o2000000) == ALLOW
    assert decide(machine, "socketpair", 1, 2) == REFUSE
    assert decide(machine, "socketpair", 2, 1) == REFUSE
    assert decide(machine, "sendto", 3, 1, 1, 0, 0) == ALLOW
    assert decide(machine, "sendto", 3, 1, 1, 0, 1) == REFUSE
    assert decide(machine, "sendto", 3, 1, 1, 0, 1 << 32) == REFUSE
