from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from surogate.errors import DataError
from surogate.rl.environments.code import CodeArgs, CodeEnvironment, solution_in, split_tests
from surogate.rl.environments.code_problems import PROBLEMS
from surogate.rl.sandbox import ProgramResult


@pytest.fixture
def problem(tmp_path: Path):
    def make(tests: object, columns: dict | None = None, **args: object) -> CodeEnvironment:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "Write it.", "tests": tests, **(columns or {})}) + "\n")
        return CodeEnvironment("code", CodeArgs(path=str(path), **args))

    return make


def score(environment: CodeEnvironment, *completions: str, index: int = 0) -> list[float]:
    return asyncio.run(environment.rewards(list(completions), environment.example(index)))


def test_every_built_in_solution_passes_its_tests_and_nothing_else_does():
    environment = CodeEnvironment("code", CodeArgs())
    assert len(environment) == len(PROBLEMS)
    for index in range(len(environment)):
        reference = environment.reference(environment.example(index))
        assert score(environment, reference, "I don't know.", "", index=index) == [1.0, 0.0, 0.0]


def test_the_reward_is_the_share_of_tests_or_all_of_them(problem):
    tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 9"]
    completion = "Here:\n```python\ndef f(x):\n    return x\n```\nDone."
    assert score(problem(tests), completion) == [pytest.approx(2 / 3)]
    assert score(problem(tests, reward="all"), completion) == [0.0]


def test_programs_are_judged_by_what_they_print(problem):
    tests = [{"input": "2 3\n", "output": "5"}, {"input": "-1 1", "output": "0\n"}]
    right = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert score(problem(tests), right, "```python\nprint(5)\n```", "```python\nprint(5)\n1 / 0\n```") == [
        1.0,
        0.5,
        0.0,
    ]


def test_tests_may_be_a_text_or_json(problem):
    completion = "```\ndef f(x):\n    return x\n```"
    assert score(problem("x = 1\nassert f(x) == 1\nassert f(2) == 3"), completion) == [0.5]
    assert score(problem(json.dumps(["assert f(1) == 1"])), completion) == [1.0]


def test_the_time_of_a_solution_is_that_of_all_its_cases(problem):
    environment = problem([{"input": str(place), "output": "1"} for place in range(4)], wall_seconds=10.0)
    given = []

    async def run_program(code, stdin, wall_seconds):
        given.append(wall_seconds)
        return ProgramResult("1", "exit", 0, 4.0)

    environment._sandbox.run_program = run_program
    assert score(environment, "```\nprint(1)\n```") == [0.75]
    assert given == [10.0, 6.0, 2.0]


def test_a_function_named_like_one_of_pythons_is_meant_where_the_data_says_so(problem):
    completion = "```python\ndef max(a, b):\n    return a\n```"
    tests = ["assert max(1, 2) == 1"]
    assert score(problem(tests, {"functions": ["max"]}), completion) == [1.0]
    assert score(problem(tests), completion) == [0.0]


@pytest.mark.parametrize(
    "attack",
    ["while True: pass", "import os\nos._exit(0)", "x = 'a' * (1 << 40)", "import os\nos.kill(os.getppid(), 9)"],
)
def test_a_hostile_completion_earns_nothing_and_stops_nobody(problem, attack: str):
    environment = problem(["assert f(1) == 1"], wall_seconds=3.0, cpu_seconds=1)
    good = "```python\ndef f(x):\n    return x\n```"
    assert score(environment, f"```python\n{attack}\n```", good) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("a\n```python\none\n```\nb\n```py\ntwo\n```", "two\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```Python\nx = 1", "x = 1"),
        ("def f(): pass", "def f(): pass"),
        ("", ""),
    ],
)
def test_the_solution_is_the_last_block(completion: str, code: str):
    assert solution_in(completion) == code


def test_a_text_of_tests_is_cut_after_each_assert():
    source = "a = 1\nassert f(a)\nfor i in range(2):\n    assert f(i)\nassert g()\nb = 2"
    assert split_tests(source) == [
        "a = 1\nassert f(a)",
        "for i in range(2):\n    assert f(i)\nassert g()",
        "b = 2",
    ]


@pytest.mark.parametrize("tests", [None, "", [], [1], [{"input": "x"}], {"a": 1}])
def test_a_problem_without_tests_is_refused_with_its_row(problem, tests: object):
    with pytest.raises(DataError, match="row 1: tests must hold tests"):
        problem(tests)


@pytest.mark.parametrize("tests", ["assert f(", ["assert f("], "[1, "])
def test_tests_that_are_broken_are_refused_with_their_row(problem, tests: object):
    with pytest.raises(DataError, match=r"row 1: .*(not Python|broken JSON)"):
        problem(tests)
