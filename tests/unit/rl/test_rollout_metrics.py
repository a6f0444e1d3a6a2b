"""Numbers for the log, against a batch whose values are worked out by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.rollouts import make_rollout

from surogate.rl.rollout_metrics import RolloutTally, batch_metrics
from surogate.rl.types import Example, Group


def group(env, *rollouts):
    return Group(example=Example(id=f"{env}/0", env=env, prompt=""), rollouts=rollouts)


def test_a_batch_is_described():
    first = make_rollout(reward=1.0, advantage=0.5, versions=[3, 4], metrics={"turns": 2.0})
    second = make_rollout(reward=0.0, advantage=-0.5, versions=[4, 4], is_truncated=True, metrics={"turns": 4.0})
    third = make_rollout(sampled=[True, False, True, True], env="b", reward=2.0, versions=[4, -1, 4, 4], trains=False)
    metrics = batch_metrics([group("a", first, second), group("b", third, third)], step=4)
    assert metrics == pytest.approx(
        {
            "reward/mean": 1.25,
            "reward/std": 0.82916,
            "reward/min": 0.0,
            "reward/max": 2.0,
            "reward/a/mean": 0.5,
            "reward/b/mean": 2.0,
            "env/a/turns": 3.0,
            "advantage/std": 0.353553,
            "advantage/mean_absolute": 0.25,
            "advantage/max": 0.5,
            "groups/without_signal": 0.5,
            "completion/mean_len": 2.5,
            "completion/max_len": 3,
            "completion/truncated": 0.25,
            "completion/filtered": 0.5,
            "staleness/mean": 0.1,
            "staleness/max": 1,
        },
        abs=1e-5,
    )


def test_a_batch_without_a_sampled_token_is_described_too():
    silent = make_rollout(sampled=[])
    metrics = batch_metrics([group("a", silent, silent)], step=1)
    assert metrics["staleness/max"] == 0 and metrics["completion/mean_len"] == 0


def test_the_time_of_a_batch_is_that_of_its_groups_where_all_know_it():
    first, second = (replace(group("a", make_rollout(), make_rollout()), began=b, ended=b + 3) for b in (10.0, 11.0))
    metrics = batch_metrics([first, second], step=1)
    assert (metrics["clock/generate_began"], metrics["clock/generate_ended"]) == (10.0, 14.0)
    assert "clock/generate_began" not in batch_metrics([first, replace(second, ended=0.0)], step=1)


def test_a_tally_starts_anew_after_each_batch():
    tally = RolloutTally()
    tally.sampling_clock.answer(30)
    tally.sampling_clock.answer(12)
    tally.count("rewards/failed", 2)
    first, second = tally.take(), tally.take()
    assert (first["tokens/generated"], first["rewards/failed"]) == (42, 2)
    assert (second["tokens/generated"], second["rewards/failed"]) == (0, 0)


def test_overlapping_activities_are_timed_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("surogate.rl.clocks.time.perf_counter", lambda: now[0])

    async def run():
        tally = RolloutTally()
        with tally.scoring_clock.running():
            with tally.sampling_clock.running():
                now[0] = 1.0
                with tally.sampling_clock.running():
                    now[0] = 3.0
            now[0] = 4.0
            times = tally.take()
            assert (times["time/generate"], times["time/score"]) == (3.0, 1.0)
            now[0] = 6.0
        now[0] = 100.0
        times = tally.take()
        assert (times["time/generate"], times["time/score"]) == (0.0, 2.0)

    asyncio.run(run())


def test_a_rate_is_of_answers_and_the_time_between_them_though_sampling_goes_on(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("surogate.rl.clocks.time.perf_counter", lambda: now[0])
    tally = RolloutTally()
    with tally.sampling_clock.running():
        for answered_after, asked_after in ((4.0, 6.0), (8.0, 9.0)):  # the rest of the time has no tokens yet
            now[0] = answered_after
            tally.sampling_clock.answer(10)
            now[0] = asked_after
            assert tally.take()["speed/generated_tokens_per_second"] == 2.5
        assert tally.take()["speed/generated_tokens_per_second"] == 0
