from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from surogate.rl.child_process import ChildProcess


def python(code: str, **streams: int) -> ChildProcess:
    return ChildProcess([sys.executable, "-I", "-S", "-c", code], {}, **streams)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_lines_and_rest_come_as_they_were_written():
    async def run() -> list[bytes]:
        process = python("import sys; sys.stdout.write('one\\ntwo\\nrest')")
        lines = [await process.read_line(1 << 20) for _ in range(4)]
        assert await process.wait() == 0
        await process.end()
        return lines

    assert asyncio.run(run()) == [b"one\n", b"two\n", b"rest", b""]


def test_more_than_a_pipe_holds_goes_through_in_both_directions():
    async def run() -> None:
        process = python("import sys; sys.stdout.write(sys.stdin.readline())", stdin=subprocess.PIPE)
        line = b"x" * (3 << 20) + b"\n"
        await process.write(line)
        assert await process.read_line(4 << 20) == line
        await process.end()

    asyncio.run(run())


def test_a_line_that_does_not_end_is_read_up_to_the_limit():
    async def run() -> None:
        process = python("import sys\nwhile True: sys.stdout.write('x' * 1000)")
        line = await process.read_line(200_000)
        assert 200_000 < len(line) < 400_000 and not line.endswith(b"\n")
        await process.end()

    asyncio.run(run())


def test_writing_to_a_process_that_ended_is_a_broken_pipe():
    async def run() -> None:
        process = python("pass", stdin=subprocess.PIPE)
        await process.wait()
        with pytest.raises(BrokenPipeError):
            await process.write(b"x")
        await process.end()

    asyncio.run(run())


def test_ending_kills_and_leaves_no_file_open():
    async def run() -> None:
        before = open_files()
        process = python("import time; print(1, flush=True); time.sleep(600)", stdin=subprocess.PIPE)
        await process.read_line(1 << 20)
        assert await process.end() == -signal.SIGKILL
        assert open_files() == before

    asyncio.run(run())


def test_a_wait_that_is_cancelled_leaves_the_process_to_be_ended():
    async def run() -> None:
        before = open_files()
        process = python("import time; time.sleep(600)")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await process.read()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await process.wait()
        await process.end()
        assert open_files() == before

    asyncio.run(run())


def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing_open():
    before = open_files()
    with pytest.raises(FileNotFoundError):
        ChildProcess(["/no/such/program"], {})
    assert open_files() == before
