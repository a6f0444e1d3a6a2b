"""The same questions each time, a standard error over examples, and failures that are counted or told."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from support.rollouts import CharTokenizer, GatedGenerator, ListedEnvironment, make_spec

from surogate.config.parts_grpo import EvalSpec, SamplingSpec
from surogate.errors import DataError, GeneratorError
from surogate.rl import evaluation as evaluation_module
from surogate.rl.environments.base import RewardError
from surogate.rl.evaluation import Evaluation


def make_evaluation(environments, generator=None, stall_seconds=5.0, training=None, **spec):
    return Evaluation(
        make_spec(eval=EvalSpec(**spec), **(training or {})),
        environments,
        generator or GatedGenerator(script=None),
        CharTokenizer(),
        stall_seconds,
    )


def test_the_first_examples_are_asked_each_time_and_sampled_alike():
    generator = GatedGenerator(script=None)
    evaluation = make_evaluation([ListedEnvironment("e", 9)], generator, num_examples=4, rollouts_per_example=2)
    first, second = (asyncio.run(evaluation.run(version)) for version in (0, 5))
    assert [prompt for prompt, _ in generator.begun] == [f"e/{i}" for i in range(4)] * 2
    assert first.rollouts == second.rollouts and (first.version, second.version) == (0, 5)
    assert [rollout.example_id for rollout in first.rollouts] == [f"e/{i // 2}" for i in range(8)]
    assert len({tuple(rollout.completion_ids) for rollout in first.rollouts}) > 4


def test_as_much_is_under_way_as_in_training():
    async def most_at_once(**values):
        gate = asyncio.Event()
        generator = GatedGenerator(script=None, gates={"all": gate})
        evaluation = make_evaluation([ListedEnvironment("e", 200)], generator, num_examples=200, **values)
        task = asyncio.create_task(evaluation.run(1))
        for _ in range(10):
            await asyncio.sleep(0)
        running = generator.num_running
        gate.set()
        await task
        return running

    assert asyncio.run(most_at_once()) == 64
    assert asyncio.run(most_at_once(rollouts_per_example=3, temperature=1.0)) == 63
    assert asyncio.run(most_at_once(training={"num_groups": 64, "group_size": 2})) == 128


def test_options_of_the_chat_template_hold_in_evaluation_too():
    class Telling(ListedEnvironment):
        async def rollouts(self, example, n, policy):
            told.append(dict(policy.chat_template_kwargs))
            return await super().rollouts(example, n, policy)

    told = []
    options = {"enable_thinking": False}
    training = {"sampling": SamplingSpec(max_tokens=4, chat_template_kwargs=options)}
    asyncio.run(make_evaluation([Telling("e", 1)], training=training).run(1))
    assert told == [options]


@pytest.mark.parametrize(
    ("spec", "temperature"),
    [
        ({}, 0.0),
        ({"rollouts_per_example": 4}, 0.7),
        ({"temperature": 0.3}, 0.3),
        ({"rollouts_per_example": 4, "temperature": 0.3}, 0.3),
    ],
)
def test_one_answer_is_the_likeliest_and_several_are_sampled_as_in_training(spec, temperature):
    class Telling(GatedGenerator):
        async def generate(self, prompt_ids, n, sampling, **options):
            told.add(sampling.temperature)
            return await super().generate(prompt_ids, n, sampling, **options)

    told = set()
    training = {"sampling": SamplingSpec(max_tokens=4, temperature=0.7)}
    asyncio.run(make_evaluation([ListedEnvironment("e", 1)], Telling(script=None), training=training, **spec).run(1))
    assert told == {temperature}


def test_an_environment_smaller_than_the_evaluation_is_asked_whole():
    result = asyncio.run(make_evaluation([ListedEnvironment("e", 3)], num_examples=64).run(1))
    assert len(result.rollouts) == 3


def test_the_standard_error_is_that_of_examples():
    rewards = {"e/0": [1.0, 1.0], "e/1": [0.0, 1.0], "e/2": [0.0, 0.0], "e/3": [0.0, 0.0]}
    environment = ListedEnvironment("e", 4, lambda texts, example: rewards[example.id])
    metrics = asyncio.run(make_evaluation([environment], rollouts_per_example=2).run(1)).metrics
    assert metrics["eval/e/reward"] == 0.375
    # means 1, 1/2, 0, 0: their sample standard deviation is sqrt(0.6875 / 3), over sqrt(4)
    assert metrics["eval/e/standard_error"] == pytest.approx((0.6875 / 3) ** 0.5 / 2)
    assert metrics["eval/e/failed"] == 0


def test_each_environment_has_numbers_of_its_own():
    environments = [ListedEnvironment(name, 2, lambda texts, e, r=r: [r]) for name, r in (("x", 0.25), ("y", 1.0))]
    metrics = asyncio.run(make_evaluation(environments).run(1)).metrics
    assert (metrics["eval/x/reward"], metrics["eval/y/reward"]) == (0.25, 1.0)
    assert metrics["eval/x/standard_error"] == 0.0


def test_examples_that_fail_are_counted_and_left_out(caplog):
    def score(texts, example):
        if example.id == "e/1":
            raise RewardError("no key")
        return [1.0]

    class Long(ListedEnvironment):
        def example(self, index):
            example = super().example(index)
            if index == 2:
                object.__setattr__(example, "prompt", "x" * 64)
            return example

    result = asyncio.run(make_evaluation([Long("e", 4, score)]).run(1))
    assert [rollout.example_id for rollout in result.rollouts] == ["e/0", "e/3"]
    assert result.metrics["eval/e/failed"] == 2 and result.metrics["eval/e/reward"] == 1.0
    assert "e/1: no key" in caplog.text


def test_where_everything_fails_only_that_is_told():
    environment = ListedEnvironment("e", 3, lambda texts, example: [])
    assert asyncio.run(make_evaluation([environment]).run(1)).metrics == {"eval/e/failed": 3.0}


def test_a_failing_engine_ends_the_evaluation_and_everything_under_way():
    async def run():
        generator = GatedGenerator(failures=deque([GeneratorError("gone")]))
        generator.gates |= {f"e/{i}": asyncio.Event() for i in range(1, 200)}
        with pytest.raises(GeneratorError, match="gone"):
            await make_evaluation([ListedEnvironment("e", 200)], generator, num_examples=200).run(1)
        assert asyncio.all_tasks() == {asyncio.current_task()} and not generator.num_running

    asyncio.run(run())


@pytest.mark.parametrize(
    ("score", "text"),
    [(lambda texts, example: 1 / 0, "e failed on e/0: ZeroDivisionError"), (lambda texts, example: None, None)],
)
def test_a_broken_environment_ends_the_evaluation_and_a_broken_reward_does_not(score, text):
    evaluation = make_evaluation([ListedEnvironment("e", 2, score)])
    if text is None:
        assert asyncio.run(evaluation.run(1)).metrics["eval/e/failed"] == 2
    else:
        with pytest.raises(DataError, match=text):
            asyncio.run(evaluation.run(1))


def test_an_evaluation_that_comes_no_further_ends(monkeypatch):
    async def run():
        generator = GatedGenerator(gates={"e/1": asyncio.Event()})
        evaluation = make_evaluation([ListedEnvironment("e", 3)], generator, stall_seconds=0.02)
        with pytest.raises(GeneratorError, match=r"came no further in 0\.02 s: 2 of 3 examples of e are done"):
            await evaluation.run(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_long_evaluation_tells_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(evaluation_module, "_NOTICE_SECONDS", 0.005)

    async def run():
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(0.03, gate.set)
        generator = GatedGenerator(gates={"e/1": gate})
        with caplog.at_level("INFO", logger=evaluation_module.__name__):
            await make_evaluation([ListedEnvironment("e", 3)], generator).run(1)

    asyncio.run(run())
    assert "Evaluating: 2 of 3 examples of e are done." in caplog.text


def test_cancelling_an_evaluation_leaves_nothing_under_way():
    async def run():
        generator = GatedGenerator(gates={"all": asyncio.Event()})
        task = asyncio.create_task(make_evaluation([ListedEnvironment("e", 3)], generator).run(1))
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()} and generator.num_cancelled == 3

    asyncio.run(run())


def due(max_steps, **spec):
    evaluation = make_evaluation([ListedEnvironment("e", 1)], **spec)
    return [version for version in range(max_steps + 1) if evaluation.is_due(version, max_steps)]


def test_the_base_each_interval_and_the_last_version_are_evaluated_once():
    assert due(10, interval=4) == [0, 4, 8, 10]
    assert due(8, interval=4) == [0, 4, 8]
    assert due(3, interval=100) == [0, 3]
    assert due(4, interval=2, eval_base_model=False) == [2, 4]


def test_without_environments_nothing_is_evaluated():
    assert not any(make_evaluation([]).is_due(version, 3) for version in range(4))


def test_an_environment_without_prompts_is_refused():
    with pytest.raises(DataError, match="e has no prompts"):
        make_evaluation([ListedEnvironment("e", 0)])
