"""Sandbox: runs Python that a model wrote, and judges it by tests.

What is protected, by Landlock and seccomp (isolation/) and without root: files outside a temporary folder can neither
be read (but for Python's own and the system's libraries) nor written, removed or changed; there is no network, no
process or thread can be started and none be signalled; CPU time, memory, the size of files, open files, output and time
on the clock are limited, and what is over a limit is killed. Where the machine lets a user have namespaces, there is no
network interface either, and the temporary folder lies in memory, limited as a whole. The environment is empty.

What a verdict is worth: tests run in a process of their own, which holds no code of the solution and gets plain values
from it. So a solution that ends early, prints, patches `assert`, builtins or the interpreter, or returns objects that
equal everything, gains nothing; it never sees the tests, only the arguments of calls. What remains: a solution may
recognise those arguments or change lists that it is passed, a test that only asks for `!=` passes with anything else,
and names that a test uses but does not define are the solution's, except those of Python's builtins and modules.

What is not protected: a solution can see that a file exists and how large it is, it can use its share of CPU, and a
kernel that is broken protects nothing. Objects of the solution's own classes compare by identity in tests, and tests
cannot pass functions to a solution.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from surogate.errors import HardwareError
from surogate.rl.child_process import ChildProcess, usable_cpus
from surogate.rl.isolation.lockdown import Bounds
from surogate.rl.isolation.scratch import ScratchFolder

_PACKAGE = Path(__file__).parents[1]
# Importing the package itself would cost as much as the interpreter's start; only its folder is needed.
_BOOT = (
    "import sys, types\n"
    f"for name, folder in (('surogate', {str(_PACKAGE)!r}), ('surogate.rl', {str(_PACKAGE / 'rl')!r})):\n"
    "    sys.modules[name] = types.ModuleType(name)\n"
    "    sys.modules[name].__path__ = [folder]\n"
    "from surogate.rl.isolation.guest import main\n"
    "main(int(sys.argv[1]))\n"
)
_MAX_REPORT_LEN = 1 << 20
"""Bytes of all verdicts on a solution."""


@dataclass(frozen=True, slots=True)
class Support:
    """What the kernel lets this user have."""

    landlock: bool
    seccomp: bool
    namespaces: bool


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program went.

    Attributes:
        output: of both its streams, cut at the limit.
        ending: exit by itself; time or output where it was killed for that.
        exit_code: negative for the signal that ended it.
        seconds: that it took, on the clock.
    """

    output: str
    ending: Literal["exit", "time", "output"]
    exit_code: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a solution did in its tests.

    Attributes:
        passed: of each test.
        error: what the first test that failed said.
    """

    passed: tuple[bool, ...]
    error: str | None

    @property
    def share(self) -> float:
        """Passed tests / all tests."""
        return sum(self.passed) / len(self.passed)


class Sandbox:
    """Runs programs and tests, some at a time.

    Args:
        bounds: of each process.
        wall_seconds: longest time of a program, or of all tests of a solution.
        output_bytes: most that a program may print.
        max_parallel: runs at a time. Default: one a CPU.

    Raises:
        HardwareError: this machine cannot isolate a process.
    """

    def __init__(
        self,
        bounds: Bounds | None = None,
        wall_seconds: float = 10.0,
        output_bytes: int = 64 << 10,
        max_parallel: int | None = None,
    ) -> None:
        self._support = require_isolation()
        self._bounds = bounds or Bounds()
        self.wall_seconds, self._output_bytes = wall_seconds, output_bytes
        self._slots = asyncio.Semaphore(max_parallel or usable_cpus())

    async def run_program(self, code: str, stdin: str = "", wall_seconds: float | None = None) -> ProgramResult:
        """Run a program to its end, or to a limit.

        Args:
            code: of the program.
            stdin: what it reads.
            wall_seconds: its longest time. Default: the sandbox's.
        """
        async with self._slots:
            began = time.perf_counter()
            async with ScratchFolder("surogate-sandbox-") as folder:
                with _MemoryFile(stdin.encode()) as given:
                    process = self._start({"role": "program", "code": code}, folder, stdin=given.fd)
                output = bytearray()
                ending: Literal["exit", "time", "output"] = "exit"
                try:
                    async with asyncio.timeout(self.wall_seconds if wall_seconds is None else wall_seconds):
                        if await _read(process, output, self._output_bytes):
                            await process.wait()
                        else:
                            ending = "output"
                except TimeoutError:
                    ending = "time"
                finally:
                    exit_code = await process.end()
                seconds = time.perf_counter() - began
                return ProgramResult(output.decode(errors="replace"), ending, exit_code, seconds)

    async def run_tests(self, solution: str, tests: Sequence[str], functions: Sequence[str] = ()) -> Verdict:
        """Judge a solution.

        Args:
            solution: code that defines functions.
            tests: statements that fail by raising; they share their names, and run in order.
            functions: of the solution that are meant even where Python has a function of that name.
        """
        async with self._slots, ScratchFolder("surogate-sandbox-") as folder:
            report, timed_out = await self._report(solution, tests, functions, folder)
        lines = [json.loads(line) for line in report.splitlines(keepends=True) if line.endswith(b"\n")]
        passed = [line["passed"] for line in lines]
        errors = [line["error"] for line in lines if not line["passed"]]
        if len(passed) < len(tests):
            errors.append("the time ran out" if timed_out else "the process of the tests ended early")
        passed += [False] * (len(tests) - len(passed))
        return Verdict(tuple(passed), errors[0] if errors else None)

    async def _report(
        self, solution: str, tests: Sequence[str], functions: Sequence[str], folder: str
    ) -> tuple[bytes, bool]:
        """Run both processes; return what that of the tests reported, and whether the time ran out."""
        folders = [os.path.join(folder, role) for role in ("solution", "tests")]
        for inner in folders:
            os.mkdir(inner)
        (asked, ask), (answered, answer) = os.pipe(), os.pipe()
        report = bytearray()
        timed_out = False
        async with AsyncExitStack() as processes:
            try:
                task: dict[str, Any] = {"role": "solution", "code": solution, "requests": asked, "answers": answer}
                process = self._start(task, folders[0], fds=(asked, answer), quiet=True)
                processes.push_async_callback(process.end)
                task = {"role": "tests", "tests": list(tests), "requests": ask, "answers": answered}
                task["functions"] = list(functions)
                process = self._start(task, folders[1], fds=(ask, answered))
                processes.push_async_callback(process.end)
            finally:
                for fd in (asked, ask, answered, answer):
                    os.close(fd)
            try:
                async with asyncio.timeout(self.wall_seconds):
                    await _read(process, report, _MAX_REPORT_LEN)
            except TimeoutError:
                timed_out = True
        return bytes(report), timed_out

    def _start(
        self,
        task: dict[str, Any],
        folder: str,
        *,
        fds: Sequence[int] = (),
        stdin: int | None = None,
        quiet: bool = False,
    ) -> ChildProcess:
        task |= {
            "parent": os.getpid(),
            "folder": folder,
            "bounds": self._bounds._asdict(),
            "namespaces": self._support.namespaces,
        }
        with _MemoryFile(json.dumps(task).encode()) as file:
            return ChildProcess(
                _command(file.fd),
                {},
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
                stderr=subprocess.STDOUT if task["role"] == "program" else subprocess.DEVNULL,
                pass_fds=(file.fd, *fds),
            )


@cache
def isolation_support() -> Support:
    """Try what this machine offers; once a process."""
    if sys.platform != "linux":
        return Support(landlock=False, seccomp=False, namespaces=False)
    with ScratchFolder("surogate-sandbox-") as folder:
        task = {"role": "probe", "parent": os.getpid(), "folder": folder}
        with _MemoryFile(json.dumps(task).encode()) as file:
            command = _command(file.fd)
            done = subprocess.run(command, capture_output=True, text=True, env={}, pass_fds=(file.fd,), check=False)
    if done.returncode:
        raise HardwareError(f"The sandbox cannot start Python ({sys.executable}): {done.stderr.strip()[-400:]}")
    return Support(**json.loads(done.stdout))


def require_isolation() -> Support:
    """Return what this machine offers, where that is enough to run untrusted code.

    Raises:
        HardwareError: Landlock or seccomp is missing.
    """
    support = isolation_support()
    missing = [name for name in ("landlock", "seccomp") if not getattr(support, name)]
    if missing:
        raise HardwareError(
            f"Code that a model wrote is only run in isolation, and this machine has no {' and no '.join(missing)}. "
            "Needed is Linux 5.13 or newer on x86_64 or aarch64, with Landlock switched on (`landlock` in "
            "/sys/kernel/security/lsm) and allowed by the container."
        )
    return support


class _MemoryFile:
    """Bytes as a file without a name, at its beginning."""

    def __init__(self, content: bytes) -> None:
        self.fd = os.memfd_create("surogate")
        with open(os.dup(self.fd), "wb") as file:
            file.write(content)
        os.lseek(self.fd, 0, os.SEEK_SET)

    def __enter__(self) -> _MemoryFile:
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self.fd)


def _command(task_fd: int) -> list[str]:
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(task_fd)]


async def _read(process: ChildProcess, into: bytearray, limit: int) -> bool:
    """Read standard output to its end; return False where it is longer than the limit."""
    while chunk := await process.read():
        into += chunk
        if len(into) > limit:
            del into[limit:]
            return False
    return True
