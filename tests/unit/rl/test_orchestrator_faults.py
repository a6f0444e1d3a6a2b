"""Whatever breaks is told by next_batch, and nothing is waited for that cannot come."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import replace

import pytest
from support.rollouts import GatedGenerator, ListedEnvironment, make_orchestrator, update

from surogate.config.parts_grpo import BufferSpec
from surogate.errors import DataError, GeneratorError
from surogate.rl import orchestrator as orchestrator_module
from surogate.rl.environments.base import RewardError


class Altered(ListedEnvironment):
    """Returns something else than the rollouts that it should."""

    def __init__(self, alter):
        super().__init__("a", 4)
        self.alter = alter

    async def rollouts(self, example, n, policy):
        return self.alter(await super().rollouts(example, n, policy))


async def first_batch(environment, level=0, generator=None, **spec):
    orchestrator = make_orchestrator(generator or GatedGenerator(), level, environments=[environment], **spec)
    try:
        await orchestrator.load_weights(update(0))
        return await asyncio.wait_for(orchestrator.next_batch(0), 5)
    finally:
        await orchestrator.close()


def first(alter):
    return lambda rollouts: [alter(rollouts[0]), *rollouts[1:]]


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("alter", "text"),
    [
        (lambda rollouts: [], "2 rollouts of a/. were asked for, and 0 came"),
        (lambda rollouts: rollouts[:1], "2 rollouts of a/. were asked for, and 1 came"),
        (lambda rollouts: rollouts * 2, "2 rollouts of a/. were asked for, and 4 came"),
        (lambda rollouts: None, "must return a list of Rollout, got a NoneType"),
        (lambda rollouts: [1.0, 0.0], "must return a list of Rollout"),
        (first(lambda r: replace(r, logprobs=[])), "has 2 completion_ids and .*'logprobs': 0"),
        (first(lambda r: replace(r, prompt_ids=[])), "has no prompt"),
        (first(lambda r: replace(r, example_id="b/1")), "says that it answers b/1"),
        (first(lambda r: replace(r, prompt_ids=[1] * 63)), "has 65 tokens, and .* seq_len 64"),
    ],
)
def test_an_environment_that_returns_something_else_ends_the_run(alter, text, level):
    with pytest.raises(DataError, match=text):
        asyncio.run(first_batch(Altered(alter), level))


def test_a_log_probability_that_is_not_a_number_ends_the_run():
    alter = first(lambda r: replace(r, logprobs=[math.nan, -1.0]))
    with pytest.raises(GeneratorError, match="log-probability nan"):
        asyncio.run(first_batch(Altered(alter)))


def test_a_log_probability_that_does_not_train_may_be_anything():
    alter = first(lambda r: replace(r, logprobs=[math.nan, -1.0], sampled=[False, True]))
    assert len(asyncio.run(first_batch(Altered(alter))).rollouts) == 4


def raising(error):
    def score(texts, example):
        raise error

    return score


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("error", [TypeError("no such column"), KeyError("answer"), AssertionError(), StopIteration()])
def test_any_other_exception_in_an_environment_ends_the_run_and_names_it(error, level):
    with pytest.raises(DataError, match=r"a failed on a/\d: \w+.*( \(line \d+: .*\))?\.") as caught:
        asyncio.run(first_batch(ListedEnvironment("a", 4, raising(error)), level))
    assert type(error).__name__ in str(caught.value) or isinstance(error, StopIteration)
    assert caught.value.__cause__ is not None


def test_an_environment_that_cancels_itself_ends_the_run():
    with pytest.raises(DataError, match=r"a cancelled itself on a/\d"):
        asyncio.run(first_batch(ListedEnvironment("a", 4, raising(asyncio.CancelledError()))))


def test_examples_that_cannot_be_read_end_the_run():
    class Unreadable(ListedEnvironment):
        def example(self, index):
            raise OSError(f"prompt {index} is gone")

    with pytest.raises(DataError, match=r"a: example \d cannot be made: OSError: prompt \d is gone \(line \d+: raise"):
        asyncio.run(first_batch(Unreadable("a", 4)))


def test_an_example_that_cannot_be_read_while_the_trainer_works_ends_the_run():
    """The pool is then asked in a callback of the event loop, which writes an exception down and forgets it."""

    class Flickering(ListedEnvironment):
        fails = False

        def example(self, index):
            if self.fails:
                self.fails = False
                raise OSError(f"prompt {index} was gone")
            return super().example(index)

    async def run():
        environment = Flickering("a", 9, raising(RewardError("no")))
        orchestrator = make_orchestrator(GatedGenerator(), environments=[environment])
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        await orchestrator.load_weights(update(0))
        environment.fails = True
        for _ in range(20):
            await asyncio.sleep(0)
        assert not environment.fails and len(told) == 1
        with pytest.raises(DataError, match="was gone"):
            await orchestrator.next_batch(0)
        await orchestrator.close()

    asyncio.run(run())


@pytest.mark.parametrize("level", [0, 1])
def test_a_failure_of_the_engine_is_told_by_the_next_batch(level):
    generator = GatedGenerator(failures=deque([None, GeneratorError("the engine is gone")]))
    with pytest.raises(GeneratorError, match="the engine is gone"):
        asyncio.run(first_batch(ListedEnvironment("a", 4), level, generator))


def test_a_failure_while_the_trainer_works_is_told_by_the_next_batch():
    async def run():
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, 1)
        await orchestrator.load_weights(update(0))
        await orchestrator.next_batch(0)
        for _ in range(50):
            await asyncio.sleep(0)
        generator.failures.append(GeneratorError("the engine is gone"))
        await orchestrator.load_weights(update(1))
        for _ in range(50):
            await asyncio.sleep(0)
        begun = len(generator.begun)
        with pytest.raises(GeneratorError, match="the engine is gone"):
            await orchestrator.next_batch(1)
        assert len(generator.begun) == begun
        await orchestrator.close()

    asyncio.run(run())


def test_rewards_that_always_fail_end_the_run_with_the_reason():
    with pytest.raises(DataError, match=r"The last 100 groups could not be trained on. The newest one: no answer key"):
        asyncio.run(first_batch(ListedEnvironment("a", 4, raising(RewardError("no answer key.")))))


def test_prompts_that_are_all_too_long_end_the_run_with_the_reason():
    with pytest.raises(DataError, match="a prompt has 3 tokens, and prompt and completion together may have 3"):
        asyncio.run(first_batch(ListedEnvironment("a", 4), seq_len=3))


def test_groups_that_never_have_a_signal_end_the_run_with_the_reason():
    environment = ListedEnvironment("a", 4, lambda texts, example: [0.25] * len(texts))
    with pytest.raises(DataError, match=r"all rewards of a/\d are 0.25"):
        asyncio.run(first_batch(environment, buffer=BufferSpec(online_difficulty_filtering=True)))


def test_now_and_then_a_good_group_keeps_the_run_going():
    calls = []

    def score(texts, example):
        calls.append(example)
        return [0.0, 1.0] if len(calls) % 90 == 0 else [0.0, 0.0]

    batch = asyncio.run(
        first_batch(ListedEnvironment("a", 4, score), buffer=BufferSpec(online_difficulty_filtering=True))
    )
    assert batch.metrics["groups/without_signal_dropped"] == 178


def test_a_stall_ends_the_run_and_says_what_was_waited_for():
    async def run():
        generator = GatedGenerator(gates={"all": asyncio.Event()})
        orchestrator = make_orchestrator(generator, 1, num_groups=1, stall_seconds=0.02)
        await orchestrator.load_weights(update(3))
        text = r"in 0.02 s: 0 of 1 groups are finished and 2 under way \(the first is a/\d+, the engine holds version 3"
        with pytest.raises(GeneratorError, match=text):
            await orchestrator.next_batch(3)
        await orchestrator.close()

    asyncio.run(run())


def test_a_long_wait_is_told(monkeypatch, caplog):
    monkeypatch.setattr(orchestrator_module, "NOTICE_SECONDS", 0.005)

    async def run():
        gate = asyncio.Event()
        orchestrator = make_orchestrator(GatedGenerator(gates={"all": gate}), num_groups=1)
        await orchestrator.load_weights(update(0))
        asyncio.get_running_loop().call_later(0.03, gate.set)
        with caplog.at_level("INFO", logger=orchestrator_module.__name__):
            await orchestrator.next_batch(0)
        await orchestrator.close()

    asyncio.run(run())
    assert "Step 0 waits for rollouts: 0 of 1 groups are finished and 1 under way" in caplog.text


@pytest.mark.parametrize(("level", "version", "step"), [(0, None, 0), (2, None, 0), (0, 0, 1), (1, 0, 2)])
def test_a_batch_whose_weights_never_came_is_refused_at_once(level, version, step):
    async def run():
        orchestrator = make_orchestrator(GatedGenerator(), level)
        if version is not None:
            await orchestrator.load_weights(update(version))
        with pytest.raises(GeneratorError, match=f"step {step} was asked for before the weights"):
            await orchestrator.next_batch(step)
        await orchestrator.close()

    asyncio.run(run())


def test_closing_while_a_batch_is_awaited_ends_the_wait():
    async def run():
        orchestrator = make_orchestrator(GatedGenerator(gates={"all": asyncio.Event()}))
        await orchestrator.load_weights(update(0))
        waiting = asyncio.create_task(orchestrator.next_batch(0))
        for _ in range(20):
            await asyncio.sleep(0)
        await orchestrator.close()
        with pytest.raises(GeneratorError, match="closed while step 0 waited"):
            await waiting

    asyncio.run(run())


def test_an_environment_that_will_not_be_cancelled_is_named(monkeypatch):
    monkeypatch.setattr(orchestrator_module, "STOP_SECONDS", 0.01)
    gate = []

    class Deaf(ListedEnvironment):
        async def rollouts(self, example, n, policy):
            while not gate[0].is_set():
                try:
                    await gate[0].wait()
                except asyncio.CancelledError:
                    continue
            return await super().rollouts(example, n, policy)

    async def run():
        gate.append(asyncio.Event())
        generator = GatedGenerator()
        orchestrator = make_orchestrator(generator, environments=[Deaf("a", 1)], num_groups=1)
        await orchestrator.load_weights(update(0))
        await asyncio.sleep(0)
        with pytest.raises(GeneratorError, match=r"a/0 went on for 0.01 s after being cancelled"):
            await orchestrator.reset(None)
        with pytest.raises(GeneratorError, match="a/0 went on"):
            await orchestrator.close()
        assert generator.is_closed
        gate[0].set()
        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_weights_that_the_engine_refuses_are_told_to_who_sent_them():
    async def run():
        generator = GatedGenerator(is_closed=True)
        orchestrator = make_orchestrator(generator)
        with pytest.raises(GeneratorError, match="is closed"):
            await orchestrator.load_weights(update(0))
        assert not generator.begun

    asyncio.run(run())
