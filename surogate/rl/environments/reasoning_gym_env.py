"""Any task of reasoning-gym by its name: `reasoning-gym/<task>`, with the task's own configuration as arguments.

What is not here: the library, which is only ever imported in a worker (reasoning_gym_scoring.py): some of its tasks
evaluate what the model wrote, so scoring runs locked down. The one idea: the worker makes an entry from seed and index
whenever it needs it, and the question that was asked proves that it is the same entry.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from surogate.config.keys import nearest
from surogate.errors import ConfigError
from surogate.rl.child_process import usable_cpus
from surogate.rl.environments.arguments import read_arguments
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.environments.prompts import chat
from surogate.rl.rewards import MAX_PROCESSES, REPEATABLE, RewardWorker
from surogate.rl.types import Example

PREFIX = "reasoning-gym/"

_SCORING = "surogate.rl.environments.reasoning_gym_scoring"
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_SYSTEM_PROMPT = "Think about the problem, then give the final answer alone between <answer> and </answer>."


@dataclass(frozen=True, kw_only=True)
class ReasoningGymArgs:
    """Arguments of `reasoning-gym/<task>`, besides those of the task."""

    num_examples: PositiveInt = 1000
    """Entries of the task."""
    seed: int = 0
    """Which entries."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: the question is a user's message; plain: it is tokenised as it stands."""
    system_prompt: str | None = _SYSTEM_PROMPT
    """A first message before each question in chat."""
    timeout_seconds: PositiveFloat = 10.0
    """Longest time to score one completion; one that takes longer gets 0."""


class ReasoningGymEnvironment(SingleTurnEnvironment):
    """Asks the questions of a task; the reward is the task's own, often with partial credit.

    Args:
        name: in metrics.
        task: as reasoning-gym names it.
        args: those of ReasoningGymArgs and, by their own names, those of the task's configuration.

    Raises:
        ConfigError: reasoning-gym is not installed, there is no such task, or it refuses the configuration.
        HardwareError: this machine cannot isolate the scoring.
    """

    def __init__(self, name: str, task: str, args: Mapping[str, Any]) -> None:
        super().__init__(name)
        own = own_arguments(task, args)
        config = {key: value for key, value in args.items() if not hasattr(own, key)}
        self._args = own
        self._dataset = {"task": task, "config": config | {"size": own.num_examples, "seed": own.seed}}
        self._entries = _make(self._dataset, name)
        self._worker = RewardWorker(
            f"{_SCORING}:score",
            name,
            timeout_seconds=own.timeout_seconds,
            num_processes=min(usable_cpus(), MAX_PROCESSES),
            isolated=True,
        )

    def __len__(self) -> int:
        return len(self._entries)

    def example(self, index: int) -> Example:
        """Return an entry; see Environment.example."""
        question = self._entries[index]["question"]
        columns = {"index": index, **self._entries[index]}
        prompt = chat(question, self._args.system_prompt) if self._args.prompt == "chat" else question
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=prompt, columns=columns)

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Let the task score each answer; one that cannot be scored in time gets 0."""
        columns = {**{name: example.columns[name] for name in ("index", "question")}, "dataset": self._dataset}
        return await self._worker.score_each([answer_in(completion) for completion in completions], columns)

    def reference(self, example: Example) -> str | None:
        """Return the task's answer, where it has one."""
        answer = example.columns["answer"]
        return None if answer is None else f"<answer>{answer}</answer>"

    async def close(self) -> None:
        """End the process that scores."""
        await self._worker.close()


def own_arguments(task: str, args: Mapping[str, Any]) -> ReasoningGymArgs:
    """Return the arguments that are not the task's.

    Raises:
        ConfigError: one is of a wrong type.
    """
    own = {key: value for key, value in args.items() if key in ReasoningGymArgs.__dataclass_fields__}
    return read_arguments(ReasoningGymArgs, own, PREFIX + task)


def check_task(task: str) -> None:
    """Look a task up without importing the library.

    Raises:
        ConfigError: the library is not installed, or has no such task.
    """
    names = task_names()
    if task not in names:
        close = nearest(task, names)
        hint = f" Did you mean {PREFIX + close!r}?" if close else ""
        raise ConfigError(f"reasoning-gym has no task {task!r}.{hint} It has: {', '.join(names)}.")


@cache
def task_names() -> list[str]:
    """Read the names of all tasks from the library's files.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("reasoning-gym is not installed: `pip install 'surogate[reasoning-gym]'`.")
    files = [path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py")]
    found = {
        name
        for path in files
        for name in re.findall(r'^DATASET_NAME = "(\w+)"', path.read_text(encoding="utf-8"), re.M)
    }
    return sorted(found)


def answer_in(completion: str) -> str:
    """Return what stands in the last <answer>, or else the last line."""
    tagged = _TAGGED.findall(completion)
    if tagged:
        return str(tagged[-1]).strip()
    lines = completion.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _make(dataset: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Make the entries in a process of their own, where sets have the order that they have in the worker's."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", _SCORING],
        input=json.dumps(dataset),
        capture_output=True,
        env={**os.environ, **REPEATABLE},
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"environment {name!r}: reasoning-gym failed: {done.stderr.strip()[-600:]}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ConfigError(f"environment {name!r}: {answer['error']}")
    entries: list[dict[str, Any]] = answer["entries"]
    return entries
