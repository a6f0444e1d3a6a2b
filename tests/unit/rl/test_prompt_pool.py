"""The order of prompts, and what is owed: each example is trained on once a pass, whatever happens between."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rollouts import ListedEnvironment

from surogate.config.parts_grpo import BufferSpec
from surogate.errors import CheckpointError, DataError
from surogate.rl.prompt_pool import PromptPool


def make_pool(sizes=(5,), weights=None, seed=0, **buffer):
    environments = [ListedEnvironment(name, size) for name, size in zip("abc", sizes, strict=False)]
    return PromptPool(environments, weights or [1.0] * len(environments), seed, BufferSpec(**buffer))


def draw(pool, count):
    examples = [pool.draw() for _ in range(count)]
    for example in examples:
        pool.settle(example)
    return [example.id for example in examples]


@given(seed=st.integers(0, 2**32), size=st.integers(1, 20))
def test_a_pass_draws_every_example_once_whatever_the_seed(seed, size):
    pool = make_pool([size], seed=seed)
    for _ in range(3):
        assert sorted(draw(pool, size)) == sorted(f"a/{i}" for i in range(size))


def test_passes_differ_in_order_and_seeds_too():
    pool = make_pool([50])
    first, second = draw(pool, 50), draw(pool, 50)
    assert first != second
    assert draw(make_pool([50], seed=1), 50) != first
    assert draw(make_pool([50]), 50) == first


def test_environments_are_drawn_by_weight_at_every_point():
    pool = make_pool((7, 3, 100), [1.0, 2.0, 5.0])
    counts = Counter()
    for _ in range(160):
        example = pool.draw()
        counts[example.env] += 1
        total = sum(counts.values())
        for name, weight in zip("abc", (1, 2, 5), strict=True):
            assert abs(counts[name] - total * weight / 8) <= 2
    assert counts == {"a": 20, "b": 40, "c": 100}


def test_each_environment_is_walked_in_passes_of_its_own():
    pool = make_pool((2, 6), [1.0, 1.0])
    drawn = draw(pool, 12)
    assert Counter(drawn) == {**{f"a/{i}": 3 for i in range(2)}, **{f"b/{i}": 1 for i in range(6)}}
    assert pool.metrics() == {"data/a/epochs": 3.0, "data/b/epochs": 1.0}


def test_an_example_that_is_given_back_comes_next():
    pool = make_pool()
    first, second = pool.draw(), pool.draw()
    pool.give_back(second)
    pool.give_back(first)
    assert [pool.draw().id, pool.draw().id] == [second.id, first.id]


def test_an_example_that_is_not_owed_cannot_be_settled():
    pool = make_pool()
    example = pool.draw()
    pool.settle(example)
    with pytest.raises(AssertionError, match="not owed"):
        pool.settle(example)


def test_what_is_owed_is_drawn_first_after_restoring_in_the_order_of_old():
    pool = make_pool([8])
    drawn = [pool.draw() for _ in range(5)]
    pool.settle(drawn[1])
    pool.give_back(drawn[3])
    restored = make_pool([8])
    restored.restore(json.loads(json.dumps(pool.state())))
    assert [restored.draw().id for _ in range(4)] == [drawn[i].id for i in (0, 2, 4, 3)]
    assert {restored.draw().id for _ in range(3)} == {f"a/{i}" for i in range(8)} - {e.id for e in drawn}


def test_an_example_owed_for_two_passes_is_drawn_twice_after_restoring():
    pool = make_pool([2])
    for _ in range(4):
        pool.draw()
    restored = make_pool([2])
    restored.restore(pool.state())
    assert Counter(restored.draw().id for _ in range(4)) == {"a/0": 2, "a/1": 2}


ACTIONS = st.lists(st.tuples(st.sampled_from(["draw", "settle", "give_back", "save", "kill"]), st.integers(0, 9)))


@settings(max_examples=300)
@given(actions=ACTIONS, sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_each_example_is_trained_once_a_pass_in_the_lineage_of_any_history(actions, sizes, seed):
    """`trained` is what the checkpoint's weights have seen; a kill takes it back to the last save."""
    pool, held, trained = make_pool(sizes, seed=seed), [], []
    saved = (pool.state(), [])
    for action, place in actions:
        if action == "draw":
            held.append(pool.draw())
        elif action == "save":
            saved = (json.loads(json.dumps(pool.state())), list(trained))
        elif action == "kill":
            pool, held, trained = make_pool(sizes, seed=seed), [], list(saved[1])
            pool.restore(saved[0])
        elif held:
            example = held.pop(place % len(held))
            if action == "settle":
                pool.settle(example)
                trained.append(example.id)
            else:
                pool.give_back(example)
    for example in held:
        pool.give_back(example)
    target = 3 * max(sizes) * len(sizes) + len(trained)
    while len(trained) < target:
        example = pool.draw()
        pool.settle(example)
        trained.append(example.id)
    for name, size in zip("abc", sizes, strict=False):
        counts = Counter(example_id for example_id in trained if example_id.startswith(f"{name}/"))
        passes = sum(counts.values()) / size
        # Nothing is owed any more, so all but the pass under way are whole.
        assert set(counts.values()) <= {int(passes), int(passes) + 1} and len(counts) == size
        assert sum(count == int(passes) + 1 for count in counts.values()) == sum(counts.values()) % size


