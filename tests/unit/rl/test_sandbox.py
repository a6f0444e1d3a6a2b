from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.descendants import children

from surogate.errors import HardwareError
from surogate.rl import sandbox
from surogate.rl.isolation.lockdown import Bounds
from surogate.rl.sandbox import ProgramResult, Sandbox, Support, Verdict

NOT_PERMITTED = ("PermissionError", "MemoryError", "OSError")


@pytest.fixture(params=[True, False], ids=["namespaces", "without namespaces"], autouse=True)
def namespaces(request, monkeypatch) -> bool:
    """Every sample must fail where the machine has no namespaces to offer, too."""
    if request.param:
        assert sandbox.isolation_support() == Support(landlock=True, seccomp=True, namespaces=True)
    else:
        monkeypatch.setattr(sandbox, "isolation_support", lambda: Support(True, True, False))
    return request.param


def run(code: str, stdin: str = "", wall_seconds: float = 20.0, **bounds: int) -> ProgramResult:
    result = asyncio.run(Sandbox(Bounds(**bounds), wall_seconds=wall_seconds).run_program(code, stdin))
    assert not children(), "a process was left behind"
    return result


def judge(solution: str, *tests: str, wall_seconds: float = 20.0, **bounds: int) -> Verdict:
    verdict = asyncio.run(Sandbox(Bounds(**bounds), wall_seconds=wall_seconds).run_tests(solution, tests))
    assert not children(), "a process was left behind"
    return verdict


def attempt(statement: str) -> str:
    """Run a statement and return how it ended: done, or the name of what it raised."""
    body = "\n    ".join(statement.splitlines())
    result = run(
        f"try:\n    {body}\n    print('done')\nexcept BaseException as error:\n    print(type(error).__name__)"
    )
    return result.output.strip()


def test_a_program_reads_its_input_and_writes_its_output():
    result = run("print(input().upper())", "hello")
    assert result == ProgramResult("HELLO\n", "exit", 0, result.seconds) and 0 < result.seconds < 60


def test_an_exception_of_a_program_is_in_its_output():
    result = run("1 / 0")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output


def test_the_standard_library_works():
    modules = "asyncio collections dataclasses datetime decimal functools hashlib heapq itertools json math random re"
    assert attempt(f"import {', '.join(modules.split())}\nasyncio.run(asyncio.sleep(0))") == "done"
    assert attempt("import sqlite3, tempfile\ntempfile.TemporaryFile().write(b'x')") == "done"


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    result = run("import os; print(sorted(os.environ), os.environ['HOME'] == os.getcwd(), os.listdir('.'))")
    assert result.output.strip() == "['HOME', 'LC_CTYPE', 'PATH', 'TMPDIR'] True []"


@pytest.mark.parametrize(
    "statement",
    [
        "import os\nwhile True: os.fork()",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()",
        "import os\nos.setsid()",
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
    ],
)
def test_no_process_can_be_started(statement: str):
    assert attempt(statement) in NOT_PERMITTED


def test_no_thread_can_be_started():
    assert attempt("import threading\nthreading.Thread(target=print).start()") == "RuntimeError"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"])
def test_no_socket_can_be_opened(family: str):
    kind = "SOCK_RAW" if family in ("AF_NETLINK", "AF_PACKET") else "SOCK_STREAM"
    assert attempt(f"import socket\nsocket.socket(socket.{family}, socket.{kind})") == "PermissionError"


def test_a_server_of_this_machine_hears_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert attempt(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)") == "PermissionError"


def test_a_socket_pair_cannot_send_to_an_address():
    assert attempt("import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)") == "PermissionError"
    assert attempt("import socket\na, b = socket.socketpair()\na.sendto(b'x', '/dev/log')") == "PermissionError"
    assert attempt("import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'") == "done"


@pytest.mark.parametrize(
    "statement",
    [
        "open({file!r}).read()",
        "open({file!r}, 'w')",
        "open({file!r}, 'a')",
        "open({folder!r} + '/new', 'w')",
        "os.unlink({file!r})",
        "os.rename({file!r}, {folder!r} + '/new')",
        "os.rename({file!r}, 'mine')",
        "os.link({file!r}, 'mine')",
        "os.truncate({file!r}, 0)",
        "os.open({file!r}, os.O_RDONLY | os.O_TRUNC)",
        "os.chmod({file!r}, 0o777)",
        "os.utime({file!r}, (0, 0))",
        "os.mkdir({folder!r} + '/new')",
        "os.rmdir({folder!r})",
        "os.symlink('/', {folder!r} + '/new')",
        "os.listdir({folder!r})",
        "shutil.rmtree({folder!r})",
        "os.symlink({file!r}, 'mine')\nopen('mine').read()",
        "os.chroot('.')",
        "os.mknod({folder!r} + '/new')",
        "os.setxattr({file!r}, 'user.x', b'1')",
        "fcntl.ioctl(os.open(os.__file__, os.O_RDONLY), 0x40086602, bytes(8))",
    ],
)
def test_files_outside_can_neither_be_read_nor_changed(tmp_path: Path, statement: str):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "file").write_text("precious")
    before = (folder / "file").stat()
    code = "import fcntl, os, shutil\n" + statement.format(file=str(folder / "file"), folder=str(folder))
    assert attempt(code) in ("PermissionError", "OSError")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "precious"
    after = (folder / "file").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/proc/1/cmdline", "/root", "/dev/tty", "/sys"])
