from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from surogate.config.parts_grpo import EnvSpec
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.base import Environment, RewardError
from surogate.rl.environments.registry import build_environment


@pytest.fixture
def environment(tmp_path: Path):
    def make(reward: str, **args: object) -> Environment:
        (tmp_path / "reward.py").write_text(reward)
        rows = [{"prompt": "2 + 2", "answer": "4", "level": 1}, {"prompt": "2 + 3", "answer": "5", "level": 2}]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"path": str(tmp_path / "rows.jsonl"), **args}
        return build_environment(EnvSpec(id=f"{tmp_path}/reward.py:score", name="mine", args=values))

    return make


def rollouts(environment: Environment, index: int, *texts: str) -> list[tuple[str, float]]:
    async def run() -> list[tuple[str, float]]:
        try:
            made = await environment.rollouts(environment.example(index), len(texts), ScriptedPolicy(texts))
        finally:
            await environment.close()
        return [(rollout.text, rollout.reward) for rollout in made]

    return asyncio.run(run())


def test_completions_and_the_columns_of_the_row_reach_the_function(environment):
    reward = "def score(completions, answer, level, **rest):\n    assert rest == {'prompt': ['2 + 3'] * 2}, rest\n"
    reward += "    return [float(c == a) * n for c, a, n in zip(completions, answer, level)]"
    assert rollouts(environment(reward), 1, "5", "6") == [("5", 2.0), ("6", 0.0)]


def test_a_completion_ends_at_a_stop_text(environment):
    reward = "def score(completions, **_):\n    return [len(c) for c in completions]"
    assert rollouts(environment(reward, prompt="plain", stop=["\n"]), 0, "ab\ncd") == [("ab\n", 3.0)]


def test_the_reference_is_the_column_that_was_named(environment):
    mine = environment("def score(completions, **_): ...", reference_field="answer")
    assert mine.reference(mine.example(1)) == "5"
    mine = environment("def score(completions, **_): ...")
    assert mine.reference(mine.example(1)) is None


def test_what_the_function_raises_names_the_environment(environment):
    with pytest.raises(RewardError, match=r"mine: .*KeyError"):
        rollouts(environment("def score(completions, **columns):\n    return columns['gold']"), 0, "x")
