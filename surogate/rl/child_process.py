"""ChildProcess: a process of our own, with pipes that coroutines read and write; Linux only.

What is not here: what it runs (sandbox.py, rewards.py). The one idea: starting is one step that nothing can interrupt,
and `end` closes everything that was opened, whatever happened in between; asyncio's own subprocesses, cancelled while
they start, leave pipes open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


def usable_cpus() -> int:
    """Return the CPUs that this process may use; a container or a scheduler may have left it fewer than there are."""
    return len(os.sched_getaffinity(0))


class ChildProcess:
    """A running process, in a session of its own.

    Args:
        command: program and arguments.
        env: all environment variables.
        stdin: a file, subprocess.PIPE or subprocess.DEVNULL; so are the next ones.
        stdout: as Popen takes it.
        stderr: as Popen takes it; None = this process's.
        pass_fds: file descriptors that it inherits.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self._exited = os.pidfd_open(self._popen.pid)
        self._unread = bytearray()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    async def write(self, content: bytes) -> None:
        """Write all of it to standard input.

        Raises:
            BrokenPipeError: nobody reads it.
        """
        assert self._popen.stdin is not None
        fd, loop, rest = self._popen.stdin.fileno(), asyncio.get_running_loop(), memoryview(content)
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                await _ready(fd, loop.add_writer, loop.remove_writer)

    async def read(self) -> bytes:
        """Return the next piece of standard output, nothing at its end."""
        assert self._popen.stdout is not None
        fd, loop = self._popen.stdout.fileno(), asyncio.get_running_loop()
        while True:
            try:
                return os.read(fd, 1 << 16)
            except BlockingIOError:
                await _ready(fd, loop.add_reader, loop.remove_reader)

    async def read_line(self, limit: int) -> bytes:
        """Return the next line of standard output; one without an end where the output ended or is longer.

        Args:
            limit: bytes that are read at most, and a pipe's content.
        """
        looked_at, is_over = 0, False
        while (end := self._unread.find(b"\n", looked_at)) < 0:
            if is_over or len(self._unread) > limit:
                end = len(self._unread) - 1
                break
            looked_at = len(self._unread)
            piece = await self.read()
            is_over = not piece
            self._unread += piece
        line = bytes(self._unread[: end + 1])
        del self._unread[: end + 1]
        return line

    async def wait(self) -> int:
        """Wait for its end and return the exit code; negative for the signal that ended it."""
        loop = asyncio.get_running_loop()
        if self._popen.poll() is None:
            await _ready(self._exited, loop.add_reader, loop.remove_reader)
        return self._popen.wait()

    async def end(self) -> int:
        """Kill it and its session where it still runs, close the pipes, and return the exit code."""
        try:
            if self._popen.poll() is None:
                # It was not waited for yet, so its number cannot belong to another process.
                with suppress(ProcessLookupError):
                    os.killpg(self._popen.pid, signal.SIGKILL)
            return await self.wait()
        finally:
            self._popen.poll()
            os.close(self._exited)
            for pipe in (self._popen.stdin, self._popen.stdout):
                if pipe is not None:
                    pipe.close()


async def _ready(fd: int, add: Callable[[int, Callable[[], Any]], Any], remove: Callable[[int], Any]) -> None:
    """Wait until a file descriptor can be read or written."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
