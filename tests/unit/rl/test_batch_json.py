"""Rollouts go through JSON unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

from hypothesis import given
from hypothesis import strategies as st
from support.rollouts import make_rollout

from surogate.rl.batch_json import batch_from_json, batch_to_json, evaluation_from_json, evaluation_to_json
from surogate.rl.evaluation import EvalResult
from surogate.rl.types import Example, Group, RolloutBatch

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    logprobs=st.lists(FLOATS, min_size=1, max_size=5),
    reward=FLOATS,
    text=st.text(),
    prompt=st.one_of(st.text(), st.just([{"role": "user", "content": "\u2028 \U0001f600"}])),
)
def test_a_batch_is_the_same_after_json(logprobs, reward, text, prompt):
    rollout = make_rollout(sampled=[True] * len(logprobs), logprobs=logprobs, reward=reward, text=text)
    group = Group(example=Example(id="a/0", env="a", prompt=prompt), rollouts=(rollout, rollout), temperature=0.7)
    batch = RolloutBatch(step=3, groups=(group,), metrics={"m": reward}, ledger={"pool": {"owed": ["a/1"]}})
    assert batch_from_json(json.loads(json.dumps(batch_to_json(batch)))) == batch


def test_columns_of_any_kind_stay_behind():
    example = Example(id="a/0", env="a", prompt="", columns={"day": date(2024, 1, 1)})
    batch = RolloutBatch(step=0, groups=(Group(example=example, rollouts=()),))
    (group,) = batch_from_json(json.loads(json.dumps(batch_to_json(batch)))).groups
    assert group.example == replace(example, columns={})


def test_an_evaluation_is_the_same_after_json():
    result = EvalResult(
        version=2, metrics={"eval/a/reward": 0.1}, rollouts=[make_rollout(), make_rollout(metrics={"x": 1.0})]
    )
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(result)))) == result