def test_system_files_cannot_be_read(path: str):
    assert attempt(f"import os\n(os.listdir if os.path.isdir({path!r}) else open)({path!r})") == "PermissionError"


def test_the_memory_and_environment_of_the_parent_cannot_be_read():
    assert attempt("import os\nopen(f'/proc/{os.getppid()}/environ', 'rb').read()") in (
        *NOT_PERMITTED,
        "FileNotFoundError",
    )
    assert attempt("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb+')") in (*NOT_PERMITTED, "FileNotFoundError")


@pytest.mark.parametrize("target", [os.getpid(), os.getppid(), -1, 0])
def test_no_process_can_be_signalled(target: int):
    assert attempt(f"import os, signal\nos.kill({target}, signal.SIGTERM)") == "PermissionError"


@pytest.mark.parametrize("name", ["ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "prctl"])
def test_calls_that_nobody_needs_are_refused_to_machine_code_too(name: str):
    numbers = {"ptrace": 101, "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250}
    numbers |= {"io_uring_setup": 425, "prctl": 157}
    code = (
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nresult = libc.syscall({numbers[name]}, 0, 0, 0, 0)"
    )
    assert attempt(f"{code}\nassert result == -1\nassert ctypes.get_errno() == 1, ctypes.get_errno()") == "done"


def test_memory_is_limited():
    assert attempt("x = bytearray(1 << 30)") == "MemoryError"
    assert attempt("x = []\nwhile True: x.append(bytearray(1 << 20))") == "MemoryError"


def test_time_on_the_clock_is_limited():
    assert run("import time; time.sleep(60)", wall_seconds=1.0).ending == "time"


def test_cpu_time_is_limited():
    result = run("while True: pass", cpu_seconds=1)
    assert result.ending == "exit"
    assert result.exit_code < 0


def test_output_is_limited():
    result = run("while True: print('x' * 1000)")
    assert result.ending == "output"
    assert len(result.output) == 64 << 10


def test_errors_count_as_output():
    assert run("import sys\nwhile True: print('x' * 1000, file=sys.stderr)").ending == "output"


def test_the_size_and_the_number_of_open_files_are_limited():
    assert attempt("open('x', 'wb').write(bytes(9 << 20))") == "OSError"
    assert attempt("x = []\nwhile True: x.append(open('/dev/null'))") == "OSError"


def test_the_folder_is_limited_as_a_whole_where_it_lies_in_memory(namespaces: bool):
    code = "for i in range(5): open(str(i), 'wb').write(bytes(4 << 20))"
    assert attempt(code) == ("OSError" if namespaces else "done")


def test_a_temporary_folder_is_fresh_and_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        assert run("import os; print(os.listdir('.')); open('x', 'w')").output == "[]\n"
    assert not list(tmp_path.iterdir())


def test_a_solution_is_judged_test_by_test():
    solution = "def add(a, b):\n    return a + b if a < 5 else 0"
    verdict = judge(solution, "assert add(1, 2) == 3", "assert add(7, 1) == 8", "assert add([1], [2]) == [1, 2]")
    assert verdict.passed == (True, False, False)
    assert verdict.share == pytest.approx(1 / 3)
    assert verdict.error == "AssertionError"


def test_plain_values_pass_unchanged_in_both_directions():
    values = (
        "[1, -2.5, True, None, 'a\\nb\\u20ac', (1, [2]), {3, 4}, {'k': (5,)}, b'\\x00', 10**30, 1j, frozenset({1}), {}]"
    )
    assert (
        judge(
            "def same(x):\n    return x",
            f"for value in {values}:\n    got = same(value)\n    "
            "assert got == value and type(got) is type(value), value",
        ).share
        == 1.0
    )


def test_classes_generators_and_changed_arguments_work_across_the_processes():
    solution = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
def count(n):
    yield from range(n)
def sort(items): items.sort()
def fail(): raise KeyError('k')
LIMIT = 7
"""
    verdict = judge(
        solution,
        "s = Stack()\ns.push(4)\nassert len(s) == 1 and s.items == [4] and s.pop() == 4",
        "assert list(count(3)) == [0, 1, 2]",
        "x = [3, 1]\nsort(x)\nassert x == [1, 3]",
        "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass",
        "assert LIMIT == 7",
        "def check(f):\n    assert list(f(2)) == [0, 1]\ncheck(count)",
    )
    assert verdict == Verdict((True,) * 6, None)


def test_the_error_of_a_solution_that_cannot_be_loaded_is_told():
    verdict = judge("def f(:", "assert f() == 1")
    assert verdict.passed == (False,)
    assert "SyntaxError" in verdict.error and "line 1" in verdict.error


CHEATS = {
    "ends early": "import os\nos._exit(0)",
    "ends in a call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "exits at import": "raise SystemExit(0)",
    "equals everything": "class All:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
    "    __hash__ = None\ndef f(x): return All()",
    "an int that equals everything": "class All(int):\n    def __eq__(self, other): return True\n"
    "    __hash__ = int.__hash__\ndef f(x): return All(3)",
    "patched builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.compile = lambda *a, **k: None\n"
    "builtins.exec = lambda *a: None\ndef f(x): return 0",
    "patched json": "import json\njson.loads = lambda line: {'passed': True}\njson.dumps = lambda x: "
    '\'{"passed": true, "error": null}\'\ndef f(x): return 0',
    "patched harness": "import sys\nfor module in list(sys.modules.values()):\n    for name in ('run_tests', "
    "'_receive', 'describe'):\n        if hasattr(module, name): setattr(module, name, lambda *a, **k: None)\n"
    "def f(x): return 0",
    "report on every file": 'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'{"passed": true, "error": '
    "null}\\n' * 5)\n    except OSError: pass\ndef f(x): return 0",
    "report at exit": 'import atexit\natexit.register(print, \'{"passed": true, "error": null}\')\ndef f(x): return 0',
    "own builtins for the tests": "def abs(x): return 0\ndef len(x): return 0\ndef f(x): return 0",
    "own module for the tests": "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 0",
    "raises AssertionError": "def f(x): raise AssertionError",
    "an endless answer": "def f(x): return 'x' * (200 << 20)",
    "deep answer": "def f(x):\n    y = []\n    for i in range(100000): y = [y]\n    return y",
    "broken protocol": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[[[\\n' * 9)\n"
    "    except OSError: pass",
    "kills the tests": "import os, signal\nos.kill(os.getppid(), 9)",
    "finds the tests": "import gc\ndef f(x):\n    return next(o for o in gc.get_objects() if 'assert f' in str(o))",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_solution_cannot_forge_its_verdict(cheat: str):
    tests = ["assert f(1) == 2", "assert abs(f(1) - 2) < 1e-6", "import math\nassert math.isclose(f(2), 4)"]
    verdict = judge(CHEATS[cheat], *tests)
    assert verdict.passed == (False, False, False)
    assert verdict.error


def test_a_module_that_the_tests_forgot_to_import_is_pythons_and_not_the_solutions():
    solution = "import math\nclass math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 0.0"
    assert judge(solution, "assert math.isclose(f(1), 5.0)").share == 0.0
    assert judge("import math\ndef f(x): return math.pi", "assert math.isclose(f(1), math.pi)").share == 1.0


def test_a_function_named_like_one_of_pythons_can_be_meant():
    run_tests = Sandbox().run_tests("def sum(a, b): return a + b", ["assert sum(1, 2) == 3"], functions=["sum"])
    assert asyncio.run(run_tests).share == 1.0


def test_what_passed_before_the_time_ran_out_counts():
    solution = "def f(x):\n    while x > 1: pass\n    return x"
    verdict = judge(solution, "assert f(1) == 1", "assert f(2) == 2", "assert f(0) == 0", wall_seconds=2.0)
    assert verdict.passed == (True, False, False)
    assert verdict.error == "the time ran out"


def test_a_sandbox_ends_with_the_process_that_opened_it(tmp_path: Path):
    code = (
        "import asyncio, sys; from surogate.rl.sandbox import Sandbox; asyncio.run(Sandbox().run_program('while 1: 1'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    inner = wait_for(lambda: Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{inner[0]}").exists())


def wait_for(condition):
    """Poll until something is true; the test's own timeout is the limit."""
    while not (value := condition()):
        time.sleep(0.02)
    return value


def test_cancelling_leaves_nothing_behind():
    async def cancel_soon() -> None:
        running = asyncio.create_task(Sandbox().run_program("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel_soon())
    assert not children()


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_without_isolation_nothing_runs(monkeypatch, missing: str):
    support = Support(**{"landlock": True, "seccomp": True, "namespaces": True, missing: False})
    monkeypatch.setattr(sandbox, "isolation_support", lambda: support)
    with pytest.raises(HardwareError, match=f"no {missing}"):
        Sandbox()
