"""reasoning-gym itself: makes the entries of a task and scores answers; runs in processes of its own only.

    python -m surogate.rl.environments.reasoning_gym_scoring < dataset.json

prints the entries of a dataset, `{task, config}`, as JSON. As a reward, `score` runs in a worker that is locked down.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from functools import cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from surogate.foreign import ForeignCode


def score(completions: list[str], index: list[int], question: list[str], dataset: list[dict[str, Any]]) -> list[float]:
    """Return the task's score of each answer; an answer at which the task fails gets 0.

    Raises:
        ValueError: the entry is not the one that was asked.
    """
    rewards = []
    for answer, number, asked, spec in zip(completions, index, question, dataset, strict=True):
        task = _dataset(json.dumps(spec))
        entry = _entry(task, number)
        if entry["question"] != asked:
            raise ValueError(f"the task {spec['task']} does not make the same question twice from seed and index")
        value = 0.0
        with ForeignCode():
            value = float(task.score_answer(answer, entry))
        rewards.append(value)
    return rewards


def entries(spec: dict[str, Any]) -> dict[str, Any]:
    """Make the entries of a dataset; or say why there are none."""
    config_type = DATASETS[spec["task"]][1]
    known = [field.name for field in dataclasses.fields(config_type) if field.name not in ("seed", "size")]
    unknown = [name for name in spec["config"] if name not in (*known, "seed", "size")]
    if unknown:
        return {
            "error": f"{', '.join(map(repr, unknown))} is no argument of the task {spec['task']}. Allowed: "
            f"num_examples, seed, prompt, system_prompt, timeout_seconds, {', '.join(known)}."
        }
    with ForeignCode() as making:
        task = _dataset(json.dumps(spec))
        made = [_entry(task, number) for number in range(spec["config"]["size"])]
    if making.error is not None:
        return {"error": f"reasoning-gym refuses the arguments of the task {spec['task']}: {making.error}"}
    answers = [entry["answer"] for entry in made]
    return {
        "entries": [
            {"question": entry["question"], "answer": None if answer is None else str(answer)}
            for entry, answer in zip(made, answers, strict=True)
        ]
    }


def _entry(task: Any, number: int) -> dict[str, Any]:
    """Make an entry; a few tasks draw from the random numbers of the whole process too."""
    random.seed(number)
    entry: dict[str, Any] = task[number]
    return entry


@cache
def _dataset(spec: str) -> Any:
    read = json.loads(spec)
    return reasoning_gym.create_dataset(read["task"], **read["config"])


def main() -> None:
    """Read a dataset from standard input, and write its entries to standard output and nothing else."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(entries(json.load(sys.stdin)), output)
    output.close()


if __name__ == "__main__":
    main()
