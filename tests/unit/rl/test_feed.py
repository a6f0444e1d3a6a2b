"""A feed in a thread: errors cross it, waiting can be broken off, and nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
import threading
from dataclasses import replace

import pytest
from support.rollouts import CharTokenizer, GatedGenerator, ListedEnvironment, make_orchestrator, make_spec, update
from support.waiting import wait_until

from surogate.config.parts_grpo import EvalSpec
from surogate.errors import CheckpointError, DataError, GeneratorError, SurogateError
from surogate.rl import feed as feed_module
from surogate.rl.environments.base import RewardError
from surogate.rl.evaluation import Evaluation
from surogate.rl.feed import LocalFeed, RolloutService


def make_feed(generator=None, environments=None, level=1, **spec):
    generator = generator or GatedGenerator(is_started=False)
    orchestrator = make_orchestrator(generator, level, environments, **spec)
    evaluated = [ListedEnvironment("e", 2)]
    evaluation = Evaluation(make_spec(eval=EvalSpec(interval=2)), evaluated, generator, CharTokenizer())
    return LocalFeed(RolloutService(orchestrator, evaluation)), generator, evaluated[0]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert "orchestrator" not in {thread.name for thread in threading.enumerate()}


def test_a_run_goes_through_the_feed():
    feed, generator, evaluated = make_feed(level=0)
    feed.start()
    feed.publish(update(0))
    groups = feed.probe(3)
    assert [len(group.rollouts) for group in groups] == [2, 2, 2] and len({g.example.id for g in groups}) == 3
    for step in range(4):
        assert (result := feed.evaluate(step)) is None or result.version == step
        assert feed.next_batch(step).step == step
        feed.publish(update(step + 1))
    assert feed.evaluate(4) is not None and feed.evaluate(3) is None
    feed.close()
    assert generator.is_closed and evaluated.num_closed == 1
    assert [weights.version for weights in generator.loads] == [0, 1, 2, 3, 4]


def test_a_sequence_that_comes_with_weights_is_scored_before_anything_is_sampled_with_them():
    asked = []
    feed, generator, _ = make_feed(level=1)
    for name in ("score", "generate"):
        inner = getattr(generator, name)

        def noted(*arguments, _name=name, _inner=inner, **keywords):
            asked.append(_name)
            return _inner(*arguments, **keywords)

        setattr(generator, name, noted)
    feed.start()
    feed.publish(replace(update(0), probe_ids=(1, 2, 3)))
    feed.next_batch(0)
    assert feed.scores() == [-1.0, -1.0]
    assert asked[0] == "score" and asked.count("score") == 1 and "generate" in asked
    feed.close()


def test_a_feed_goes_on_from_a_ledger():
    feed, _, _ = make_feed(level=0)
    feed.start()
    feed.publish(update(0))
    ledger = feed.next_batch(0).ledger
    feed.publish(update(1))
    second = feed.next_batch(1)
    feed.close()
    resumed, _, _ = make_feed(level=0)
    resumed.restore(ledger)
    resumed.start()
    resumed.publish(update(1))
    assert resumed.next_batch(1).groups == second.groups
    resumed.close()


def test_a_ledger_of_another_run_is_refused_and_the_feed_can_be_closed():
    feed, generator, _ = make_feed()
    feed.restore({"pool": {"sizes": {"b": 3}, "seed": 1}, "num_started": 0})
    with pytest.raises(CheckpointError, match="was made with the environments"):
        feed.start()
    feed.close()
    assert generator.is_closed


class Custom(GeneratorError):
    """An error of a kind of its own."""


def test_errors_cross_with_their_type_and_message():
    feed, generator, _ = make_feed()
    feed.start()
    feed.publish(update(0))
    feed.next_batch(0)
    generator.failures.append(Custom("out of memory, 3 GiB asked for"))
    feed.publish(update(1))
    with pytest.raises(Custom, match=r"^out of memory, 3 GiB asked for$"):
        for step in (1, 2, 3):
            feed.next_batch(step)
            feed.publish(update(step + 1))
    feed.close()


def test_closing_twice_and_closing_what_never_started_does_nothing():
    feed, _, _ = make_feed()
    feed.close()
    feed.start()
    feed.close()
    feed.close()


def test_a_closed_feed_says_so():
    feed, _, _ = make_feed()
    feed.start()
    feed.close()
    with pytest.raises(GeneratorError, match="is closed"):
        feed.next_batch(0)


def test_an_engine_that_does_not_start_is_told_and_closed():
    async def refuse():
        raise GeneratorError("vLLM is not installed")

    feed, generator, _ = make_feed()
    generator.start = refuse
    with pytest.raises(GeneratorError, match="not installed"):
        feed.start()
    feed.close()
    assert generator.is_closed


def waiting_feed():
    gate = asyncio.Event()
    feed, generator, _ = make_feed(GatedGenerator(gates={"all": gate}))
    feed.start()
    feed.publish(update(0))
    return feed, generator


def test_closing_while_a_batch_is_awaited_ends_the_wait():
    feed, generator = waiting_feed()
    caught = []

    def ask():
        with pytest.raises(GeneratorError, match="closed") as error:
            feed.next_batch(0)
        caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: generator.num_running == 8)
    feed.close()
    asking.join(5)
    assert caught and not generator.num_running


def test_ctrl_c_breaks_off_the_wait_and_cancels_what_was_asked():
    feed, generator = waiting_feed()
    wait_until(lambda: generator.num_running == 8)
    cancelled = threading.Event()
    inner = feed._service.orchestrator.next_batch

    async def next_batch(step):
        try:
            return await inner(step)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    feed._service.orchestrator.next_batch = next_batch
    threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        feed.next_batch(0)
    assert cancelled.wait(5)
    feed.close()
    assert generator.is_closed and not generator.num_running


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the exit itself
def test_a_reward_that_ends_the_thread_is_told_and_the_engine_closed():
    def score(texts, example):
        raise SystemExit("stop it")

    feed, generator, evaluated = make_feed(environments=[ListedEnvironment("a", 3, score)])
    feed.start()
    with pytest.raises(SurogateError, match=r"SystemExit.*stop it"):  # the group's error, or the thread's
        feed.publish(update(0))
        feed.next_batch(0)
    feed.close()
    assert generator.is_closed and evaluated.num_closed == 1


def test_an_error_in_closing_is_told_once_and_the_rest_is_closed():
    feed, generator, evaluated = make_feed()

    async def refuse():
        raise OSError("the sandbox is stuck")

    evaluated.close = refuse
    feed.start()
    with pytest.raises(OSError, match="is stuck"):
        feed.close()
    feed.close()
    assert generator.is_closed


def test_an_engine_that_does_not_end_is_not_waited_for_forever(monkeypatch, caplog):
    monkeypatch.setattr(feed_module, "_CLOSE_SECONDS", 0.02)
    feed, generator, _ = make_feed()
    end = threading.Event()

    async def slow_close():
        while not end.is_set():
            await asyncio.sleep(0.001)

    generator.close = slow_close
    feed.start()
    feed.close()
    assert "did not end within" in caplog.text
    end.set()
    feed._thread.join(5)


def test_the_probe_leaves_out_examples_whose_reward_fails():
    def score(texts, example):
        if example.id != "a/2":
            raise RewardError("no key")
        return [0.0, 1.0]

    feed, _, _ = make_feed(environments=[ListedEnvironment("a", 12, score)])
    feed.start()
    feed.publish(update(0))
    assert [group.example.id for group in feed.probe(1)] == ["a/2"]
    feed.close()


def test_a_probe_that_finds_no_example_says_why_once(caplog):
    feed, _, _ = make_feed(environments=[ListedEnvironment("a", 3, lambda texts, example: [])])
    feed.start()
    feed.publish(update(0))
    with pytest.raises(DataError, match="must return a list of 2 numbers"):
        feed.probe(2)
    feed.close()
    told = [message for message in caplog.messages if message.startswith("The probe")]
    assert len(told) == 2 and "must return a list of 2 numbers" in told[0]
    assert told[1] == "The probe left out 15 more prompts for the reason told of a/0."


def test_the_probe_is_not_counted_as_training():
    feed, _, _ = make_feed(level=0)
    feed.start()
    feed.publish(update(0))
    feed.probe(4)
    assert feed.next_batch(0).metrics["tokens/generated"] == 8
    feed.close()
