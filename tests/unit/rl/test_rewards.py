from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.descendants import children

from surogate.errors import DataError, HardwareError
from surogate.rl import rewards, sandbox
from surogate.rl.environments.base import RewardError
from surogate.rl.rewards import RewardLost, RewardWorker

Score = Callable[..., list[float]]


@pytest.fixture
def reward(tmp_path: Path):
    """Write a reward file and score two completions with its function `f`, once or several times."""

    def score(body: str, calls: int = 1, function: str = "f", **settings: Any) -> list[float]:
        path = tmp_path / "reward.py"
        path.write_text(body)

        async def run() -> list[float]:
            worker = RewardWorker(f"{path}:{function}", "env", **settings)
            try:
                for _ in range(calls):
                    result = await worker.score(["a", "bb"], {"answer": ["a", "b"], "index": [1, 2]})
            finally:
                await worker.close()
            return result

        result = asyncio.run(run())
        assert not children()
        return result

    return score


def test_a_reward_gets_completions_and_columns(reward: Score):
    body = "def f(completions, **columns):\n    assert list(columns) == ['answer', 'index']\n"
    body += "    return [float(c == a) + i for c, a, i in zip(completions, *columns.values())]"
    assert reward(body) == [2.0, 2.0]


def test_a_reward_may_name_only_the_columns_that_it_wants(reward: Score):
    assert reward("def f(completions, answer):\n    return [c == a for c, a in zip(completions, answer)]") == [1.0, 0.0]


def test_a_column_that_is_not_there_is_named_with_those_that_are(reward: Score):
    with pytest.raises(RewardError, match=r"takes gold, and the data has only the columns answer, index"):
        reward("def f(completions, gold):\n    return [0.0, 0.0]")


@pytest.mark.parametrize(
    "signature", ["index, completions", "*, completions, index", "completions, index", "texts, index, **more"]
)
def test_completions_go_to_the_parameter_of_that_name_or_to_the_first(reward: Score, signature: str):
    texts = "completions" if "completions" in signature else "texts"
    assert reward(f"def f({signature}):\n    return [len(c) * i for c, i in zip({texts}, index)]") == [1.0, 4.0]


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("", r"takes no completions; write it as f\(completions, \*\*columns\)"),
        ("**columns", "takes no completions"),
        ("*, index", "takes no completions"),
        ("prompts, completions", "takes prompts, and the data has only the columns answer, index"),
        ("answer, **columns", "first parameter is given the completions, and answer is a column of the data"),
    ],
)
def test_a_reward_of_another_signature_is_told_what_is_wrong_with_it(reward: Score, signature: str, said: str):
    with pytest.raises(RewardError, match=said):
        reward(f"def f({signature}):\n    return [0.0, 0.0]")


def test_an_asynchronous_reward_is_told_to_be_none(reward: Score):
    with pytest.raises(RewardError, match=r"write it with def, not async def$"):
        reward("async def f(completions, **columns):\n    return [0.0, 0.0]")


def test_a_reward_may_have_a_column_called_completions(tmp_path: Path):
    (tmp_path / "reward.py").write_text("def f(completions, **columns):\n    return [float(completions == ['a'])]")

    async def run() -> list[float]:
        worker = RewardWorker(f"{tmp_path}/reward.py:f", "env")
        try:
            return await worker.score(["a"], {"completions": ["of the data"]})
        finally:
            await worker.close()

    assert asyncio.run(run()) == [1.0]


MEETS = """
import pathlib, time
def f(completions, answer):
    own, other = (pathlib.Path(__file__).with_name(name) for name in (completions[0], answer[0][completions[0]]))
    own.touch()
    deadline = time.monotonic() + 20
    while not other.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return [float(other.exists())]
"""