def test_a_restored_pool_goes_on_as_the_old_one_would():
    pool = make_pool((5, 4), [1.0, 2.0])
    draw(pool, 7)
    restored = make_pool((5, 4), [1.0, 2.0])
    restored.restore(json.loads(json.dumps(pool.state())))
    assert draw(restored, 30) == draw(pool, 30)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (make_pool([6]), r"examples\) \{'a': 5\}, and this run has \{'a': 6\}"),
        (make_pool([5, 3]), "'b': 3"),
        (make_pool(seed=7), "with seed 0, and this run has 7"),
    ],
)
def test_a_position_of_other_environments_is_refused(other, text):
    with pytest.raises(CheckpointError, match=text):
        other.restore(make_pool().state())


def test_easy_and_hard_examples_leave_the_pool():
    pool = make_pool([6], easy_threshold=0.9, hard_threshold=0.1)
    rewards = {"a/0": 1.0, "a/1": 0.9, "a/2": 0.0, "a/3": 0.1, "a/4": 0.5, "a/5": 0.89}
    for _ in range(6):
        example = pool.draw()
        pool.settle(example, rewards[example.id])
    assert {draw(pool, 1)[0] for _ in range(8)} == {"a/4", "a/5"}
    metrics = pool.metrics()
    assert (metrics["data/a/easy"], metrics["data/a/hard"]) == (2, 2)


def test_left_out_examples_stay_out_after_restoring():
    pool = make_pool([4], easy_threshold=1.0)
    for _ in range(3):
        pool.settle(pool.draw(), 1.0)
    restored = make_pool([4], easy_threshold=1.0)
    restored.restore(json.loads(json.dumps(pool.state())))
    assert len(set(draw(restored, 6))) == 1


def test_the_asked_share_comes_back_with_the_next_pass():
    pool = make_pool([10], easy_threshold=1.0, easy_fraction=0.5)
    for _ in range(10):
        example = pool.draw()
        pool.settle(example, 1.0 if example.id < "a/8" else 0.0)
    second = draw(pool, 6)
    assert {"a/8", "a/9"} < set(second) and len(set(second)) == 6


def test_where_nothing_is_left_everything_comes_back():
    pool = make_pool([3], easy_threshold=1.0)
    for _ in range(3):
        pool.settle(pool.draw(), 1.0)
    assert sorted(draw(pool, 3)) == ["a/0", "a/1", "a/2"]


def test_an_example_that_was_never_answered_stays_in_the_pool():
    pool = make_pool([1], hard_threshold=0.0)
    pool.settle(pool.draw(), None)
    assert pool.metrics()["data/a/hard"] == 0


def test_an_environment_without_prompts_is_refused():
    with pytest.raises(DataError, match="The environment b has no prompts"):
        make_pool((3, 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "b/0"}, r"a: example \d has the id 'b/0' and must have 'a/\d'"),
        ({"env": "b"}, r"a: example \d has the env 'b' and must have 'a'"),
        ({"prompt": ["hello"]}, "has a prompt that is neither text nor a list of messages"),
        ({"prompt": []}, "has a prompt that is neither text nor a list of messages"),
        (None, r"a: example \d is a dict and must be an Example"),
    ],
)
def test_an_example_that_is_none_of_the_environments_is_told(change, said):
    class Other(ListedEnvironment):
        def example(self, index):
            made = super().example(index)
            return {"id": made.id} if change is None else replace(made, **change)

    with pytest.raises(DataError, match=said):
        PromptPool([Other("a", 2)], [1.0], 0).draw()
