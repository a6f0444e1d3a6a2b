from __future__ import annotations

import pytest

from surogate.config.parts_grpo import FilterSpec
from surogate.rl.filters import flagged
from surogate.rl.types import Rollout

REPETITION = FilterSpec(type="repetition", window=4, min_repeats=3)
GIBBERISH = FilterSpec(type="gibberish", span=2, logprob_threshold=-5.0)


def rollout(ids: list[int], logprobs: list[float] | None = None, sampled: list[bool] | None = None) -> Rollout:
    return Rollout(
        example_id="env/0",
        env="env",
        prompt_ids=[7, 7, 7, 7],
        completion_ids=ids,
        sampled=sampled or [True] * len(ids),
        logprobs=logprobs or [0.0] * len(ids),
        versions=[0] * len(ids),
        text="",
        reward=0.0,
    )


@pytest.mark.parametrize(
    "ids",
    [
        [1, 1, 1],
        [5, 1, 1, 1, 5],
        [1, 2, 1, 2, 1, 2],
        [9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 9],
        [1, 2, 3, 4] * 3,
        [9, 8, 1, 2, 1, 2, 1, 2],
    ],
)
def test_a_piece_that_stands_often_enough_in_a_row_is_found(ids: list[int]):
    assert flagged(rollout(ids), REPETITION)


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [1],
        [1, 1],
        [1, 1, 2, 1, 1],
        [1, 2, 1, 2, 1],
        [1, 2, 3, 4] * 2 + [1, 2, 3],
        [1, 2, 3, 4, 5] * 3,
        [1, 2, 3, 4],
    ],
)
def test_too_few_too_long_or_interrupted_repeats_are_not_found(ids: list[int]):
    assert not flagged(rollout(ids), REPETITION)


def test_repeats_are_counted_within_a_turn_of_the_policy_only():
    ids = [1, 1, 1, 1]
    assert flagged(rollout(ids), REPETITION)
    assert not flagged(rollout(ids, sampled=[True, True, False, True]), REPETITION)
    assert not flagged(rollout([1, 1, 1, 5], sampled=[False, False, False, True]), REPETITION)


def test_a_stretch_of_unlikely_tokens_is_found():
    assert flagged(rollout([1, 2, 3, 4], [0.0, -4.0, -6.1, 0.0]), GIBBERISH)
    assert not flagged(rollout([1, 2, 3, 4], [0.0, -4.0, -6.0, 0.0]), GIBBERISH)
    assert not flagged(rollout([1, 2, 3], [-9.0, 0.0, -9.0]), GIBBERISH)


def test_a_stretch_shorter_than_the_span_tells_nothing():
    assert not flagged(rollout([1], [-100.0]), GIBBERISH)
    assert not flagged(rollout([], []), GIBBERISH)


def test_what_the_environment_wrote_is_neither_unlikely_nor_joins_two_stretches():
    logprobs = [0.0, -9.0, 0.0, -9.0, 0.0]
    assert not flagged(rollout([1, 2, 3, 4, 5], logprobs, [True, True, False, True, True]), GIBBERISH)


def test_the_defaults_pass_an_ordinary_text_and_stop_an_endless_one():
    text = [hash(("token", i)) % 1000 for i in range(400)]
    assert not flagged(rollout(text), FilterSpec())
    assert flagged(rollout(text + [5, 6, 7] * 8), FilterSpec())
