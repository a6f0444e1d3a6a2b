"""When a reply is right, and how sure a gain is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from surogate.quickstart.score import gain, is_right


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (".no", ".no"),
        ("The code is .NO", ".no"),
        ("It is .no.", ".no"),
        ("They are called norwegian people.", "Norwegian"),
    ],
)
def test_an_answer_in_a_sentence_and_in_any_case_is_right(reply: str, expected: str):
    assert is_right(reply, expected)


@pytest.mark.parametrize(
    ("reply", "expected"), [(".nom", ".no"), ("Norway", ".no"), ("Omanic", "Oman"), ("", ".no"), ("a.no", ".no")]
)
def test_a_part_of_another_word_is_wrong(reply: str, expected: str):
    assert not is_right(reply, expected)


def test_the_gain_is_the_difference_of_the_shares():
    result = gain([True, False, False, False], [True, True, True, False], ["a", "b", "c", "d"])
    assert (result.before, result.after) == (0.25, 0.75)
    assert result.low <= 0.5 <= result.high


def test_the_interval_of_single_questions_agrees_with_the_normal_one():
    """With one question a group and many of them the bootstrap tends to the Wald interval for paired proportions."""
    rng = np.random.default_rng(0)
    before, after = rng.random(2000) < 0.3, rng.random(2000) < 0.5
    result = gain(before.tolist(), after.tolist(), [str(i) for i in range(2000)])
    difference = after.astype(float) - before.astype(float)
    half = 1.96 * difference.std() / math.sqrt(2000)
    assert result.low == pytest.approx(difference.mean() - half, abs=0.003)
    assert result.high == pytest.approx(difference.mean() + half, abs=0.003)


def test_questions_that_stand_or_fall_together_count_as_one():
    """Every question asked twice says nothing new, so the interval stays what it was."""
    before, after = [False] * 40, [i % 4 == 0 for i in range(40)]
    groups = [str(i) for i in range(40)]
    once = gain(before, after, groups)
    twice = gain(before * 2, after * 2, groups * 2)
    assert (twice.low, twice.high) == (once.low, once.high)


def test_no_change_is_no_gain():
    result = gain([True, False] * 20, [True, False] * 20, [str(i) for i in range(40)])
    assert (result.low, result.high) == (0.0, 0.0)
