from __future__ import annotations

import asyncio

import numpy as np
import pytest

from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.base import RewardError, SingleTurnEnvironment, checked_rewards
from surogate.rl.types import Completion, Example


class Lengths(SingleTurnEnvironment):
    """Rewards the length of an answer."""

    stop = ("!",)

    def __len__(self) -> int:
        return 1

    def example(self, index: int) -> Example:
        return Example(id="lengths/0", env="lengths", prompt="say")

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        return [float(len(completion)) for completion in completions]


def test_a_rollout_carries_the_sampled_tokens_as_they_were():
    rollouts = asyncio.run(Lengths("lengths").rollouts(Lengths("lengths").example(0), 2, ScriptedPolicy(["ab!c", "d"])))
    first = rollouts[0]
    assert first.prompt_ids == list(map(ord, "say"))
    assert first.completion_ids == list(map(ord, "ab!"))
    assert first.sampled == [True] * 3 and first.versions == [0] * 3 and first.logprobs == [0.0] * 3
    assert [rollout.reward for rollout in rollouts] == [3.0, 1.0]
    assert not first.is_truncated


def test_a_completion_that_ran_out_of_room_is_truncated():
    class Long(ScriptedPolicy):
        async def sample(self, prompt_ids, n, stop=()):
            return [Completion(token_ids=[65], logprobs=[-1.0], versions=[3], finish_reason="length")] * n

    (rollout,) = asyncio.run(Lengths("lengths").rollouts(Lengths("lengths").example(0), 1, Long(["x"])))
    assert rollout.is_truncated
    assert rollout.oldest_version == 3


@pytest.mark.parametrize("rewards", [[1.0, True, 3], (0, 0, 0), [np.float64(0.5)] * 3])
def test_numbers_pass(rewards: object):
    assert checked_rewards(rewards, ["a", "b", "c"], "env") == [float(value) for value in rewards]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "a list of 3 numbers, and returned 1 of them"),
        (None, "a NoneType"),
        ("abc", "a str|3 of them"),
        ([1.0, float("nan"), 2.0], "nan"),
        ([1.0, float("inf"), 2.0], "inf"),
        ([1.0, "2", 2.0], "'2'"),
        ([1.0, None, 2.0], "None"),
        ([1.0, 10**5000, 2.0], "beyond all floats"),
    ],
)
def test_anything_else_is_refused(rewards: object, message: str):
    with pytest.raises(RewardError, match=message):
        checked_rewards(rewards, ["a", "b", "c"], "env")
