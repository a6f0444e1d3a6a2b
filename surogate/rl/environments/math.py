"""Mathematical problems whose answers are compared as mathematics, by math-verify: 1/2, 0.5 and \\frac{1}{2} are equal.

What is not here: the comparison, which runs in a process of its own (math_scoring.py). The one idea: the answer is what
stands in the last \\boxed{}, or else the last number.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from jsonargparse.typing import OpenUnitInterval, PositiveFloat

from surogate.errors import ConfigError, DataError
from surogate.rl.child_process import usable_cpus
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.environments.prompts import Prompt, PromptArgs, chat, read_prompts
from surogate.rl.environments.word_problems import word_problems
from surogate.rl.rewards import MAX_PROCESSES, RewardWorker
from surogate.rl.sandbox import isolation_support
from surogate.rl.types import Example

_SYSTEM_PROMPT = "Solve the problem step by step, and give the final answer in \\boxed{}."
_SOLVED = re.compile(r".*####\s*", re.DOTALL)
"""What stands before the answer in data such as GSM8K's."""
_NUM_BUILT_IN = 1000


@dataclass(frozen=True, kw_only=True)
class MathArgs(PromptArgs):
    """Arguments of `math`."""

    usual_system_prompt: ClassVar[str | None] = _SYSTEM_PROMPT

    answer_field: str = "answer"
    """Column with the answer: a number or LaTeX, perhaps after a solution and `####`."""
    built_in: Literal["train", "held_out"] = "train"
    """Without a path: which of two parts of simple word problems that have none in common."""
    held_out_fraction: OpenUnitInterval = 0.2
    """Without a path: share of the problems that is held out."""
    seed: int = 0
    """Without a path: which problems."""
    require_boxed: bool = False
    """Only what stands in \\boxed{} is an answer."""
    timeout_seconds: PositiveFloat = 5.0
    """Longest time to judge one completion; one that takes longer gets 0."""


class MathEnvironment(SingleTurnEnvironment):
    """Asks for the solution of a problem; 1 for an answer that equals the reference.

    Args:
        name: in metrics.
        args: the problems.

    Raises:
        ConfigError: math-verify is not installed.
        DataError: the problems cannot be read.
    """

    def __init__(self, name: str, args: MathArgs) -> None:
        super().__init__(name)
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(f"environment {name!r} needs math-verify: `pip install 'surogate[math]'`.")
        self._problems = _problems(args)
        self._require_boxed = args.require_boxed
        support = isolation_support()
        self._worker = RewardWorker(
            "surogate.rl.environments.math_scoring:score",
            name,
            timeout_seconds=args.timeout_seconds,
            num_processes=min(usable_cpus(), MAX_PROCESSES),
            isolated=support.landlock and support.seccomp,
        )

    def __len__(self) -> int:
        return len(self._problems)

    def example(self, index: int) -> Example:
        """Return a problem; see Environment.example."""
        problem = self._problems[index]
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=problem.prompt, columns=problem.columns)

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Compare each answer; one that cannot be judged in time is wrong."""
        has_answer = [not self._require_boxed or "\\boxed" in completion for completion in completions]
        judged = [completion for completion, has in zip(completions, has_answer, strict=True) if has]
        rewards = iter(await self._worker.score_each(judged, {"answer": example.columns["answer"]}))
        return [next(rewards) if has else 0.0 for has in has_answer]

    def reference(self, example: Example) -> str:
        """Return the answer in a box."""
        return f"The answer is \\boxed{{{example.columns['answer']}}}."

    async def close(self) -> None:
        """End the process that compares."""
        await self._worker.close()


def _problems(args: MathArgs) -> list[Prompt]:
    if args.path is None:
        count = args.num_examples or _NUM_BUILT_IN
        made = word_problems(count, args.seed, args.built_in, args.held_out_fraction)
        return [Prompt(chat(text, args.first_message), {"answer": str(answer)}) for text, answer in made]
    problems = read_prompts(args)
    for number, problem in enumerate(problems, start=1):
        answer = problem.columns.get(args.answer_field)
        if answer is None or not str(answer).strip():
            raise DataError(
                f"{args.path}: row {number} has no answer in {args.answer_field!r}; its columns are "
                f"{', '.join(problem.columns) or 'none besides the prompt'}. Set answer_field."
            )
        problem.columns["answer"] = _SOLVED.sub("", str(answer)).strip()
    return problems
