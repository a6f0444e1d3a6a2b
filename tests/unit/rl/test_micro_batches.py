"""Micro-batches against a naive loop: every token that trains is there once, with what belongs to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rollouts import make_rollout

from surogate.errors import DataError
from surogate.rl.micro_batches import Layout, all_sampled, single_row, step_batch
from surogate.rl.types import Example, Group, RolloutBatch


def make_batch(groups, step=3):
    """Groups of (rollouts, temperature)."""
    example = Example(id="a/0", env="a", prompt="")
    made = tuple(Group(example=example, rollouts=tuple(rs), temperature=t) for rs, t in groups)
    return RolloutBatch(step=step, groups=made, metrics={"m": 1.0}, ledger={"at": step})


def layout(**values):
    given = {"sequence_len": 16, "rows": 2, "min_micro_batches": 1, "world_size": 1, "pad_token_id": 0}
    return Layout(**{**given, **values})


def tokens_of(micro_batch):
    """Give each supervised token as (id before it, its label, log-probability, advantage, temperature, version)."""
    ids, labels = micro_batch.input_ids_BT.flatten(), micro_batch.labels_BT.flatten()
    columns = (
        ids[micro_batch.loss_positions],
        labels[micro_batch.loss_positions],
        micro_batch.generator_logprobs_N,
        micro_batch.advantages_N,
        micro_batch.temperatures_N,
        micro_batch.versions_N,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


def expected_tokens(batch, keeps_all):
    """The same of the rollouts, one token after the other."""
    for group in batch.groups:
        for rollout in group.rollouts:
            ids = rollout.prompt_ids + rollout.completion_ids
            if not rollout.trains or not (keeps_all or rollout.advantage):
                continue
            for place, is_sampled in enumerate(rollout.sampled):
                if is_sampled:
                    at = len(rollout.prompt_ids) + place
                    numbers = [rollout.logprobs[place], rollout.advantage, group.temperature]
                    rounded = torch.tensor(numbers, dtype=torch.float32).tolist()
                    yield ids[at - 1], ids[at], *rounded, rollout.versions[place]


@st.composite
def batches(draw):
    groups, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        rollouts = []
        for _ in range(draw(st.integers(2, 4))):
            prompt_len = draw(st.integers(1, 6))
            sampled = draw(st.lists(st.booleans(), max_size=10))
            advantage = draw(st.sampled_from([0.0, 0.5, -1.25]))
            values = {"advantage": advantage, "trains": draw(st.booleans())}
            rollouts.append(make_rollout(prompt_len, sampled, start, **values))
            start += 16
        groups.append((rollouts, draw(st.sampled_from([1.0, 0.7]))))
    return make_batch(groups)


@settings(max_examples=300, deadline=None)
@given(
    batch=batches(),
    world_size=st.integers(1, 4),
    rows=st.integers(1, 3),
    min_micro_batches=st.integers(1, 4),
    sequence_len=st.integers(16, 40),
    keeps_all=st.booleans(),
)
def test_every_token_that_trains_is_on_one_rank_once(
    batch, world_size, rows, min_micro_batches, sequence_len, keeps_all
):
    spec = layout(world_size=world_size, rows=rows, min_micro_batches=min_micro_batches, sequence_len=sequence_len)
    steps = [step_batch(batch, spec, rank, keeps_all=keeps_all) for rank in range(world_size)]
    micros = [micro for step in steps for micro in step.micro_batches]

    assert Counter(t for micro in micros for t in tokens_of(micro)) == Counter(expected_tokens(batch, keeps_all))
    assert len({len(step.micro_batches) for step in steps}) == 1
    assert len(steps[0].micro_batches) >= min_micro_batches
    for micro in micros:
        assert micro.input_ids_BT.shape[0] <= rows and micro.input_ids_BT.shape[1] <= sequence_len
        assert micro.num_loss_tokens == len(micro.sequence_ids_N) == len(micro.versions_N)
        if micro.num_sequences:
            assert micro.sequence_ids_N.unique().tolist() == list(range(micro.num_sequences))
    assert 0 <= steps[0].packing_efficiency <= 1

    counted = [r for r in batch.rollouts if r.trains and r.num_sampled]
    totals = {"tokens": sum(r.num_sampled for r in counted), "sequences": len(counted)}
    for name, total in totals.items():
        assert sum(step.normalisers[name] for step in steps) == pytest.approx(total)


def test_tokens_of_a_rollout_share_its_sequence_id():
    rollouts = [make_rollout(start=100 * i, sampled=[True] * (i + 1), advantage=1.0) for i in range(4)]
    (micro,) = step_batch(make_batch([(rollouts, 1.0)]), layout(), 0, keeps_all=False).micro_batches
    of_sequence = {}
    for token, sequence in zip(tokens_of(micro), micro.sequence_ids_N.tolist(), strict=True):
        of_sequence.setdefault(sequence, set()).add(token[1] // 100)
    assert sorted(map(tuple, of_sequence.values())) == [(0,), (1,), (2,), (3,)]


def test_a_document_is_attended_to_alone():
    rollouts = [make_rollout(3, [True] * 2, start, advantage=1.0) for start in (0, 20, 40)]
    (micro,) = step_batch(make_batch([(rollouts, 1.0)]), layout(), 0, keeps_all=False).micro_batches
    assert micro.position_ids_BT[0, :15].tolist() == [0, 1, 2, 3, 4] * 3
    assert micro.cu_seqlens.tolist() == [0, 5, 10, 15]


def test_rollouts_that_teach_nothing_count_and_cost_nothing():
    taught = make_rollout(advantage=1.0)
    batch = make_batch([([taught, make_rollout(start=20), make_rollout(start=40, trains=False)], 1.0)])
    step = step_batch(batch, layout(), 0, keeps_all=False)
    assert step.num_loss_tokens == 2
    assert step.normalisers == {"tokens": 4.0, "sequences": 2.0}
    assert step_batch(batch, layout(), 0, keeps_all=True).num_loss_tokens == 4


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_step_that_teaches_nothing_still_has_a_micro_batch_for_each_rank(world_size):
    batch = make_batch([([make_rollout(), make_rollout()], 1.0)])
    for rank in range(world_size):
        (micro,) = step_batch(batch, layout(world_size=world_size), rank, keeps_all=False).micro_batches
        assert micro.input_ids_BT.shape == (1, 1) and micro.num_sequences == 0
        for vector in (micro.generator_logprobs_N, micro.advantages_N, micro.temperatures_N, micro.versions_N):
            assert vector.shape == (0,)
        assert micro.generator_logprobs_N.dtype == torch.float32 and micro.versions_N.dtype == torch.int64


def test_a_step_carries_what_belongs_to_the_whole_of_it():
    batch = make_batch([([make_rollout(advantage=1.0), make_rollout(start=9)], 1.0)])
    step = step_batch(batch, layout(world_size=2), 1, keeps_all=True)
    assert (step.step, step.ledger, step.rollout_metrics, step.batch) == (3, {"at": 3}, {"m": 1.0}, batch)
    moved = step.to("cpu")
    assert type(moved) is type(step) and moved.num_loss_tokens == step.num_loss_tokens


def test_tokens_are_spread_evenly_over_the_ranks():
    rollouts = [make_rollout(1, [True] * size, 20 * size, advantage=1.0) for size in (15, 14, 13, 3, 2, 1)]
    batch = make_batch([(rollouts, 1.0)])
    loads = [step_batch(batch, layout(world_size=2, rows=4), rank, keeps_all=True).num_tokens for rank in range(2)]
    assert abs(loads[0] - loads[1]) <= 8 and sum(loads) == sum(size + 1 for size in (15, 14, 13, 3, 2, 1))


def test_a_rollout_longer_than_a_row_is_named():
    batch = make_batch([([make_rollout(10, [True] * 7, advantage=1.0), make_rollout()], 1.0)])
    with pytest.raises(DataError, match=r"a/0 has 17 tokens, .* sequence_len 16\. Raise sequence_len"):
        step_batch(batch, layout(), 0, keeps_all=False)
    assert step_batch(batch, layout(sequence_len=17), 0, keeps_all=False).num_loss_tokens == 7


def test_one_rollout_alone_is_scored_in_order():
    row = single_row(make_rollout(3, [True, False, True], 10), 0.5, 0)
    assert [token[:2] for token in tokens_of(row)] == [(12, 13), (14, 15)]
    assert row.temperatures_N.tolist() == [0.5, 0.5]


def test_a_rollout_scored_whole_has_every_token_but_the_first():
    whole = all_sampled(replace(make_rollout(3, [True, False], 10), trains=False))
    row = single_row(whole, 1.0, 0)
    assert row.input_ids_BT.tolist() == [[10, 11, 12, 13, 14]]
    assert [token[1] for token in tokens_of(row)] == [11, 12, 13, 14]