def test_each_completion_is_scored_in_a_process_of_its_own_at_the_same_time(tmp_path: Path):
    (tmp_path / "reward.py").write_text(MEETS)

    async def run() -> list[float]:
        worker = RewardWorker(f"{tmp_path}/reward.py:f", "env", num_processes=2)
        try:
            return await worker.score_each(["a", "b"], {"answer": {"a": "b", "b": "a"}})
        finally:
            await worker.close()

    assert asyncio.run(run()) == [1.0, 1.0]


def test_a_completion_without_an_answer_gets_nothing_and_an_exception_goes_on(tmp_path: Path):
    body = "import os\ndef f(completions, kind):\n    if completions == ['ends']:\n        os._exit(3)\n"
    (tmp_path / "reward.py").write_text(body + "    return [{'good': 1.0}[completions[0]]]")

    async def run(*completions: str) -> list[float]:
        worker = RewardWorker(f"{tmp_path}/reward.py:f", "env")
        try:
            return await worker.score_each(completions, {"kind": "x"})
        finally:
            await worker.close()

    assert asyncio.run(run("ends", "good", "ends", "good")) == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(RewardError, match="KeyError: 'bad'"):
        asyncio.run(run("good", "bad"))


def test_numbers_of_numpy_become_pythons(reward: Score):
    assert reward("import numpy as np\ndef f(completions, **_):\n    return np.float32([0.5, 1])") == [0.5, 1.0]
    assert reward("import numpy as np\ndef f(completions, **_):\n    return [np.float32(0.5), np.int64(1)]") == [
        0.5,
        1.0,
    ]


def test_what_a_reward_prints_and_reads_stays_out_of_the_protocol(reward: Score, capfd):
    body = """
import os, sys
print('{"rewards": [9, 9]}')
os.write(1, b'{"error": "x"}\\n')
def f(completions, **_):
    print('{"rewards": [9, 9]}', flush=True)
    assert sys.stdin.read() == ''
    return [1.0, 2.0]
"""
    assert reward(body, calls=2) == [1.0, 2.0]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count('{"rewards": [9, 9]}') == 3


def test_an_exception_comes_back_with_type_message_and_line(reward: Score):
    with pytest.raises(RewardError, match=r"env: .*ZeroDivisionError: division by zero \(line 4: return 1 / n\)"):
        reward("def f(completions, **_):\n    return [g(0), 1.0]\ndef g(n):\n    return 1 / n\n")


@pytest.mark.parametrize("error", ["SystemExit('no')", "KeyboardInterrupt", "BaseException", "GeneratorExit"])
def test_whatever_is_raised_is_an_error_of_the_reward(reward: Score, error: str):
    with pytest.raises(RewardError, match=error.partition("(")[0]):
        reward(f"def f(completions, **_):\n    raise {error}")


def test_a_file_that_cannot_be_loaded_is_told_with_its_line(reward: Score):
    with pytest.raises(RewardError, match=r"cannot be loaded: ModuleNotFoundError.*line 2"):
        reward("import math\nimport no_such_module\n")
    with pytest.raises(RewardError, match="has no attribute 'g'"):
        reward("def f(completions, **_): pass", function="g")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[float('nan'), 1]", "nan; each must be a finite number"),
        ("[1, float('-inf')]", "-inf; each must be a finite number"),
        ("[1, 10**5000]", "inf; each must be a finite number"),
        ("[1]", "a list of 2 numbers, and returned 1 of them"),
        ("[1, 2, 3]", "a list of 2 numbers, and returned 3 of them"),
        ("None", "a list of numbers, and returned a NoneType"),
        ("1.0", "a list of numbers, and returned a float"),
        ("{1: 2}", "a list of numbers, and returned a dict"),
        ("['1', 2]", "each must be a finite number"),
        ("[None, 2]", "each must be a finite number"),
        ("[[1], 2]", "each must be a finite number"),
    ],
)
def test_what_is_not_one_finite_number_a_completion_is_refused(reward: Score, value: str, message: str):
    with pytest.raises(RewardError, match=message):
        reward(f"def f(completions, **_):\n    return {value}")


