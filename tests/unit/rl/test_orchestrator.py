"""Batches: what may be started when, which policy sampled it, and that each prompt is trained on once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from support.rollouts import GatedGenerator, ListedEnvironment, make_orchestrator, update

from surogate.config.parts_grpo import AdvantageSpec, BufferSpec, FilterSpec, SamplingSpec

PAUSE = 200
"""Turns of the event loop in which everything that can go on does."""


async def turns(count=PAUSE):
    for _ in range(count):
        await asyncio.sleep(0)


async def run_steps(orchestrator, first, last):
    """Train: a batch, then the next version, as a trainer does."""
    batches = []
    for step in range(first, last):
        batches.append(await orchestrator.next_batch(step))
        await orchestrator.load_weights(update(step + 1))
    return batches


def ids(batch):
    return [group.example.id for group in batch.groups]


def versions(batch):
    return {version for rollout in batch.rollouts for version in rollout.versions}


# ---- level 0


def test_on_policy_every_token_is_of_the_version_that_trains_on_it():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, num_groups=3, oversampling_factor=2.0)
        await orchestrator.load_weights(update(0))
        for batch in await run_steps(orchestrator, 0, 4):
            assert versions(batch) == {batch.step}
            assert len(batch.groups) == 3 and len(batch.rollouts) == 6
            assert batch.metrics["staleness/max"] == 0
        await orchestrator.close()

    asyncio.run(run())


def test_nothing_is_started_before_weights_are_loaded():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator)
        await orchestrator.reset(None)
        await turns()
        assert not generator.begun
        loading = asyncio.Event()
        load = generator.load_weights

        async def slow_load(weights):
            await loading.wait()
            await load(weights)

        generator.load_weights = slow_load
        task = asyncio.create_task(orchestrator.load_weights(update(0)))
        await turns()
        assert not generator.begun
        loading.set()
        await task
        await turns()
        assert {version for _, version in generator.begun} == {0}
        await orchestrator.close()

    asyncio.run(run())


def test_on_policy_the_engine_sleeps_while_the_trainer_works():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator)
        await orchestrator.load_weights(update(0))
        await orchestrator.next_batch(0)
        begun = len(generator.begun)
        await turns()
        assert generator.is_asleep and len(generator.begun) == begun
        await orchestrator.load_weights(update(1))
        await turns()
        assert not generator.is_asleep and len(generator.begun) > begun
        await orchestrator.close()

    asyncio.run(run())


def test_what_was_started_too_much_is_given_up_before_the_engine_sleeps():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, num_groups=2, oversampling_factor=2.0)
        await orchestrator.load_weights(update(0))
        started = [started.example.id for started in orchestrator._in_flight.values()]
        generator.gates |= {name: asyncio.Event() for name in started[1:3]}
        batch = await orchestrator.next_batch(0)
        assert ids(batch) == [started[0], started[3]]
        assert generator.num_cancelled == 2 and not orchestrator._in_flight
        generator.gates.clear()
        await orchestrator.load_weights(update(1))
        assert set(ids(await orchestrator.next_batch(1))) == set(started[1:3])
        await orchestrator.close()

    asyncio.run(run())


def test_the_same_seed_makes_the_same_batches():
    async def run(seed):
        generator = GatedGenerator(script=None)
        orchestrator = make_orchestrator(generator, num_groups=3, seed=seed)
        await orchestrator.load_weights(update(0))
        batches = await run_steps(orchestrator, 0, 4)
        await orchestrator.close()
        return [batch.groups for batch in batches]

    first = asyncio.run(run(5))
    assert asyncio.run(run(5)) == first
    assert asyncio.run(run(6)) != first
    completions = [tuple(rollout.completion_ids) for groups in first for g in groups for rollout in g.rollouts]
    assert len(set(completions)) > len(completions) / 2  # groups do not draw alike


def test_an_on_policy_run_that_is_resumed_goes_on_as_if_it_had_never_stopped():
    async def run():
        orchestrator = make_orchestrator(GatedGenerator(script=None), num_groups=3)
        await orchestrator.load_weights(update(0))
        batches = await run_steps(orchestrator, 0, 6)
        await orchestrator.close()
        resumed = make_orchestrator(GatedGenerator(script=None), num_groups=3)
        await resumed.reset(json.loads(json.dumps(batches[2].ledger)))
        await resumed.load_weights(update(3))
        again = await run_steps(resumed, 3, 6)
        await resumed.close()
        assert [batch.groups for batch in again] == [batch.groups for batch in batches[3:]]

    asyncio.run(run())


# ---- ahead of training


@pytest.mark.parametrize("level", [1, 2, 3])
def test_generation_is_never_further_ahead_than_asked(level):
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, level, environments=[ListedEnvironment("a", 500)])
        await orchestrator.load_weights(update(0))
        for step in range(8):
            await turns()
            untrained = len(orchestrator._finished) + len(orchestrator._in_flight)
            assert untrained == (level + 1) * orchestrator.groups_per_step
            batch = await orchestrator.next_batch(step)
            assert all(step - level <= version <= step for version in versions(batch))
            await turns()
            # While step trains, the engine holds version `step`, and batches step + 1 ... step + level may exist.
            assert len(orchestrator._finished) == level * orchestrator.groups_per_step
            await orchestrator.load_weights(update(step + 1))
        assert batch.metrics["staleness/max"] == level
        await orchestrator.close()

    asyncio.run(run())


def test_rollouts_are_made_while_the_trainer_works():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1)
        await orchestrator.load_weights(update(0))
        later = [started.example.id for started in orchestrator._in_flight.values()][2:]
        gate = asyncio.Event()
        generator.gates |= dict.fromkeys(later, gate)
        await orchestrator.next_batch(0)
        assert generator.num_running == 4 and not orchestrator._finished
        gate.set()
        await turns()  # the trainer's step
        assert [finished.group.example.id for finished in orchestrator._finished] == later
        assert {version for _, version in generator.begun} == {0}
        await orchestrator.close()

    asyncio.run(run())


def test_a_rollout_carries_the_version_of_each_token_across_an_update():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1, num_groups=1)
        gate = generator.gates["all"] = asyncio.Event()
        await orchestrator.load_weights(update(0))
        await turns()
        await orchestrator.load_weights(update(1))
        gate.set()
        batch = await orchestrator.next_batch(1)
        assert all(rollout.versions == [0, 1] for rollout in batch.rollouts)
        assert batch.metrics["staleness/mean"] == 0.5
        await orchestrator.close()

    asyncio.run(run())


def test_finished_rollouts_that_are_too_old_are_thrown_away_and_their_prompts_asked_again():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1, num_groups=1, max_off_policy_steps=1)
        await orchestrator.load_weights(update(0))
        await turns()
        old = [finished.group.example.id for finished in orchestrator._finished]
        assert len(old) == 2
        await orchestrator.load_weights(update(2))
        batch = await orchestrator.next_batch(2)
        assert versions(batch) == {2}
        assert set(ids(batch)) <= set(old) and batch.metrics["rollouts/too_old"] == 4
        await orchestrator.close()

    asyncio.run(run())


def test_running_rollouts_that_would_be_too_old_are_cancelled():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1, num_groups=1, max_off_policy_steps=1)
        generator.gates["all"] = asyncio.Event()
        await orchestrator.load_weights(update(0))
        await turns()
        owed = sorted(started.example.id for started in orchestrator._in_flight.values())
        del generator.gates["all"]
        await orchestrator.load_weights(update(2))
        await turns()
        assert generator.num_cancelled == 2 and not generator.num_running
        batch = await orchestrator.next_batch(2)
        assert set(ids(batch)) <= set(owed) and versions(batch) == {2}
        assert batch.metrics["rollouts/too_old"] == 4
        await orchestrator.close()

    asyncio.run(run())


def test_a_step_does_not_wait_for_the_slowest_group_when_more_are_started():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1, num_groups=2, oversampling_factor=1.5)
        await orchestrator.load_weights(update(0))
        assert len(orchestrator._in_flight) == 5
        slow = next(iter(orchestrator._in_flight.values())).example.id
        gate = generator.gates[slow] = asyncio.Event()
        assert slow not in ids(await orchestrator.next_batch(0))
        gate.set()
        await turns()
        await orchestrator.load_weights(update(1))
        assert ids(await orchestrator.next_batch(1))[0] == slow
        await orchestrator.close()

    asyncio.run(run())


# ---- what is left out


def flat(texts, example):
    return [1.0] * len(texts)


def test_groups_without_signal_train_unless_they_are_filtered():
    async def run():
        orchestrator = make_orchestrator(GatedGenerator(), environments=[ListedEnvironment("a", 5, flat)])
        await orchestrator.load_weights(update(0))
        batch = await orchestrator.next_batch(0)
        assert batch.metrics["groups/without_signal"] == 1.0
        assert all(rollout.advantage == 0 for rollout in batch.rollouts)
        await orchestrator.close()

    asyncio.run(run())


def test_groups_without_signal_are_replaced_by_others():
    def score(texts, example):
        return flat(texts, example) if int(example.id[2:]) % 2 else [0.0, 1.0]

    async def run():
        orchestrator = make_orchestrator(
            GatedGenerator(),
            environments=[ListedEnvironment("a", 8, score)],
            buffer=BufferSpec(online_difficulty_filtering=True),
        )
        await orchestrator.load_weights(update(0))
        batches = await run_steps(orchestrator, 0, 2)
        assert sorted(ids(batches[0]) + ids(batches[1])) == ["a/0", "a/2", "a/4", "a/6"]
        assert sum(batch.metrics.get("groups/without_signal_dropped", 0) for batch in batches) <= 4
        await orchestrator.close()

    asyncio.run(run())


def test_rewards_that_fail_now_and_then_leave_out_their_example():
    def score(texts, example):
        return [0.0] if example.id == "a/3" else [0.0, 1.0]

    async def run():
        orchestrator = make_orchestrator(
            GatedGenerator(), num_groups=3, environments=[ListedEnvironment("a", 7, score)]
        )
        await orchestrator.load_weights(update(0))
        batches = await run_steps(orchestrator, 0, 2)
        assert sorted(ids(batches[0]) + ids(batches[1])) == [f"a/{i}" for i in range(7) if i != 3]
        assert sum(batch.metrics.get("rewards/failed", 0) for batch in batches) == 1
        await orchestrator.close()

    asyncio.run(run())


def test_a_prompt_without_room_for_an_answer_is_left_out():
    class Mixed(ListedEnvironment):
        def example(self, index):
            example = super().example(index)
            object.__setattr__(example, "prompt", ["", "x" * 64, "fits"][index])
            return example

    async def run():
        orchestrator = make_orchestrator(GatedGenerator(), num_groups=1, environments=[Mixed("a", 3)])
        await orchestrator.load_weights(update(0))
        batch, second, third = await run_steps(orchestrator, 0, 3)
        assert {*ids(batch), *ids(second), *ids(third)} == {"a/2"}
        assert third.metrics["prompts/unusable"] == 2
        await orchestrator.close()

    asyncio.run(run())


def test_filters_mark_rollouts_and_count_them():
    async def run():
        orchestrator = make_orchestrator(
            GatedGenerator(script=lambda ids, n: [[65, 66, 67, 68]] + [[65] * 4] * (n - 1)),
            filters=[FilterSpec(type="repetition", enforce=True, window=1, min_repeats=4)],
        )
        await orchestrator.load_weights(update(0))
        batch = await orchestrator.next_batch(0)
        assert [rollout.trains for rollout in batch.rollouts] == [True, False, True, False]
        assert batch.metrics["filters/repetition"] == 2 and batch.metrics["completion/filtered"] == 0.5
        await orchestrator.close()

    asyncio.run(run())


def test_rollouts_without_a_sampled_token_do_not_keep_a_batch_waiting():
    async def run():
        for level in (0, 1):
            orchestrator = make_orchestrator(GatedGenerator(script=lambda ids, n: [[]] * n), level)
            await orchestrator.load_weights(update(0))
            for batch in await run_steps(orchestrator, 0, 3):
                assert [rollout.num_sampled for rollout in batch.rollouts] == [0] * 4
            await orchestrator.close()

    asyncio.run(run())


def test_advantages_and_temperature_belong_to_the_step():
    async def run():
        schedule = {"start": 1.0, "end": 0.5, "steps": 2}
        orchestrator = make_orchestrator(
            GatedGenerator(),
            advantage=AdvantageSpec(type="leave_one_out"),
            sampling=SamplingSpec(max_tokens=4, temp_scheduler=schedule),
        )
        await orchestrator.load_weights(update(0))
        batches = await run_steps(orchestrator, 0, 4)
        assert [batch.groups[0].temperature for batch in batches] == [1.0, 0.75, 0.5, 0.5]
        assert [rollout.advantage for rollout in batches[0].rollouts] == [-1.0, 1.0] * 2
        await orchestrator.close()

    asyncio.run(run())


# ---- the lineage


@pytest.mark.parametrize("level", [0, 1, 2])
def test_after_a_kill_each_prompt_is_trained_once_in_the_lineage_of_the_checkpoint(level):
    """Steps are killed after any batch, with groups of later ones finished and under way, and done again."""

    async def run():
        size, trained = 24, []
        ledger, step = None, 0
        for kept, lost in ((2, 3), (1, 0), (3, 2), (6, 0)):
            generator = GatedGenerator()
            orchestrator = make_orchestrator(
                generator, level, environments=[ListedEnvironment("a", size)], oversampling_factor=1.5
            )
            await orchestrator.reset(ledger)
            await orchestrator.load_weights(update(step))
            batches = await run_steps(orchestrator, step, step + kept)
            trained += [example_id for batch in batches for example_id in ids(batch)]
            ledger, step = json.loads(json.dumps(batches[-1].ledger)), step + kept
            await run_steps(orchestrator, step, step + lost)  # trained too, but no checkpoint holds it
            await orchestrator.close()
        assert Counter(trained) == {f"a/{i}": 1 for i in range(size)}

    asyncio.run(run())


def test_a_reset_stops_what_is_under_way_and_forgets_a_failure():
    async def run():
        generator = GatedGenerator()
        environment = ListedEnvironment("a", 5, lambda texts, example: 1 / 0)
        orchestrator = make_orchestrator(generator, environments=[environment])
        await orchestrator.load_weights(update(0))
        await turns()
        assert orchestrator._failure is not None
        environment.score = lambda texts, example: [0.0, 1.0]
        generator.gates["all"] = asyncio.Event()
        await orchestrator.reset(None)
        assert not generator.num_running and not orchestrator._in_flight
        del generator.gates["all"]
        await orchestrator.load_weights(update(0))
        assert (await orchestrator.next_batch(0)).step == 0
        await orchestrator.close()

    asyncio.run(run())


def test_a_group_cancelled_before_it_began_gives_its_prompt_back():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, num_groups=1)
        await orchestrator.load_weights(update(0))
        (started,) = orchestrator._in_flight.values()
        next(iter(orchestrator._in_flight)).cancel()
        assert not generator.begun
        await turns(3)
        assert ids(await orchestrator.next_batch(0)) == [started.example.id]
        await orchestrator.close()

    asyncio.run(run())


def test_closing_leaves_no_task_and_may_be_done_twice():
    async def run():
        generator, environment = GatedGenerator(), ListedEnvironment("a", 9)
        generator.gates["all"] = asyncio.Event()
        orchestrator = make_orchestrator(generator, 2, environments=[environment])
        await orchestrator.load_weights(update(0))
        await turns()
        await orchestrator.close()
        await orchestrator.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert generator.is_closed and environment.num_closed == 1 and not generator.num_running
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_the_engine_is_closed_although_an_environment_cannot_be():
    class Stubborn(ListedEnvironment):
        async def close(self):
            raise OSError("no")

    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, environments=[Stubborn("a", 1), ListedEnvironment("b", 1)])
        with pytest.raises(OSError, match="no"):
            await orchestrator.close()
        assert generator.is_closed and orchestrator.environments[1].num_closed == 1

    asyncio.run(run())


@pytest.mark.parametrize(("change", "is_alike"), [({"seed": 7}, False), ({"seed": None}, True)])
def test_the_seed_of_sampling_wins_over_that_of_the_run(change, is_alike):
    def drawn(sampling):
        async def run():
            generator, seeds = GatedGenerator(), []
            inner = generator.generate

            async def noted(*arguments, seed, **keywords):
                seeds.append(seed)
                return await inner(*arguments, seed=seed, **keywords)

            generator.generate = noted
            orchestrator = make_orchestrator(generator, sampling=sampling)
            await orchestrator.load_weights(update(0))
            await orchestrator.next_batch(0)
            await orchestrator.close()
            return sorted(seeds)

        return asyncio.run(run())

    assert (drawn(SamplingSpec()) == drawn(SamplingSpec(**change))) is is_alike
