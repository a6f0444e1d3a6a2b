"""Programming problems with unit tests: the reward is the share of tests that pass, in a sandbox.

What is not here: isolation and what a verdict is worth (rl/sandbox.py), and the built-in problems (code_problems.py).
The one idea: a solution is the last fenced block of code in a completion, and its tests never run in its interpreter.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from surogate.errors import DataError
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.environments.code_problems import PROBLEMS
from surogate.rl.environments.prompts import Prompt, PromptArgs, chat, read_prompts
from surogate.rl.isolation.lockdown import Bounds
from surogate.rl.sandbox import Sandbox
from surogate.rl.types import Example

_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SYSTEM_PROMPT = "Write Python. Reply with one fenced block of code that defines what is asked for, and nothing else."


@dataclass(frozen=True, kw_only=True)
class CodeArgs(PromptArgs):
    """Arguments of `code`."""

    usual_system_prompt: ClassVar[str | None] = _SYSTEM_PROMPT

    tests_field: str = "tests"
    """Column with the tests: statements with asserts, as one text or a list; or a list of {input, output} for a
    program that reads standard input."""
    functions_field: str = "functions"
    """Column, if there is one, with the functions that tests mean even where Python has one of that name."""
    reference_field: str = "solution"
    """Column, if there is one, with a right solution, for `surogate env-check`."""
    reward: Literal["share", "all"] = "share"
    """share: of tests that pass; all: 1 only where all pass."""
    wall_seconds: PositiveFloat = 10.0
    """Longest time of all tests of a solution."""
    cpu_seconds: PositiveInt = 5
    """Most CPU time of a solution."""
    memory_mib: PositiveInt = 512
    """Most memory of a solution."""
    max_parallel: PositiveInt | None = None
    """Solutions that are tested at a time. Default: one a CPU."""


class CodeEnvironment(SingleTurnEnvironment):
    """Asks for a program or functions and tests them.

    Args:
        name: in metrics.
        args: the problems, and what a solution may use.

    Raises:
        HardwareError: this machine cannot isolate a process.
        DataError: the problems cannot be read, or have no tests.
    """

    def __init__(self, name: str, args: CodeArgs) -> None:
        super().__init__(name)
        self._sandbox = Sandbox(
            Bounds(cpu_seconds=args.cpu_seconds, memory_bytes=args.memory_mib << 20),
            wall_seconds=args.wall_seconds,
            max_parallel=args.max_parallel,
        )
        self._all_or_nothing = args.reward == "all"
        self._problems = _problems(args)

    def __len__(self) -> int:
        return len(self._problems)

    def example(self, index: int) -> Example:
        """Return a problem; see Environment.example."""
        problem = self._problems[index]
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=problem.prompt, columns=problem.columns)

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Test each solution; no code earns nothing."""
        shares = await asyncio.gather(*(self._share(completion, example.columns) for completion in completions))
        return [float(share == 1.0) if self._all_or_nothing else share for share in shares]

    def reference(self, example: Example) -> str | None:
        """Return the right solution in a block."""
        solution = example.columns["solution"]
        return None if solution is None else f"```python\n{solution}\n```"

    async def _share(self, completion: str, columns: dict[str, Any]) -> float:
        code = solution_in(completion)
        if not code.strip():
            return 0.0
        if columns["cases"]:
            return await self._share_of_cases(code, columns["cases"])
        return (await self._sandbox.run_tests(code, columns["tests"], columns["functions"])).share

    async def _share_of_cases(self, code: str, cases: Sequence[dict[str, str]]) -> float:
        """Run a program once a case; those that are left when the time of all of them is over fail."""
        left, num_passed = self._sandbox.wall_seconds, 0
        for case in cases:
            result = await self._sandbox.run_program(code, case["input"], left)
            is_right = _lines(result.output) == _lines(case["output"])
            num_passed += result.ending == "exit" and result.exit_code == 0 and is_right
            left -= result.seconds
            if left <= 0:
                break
        return num_passed / len(cases)


def solution_in(completion: str) -> str:
    """Return the last fenced block of a completion, or all of it where it has none."""
    blocks = _BLOCK.findall(completion)
    return str(blocks[-1]) if blocks else completion


def split_tests(source: str) -> list[str]:
    """Cut a text of statements into tests: each ends with an assert, and has what stands before it since the last.

    Raises:
        SyntaxError: it is no Python.
    """
    tests: list[str] = []
    pending: list[str] = []
    for statement in ast.parse(source).body:
        pending.append(ast.unparse(statement))
        if isinstance(statement, ast.Assert):
            tests.append("\n".join(pending))
            pending = []
    return tests + (["\n".join(pending)] if pending else [])


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.strip().splitlines()]


def _problems(args: CodeArgs) -> list[Prompt]:
    if args.path is None:
        built_in = [
            Prompt(chat(text, args.first_message), {"tests": tests, "solution": solution})
            for text, tests, solution in PROBLEMS
        ]
        return [_with_tests(problem, CodeArgs(), "the built-in problems") for problem in built_in[: args.num_examples]]
    return [
        _with_tests(problem, args, f"{args.path}: row {number}")
        for number, problem in enumerate(read_prompts(args), start=1)
    ]


def _with_tests(problem: Prompt, args: CodeArgs, origin: str) -> Prompt:
    """Replace a problem's columns by tests, cases, functions and solution."""
    given = problem.columns.get(args.tests_field)
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise DataError(f"{origin}: {args.tests_field} is broken JSON: {error}.") from error
    cases: list[dict[str, str]] = []
    tests: list[str] = []
    try:
        if isinstance(given, str) and given.strip():
            tests = split_tests(given)
        elif isinstance(given, Sequence) and given and all(isinstance(test, str) for test in given):
            tests = list(given)
            for test in tests:
                compile(test, "<test>", "exec")
        elif isinstance(given, Sequence) and given and all(_is_case(case) for case in given):
            cases = [{"input": case["input"], "output": case["output"]} for case in given]
    except SyntaxError as error:
        raise DataError(f"{origin}: a test in {args.tests_field} is not Python: {error}.") from error
    if not tests and not cases:
        raise DataError(
            f"{origin}: {args.tests_field} must hold tests: asserts as a text or a list of texts, or a list of "
            f"{{input, output}}. It is {str(given)[:80]!r}. Set tests_field to the column that does."
        )
    columns = {
        "tests": tests,
        "cases": cases,
        "functions": list(problem.columns.get(args.functions_field) or []),
        "solution": problem.columns.get(args.reference_field),
    }
    return Prompt(problem.prompt, columns)


def _is_case(case: Any) -> bool:
    return isinstance(case, dict) and all(isinstance(case.get(key), str) for key in ("input", "output"))