def test_a_reward_that_hangs_is_ended_and_the_next_call_has_a_fresh_process(reward: Score, tmp_path: Path):
    flag = tmp_path / "second"
    body = f"""
import os, time
def f(completions, **_):
    if not os.path.exists({str(flag)!r}):
        open({str(flag)!r}, 'w')
        time.sleep(600)
    return [1.0, 1.0]
"""
    with pytest.raises(RewardLost, match=r"gave no answer within 0\.5 s"):
        reward(body, timeout_seconds=0.5)
    assert reward(body, timeout_seconds=0.5) == [1.0, 1.0]


def test_the_worker_itself_goes_on_after_a_lost_answer(tmp_path: Path):
    (tmp_path / "r.py").write_text(
        "import os\ndef f(completions, **_):\n    if completions == ['x']: os._exit(3)\n    return [os.getpid()]"
    )

    async def run() -> None:
        worker = RewardWorker(f"{tmp_path}/r.py:f", "env")
        first = await worker.score(["a"], {})
        assert await worker.score(["b"], {}) == first, "one process serves several calls"
        with pytest.raises(RewardLost, match="exit code 3"):
            await worker.score(["x"], {})
        assert await worker.score(["a"], {}) != first
        await worker.close()

    asyncio.run(run())


def test_what_a_reward_that_hangs_had_started_ends_with_it(tmp_path: Path):
    (tmp_path / "r.py").write_text(
        "import subprocess, sys, time\ndef f(completions, **_):\n    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n    time.sleep(600)"
    )

    async def run() -> None:
        worker = RewardWorker(f"{tmp_path}/r.py:f", "env", timeout_seconds=1.0)
        with pytest.raises(RewardLost):
            await worker.score(["a"], {})
        await worker.close()

    asyncio.run(run())
    pid = (tmp_path / "pid").read_text()
    while is_alive(pid):  # its signal was sent, and the test's own timeout is the limit
        time.sleep(0.02)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_cancelled_call_ends_its_process(tmp_path: Path):
    (tmp_path / "r.py").write_text("import time\ndef f(completions, **_):\n    time.sleep(600)")

    async def run() -> None:
        worker = RewardWorker(f"{tmp_path}/r.py:f", "env")
        call = asyncio.create_task(worker.score(["a"], {}))
        while not children():
            await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not children()

    asyncio.run(run())


def test_several_processes_serve_calls_at_the_same_time(tmp_path: Path):
    """Each call waits for the other to have begun, so one process alone would never answer."""
    (tmp_path / "r.py").write_text(
        "import os, time\ndef f(completions, **_):\n"
        f"    open({str(tmp_path)!r} + '/' + completions[0] + '.begun', 'w')\n"
        f"    while len([n for n in os.listdir({str(tmp_path)!r}) if n.endswith('.begun')]) < 2: time.sleep(0.01)\n"
        "    return [1.0]"
    )

    async def run() -> list[list[float]]:
        worker = RewardWorker(f"{tmp_path}/r.py:f", "env", num_processes=2)
        results = await asyncio.gather(worker.score(["a"], {}), worker.score(["b"], {}))
        await worker.close()
        return results

    assert asyncio.run(run()) == [[1.0], [1.0]]


def test_a_column_that_is_no_plain_value_is_refused(reward: Score, tmp_path: Path):
    async def run() -> None:
        with pytest.raises(DataError, match="a column cannot be handed to the reward"):
            await RewardWorker("x.py:f", "env").score(["a"], {"image": [object()]})

    asyncio.run(run())


def test_a_module_beside_the_users_file_can_be_imported_but_hides_none_of_pythons(reward: Score, tmp_path: Path):
    (tmp_path / "beside.py").write_text("VALUE = 0.5")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    body = "import beside, json\ndef f(completions, **_):\n    return [beside.VALUE, json.loads('2')]"
    assert reward(body) == [0.5, 2.0]


def test_a_worker_loads_no_torch(reward: Score):
    body = "import sys\ndef f(completions, **_):\n    return ['torch' in sys.modules, 'numpy' in sys.modules]"
    assert reward(body) == [0.0, 0.0]


def test_an_isolated_worker_reaches_nothing(reward: Score, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outside = tmp_path / "outside"
    body = f"""
import os, socket, subprocess
def refused(do):
    try:
        do()
    except (PermissionError, FileNotFoundError):
        return 1.0
    return 0.0
def f(completions, **_):
    write = lambda: open({str(outside)!r}, 'w')
    tries = [write, socket.socket, os.fork, lambda: open('/etc/passwd'), lambda: os.environ['SECRET_TOKEN'] and 0]
    return [min(refused(do) for do in tries[:4]), float('SECRET_TOKEN' not in os.environ)]
"""
    assert reward(body, isolated=True) == [1.0, 1.0]
    assert not outside.exists()


def test_isolation_that_cannot_be_had_is_an_error(monkeypatch):
    support = sandbox.Support(landlock=False, seccomp=True, namespaces=True)
    monkeypatch.setattr(sandbox, "isolation_support", lambda: support)
    with pytest.raises(HardwareError, match="landlock"):
        RewardWorker("x.py:f", "env", isolated=True)


def test_a_reward_that_takes_too_long_to_load_is_ended(reward: Score, monkeypatch):
    monkeypatch.setattr(rewards, "_START_SECONDS", 0.5)
    with pytest.raises(RewardError, match="loading the reward") as raised:
        reward("import time\ntime.sleep(600)")
    assert not isinstance(raised.value, RewardLost)


def test_a_reward_whose_process_ends_at_its_start_is_not_a_lost_answer(reward: Score):
    with pytest.raises(RewardError, match="did not come up") as raised:
        reward("import os\nos._exit(3)")
    assert not isinstance(raised.value, RewardLost)


def test_large_requests_and_answers_pass(tmp_path: Path):
    (tmp_path / "r.py").write_text("def f(completions, **_):\n    return [len(c) for c in completions]")
    completions = ["x" * 200_000] * 50

    async def run() -> list[float]:
        worker = RewardWorker(f"{tmp_path}/r.py:f", "env")
        result = await worker.score(completions, {})
        await worker.close()
        return result

    assert math.fsum(asyncio.run(run())) == 10_000_000


FORGES = """
import json, os
def f(completions, answer, index):
    for fd in range(3, 32):
        try:
            os.write(fd, %s)
        except OSError:
            pass
    return [0.0, 0.0]
"""


@pytest.mark.parametrize("line", ["b'no JSON\\n'", "b'[' * 100000 + b'\\n'", "b'{\"rewards\": [9, 9]}\\n'", "b'{}\\n'"])
def test_what_is_scored_cannot_answer_in_the_workers_place(reward: Score, line: str):
    """Nor can it answer the next request."""
    with pytest.raises(RewardLost, match="said something that is no answer"):
        reward(FORGES % line, isolated=True)


def test_an_answer_without_end_is_lost_and_not_held(reward: Score, monkeypatch):
    monkeypatch.setattr(rewards, "_MAX_ANSWER", 1 << 20)
    body = FORGES.replace("os.write(fd, %s)", "[os.write(fd, bytes(1 << 16)) for _ in range(1000)]")
    with pytest.raises(RewardLost, match="answered with more than 1 MiB"):
        reward(body, isolated=True)


def test_an_isolated_worker_prints_nothing_and_others_what_they_like(reward: Score, capfd):
    body = "import sys, os\ndef f(completions, **_):\n"
    body += "    print('said')\n    print('told', file=sys.stderr)\n    os.write(2, b'written')\n    return [1, 1]"
    assert reward(body, isolated=True) == [1.0, 1.0]
    assert capfd.readouterr().err == ""
    assert reward(body) == [1.0, 1.0]
    assert "told" in capfd.readouterr().err
