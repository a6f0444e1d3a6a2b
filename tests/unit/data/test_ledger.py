from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surogate.data.ledger import Ledger, Walk, WalkSpec
from surogate.errors import CheckpointError

SEQUENCE_LEN = 20


def a_walk(lengths: list[list[int]] | None = None, fingerprints: str = "12", **spec: object) -> Walk:
    lengths = lengths or [[3, 8, 5, 9, 12, 4], [20, 6, 7, 2]]
    settings = {"sequence_len": SEQUENCE_LEN, "packing": True, "seed": 7, "weights": None, **spec}
    return Walk([np.array(part) for part in lengths], dict(zip("ab", fingerprints, strict=False)), WalkSpec(**settings))


WALKS = st.builds(
    a_walk,
    st.lists(st.lists(st.integers(1, SEQUENCE_LEN), min_size=1, max_size=40), min_size=1, max_size=3),
    packing=st.booleans(),
    seed=st.integers(0, 2**32),
)

WALKS_OF_MANY_FULL_ROWS = st.builds(
    lambda lengths: a_walk([lengths]),
    st.lists(st.sampled_from([SEQUENCE_LEN, SEQUENCE_LEN, 1, 9, SEQUENCE_LEN - 1]), min_size=1, max_size=60),
)


def epoch_steps(walk: Walk, epoch: int, packs_per_step: int) -> list[tuple[list[list[int]], Ledger]]:
    return list(walk.steps(walk.start(epoch, packs_per_step)))


@settings(deadline=None)
@given(WALKS, st.integers(0, 3), st.integers(1, 6))
def test_an_epoch_holds_every_row_once_in_packs_that_fit(walk: Walk, epoch: int, packs_per_step: int) -> None:
    batches = [packs for packs, _ in epoch_steps(walk, epoch, packs_per_step)]
    packs = list(chain.from_iterable(batches))
    assert sorted(chain.from_iterable(packs)) == list(range(sum(walk.num_rows)))
    assert all(walk.lengths[pack].sum() <= SEQUENCE_LEN for pack in packs)
    assert all(len(batch) == packs_per_step for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= packs_per_step
    if not walk.spec.packing:
        assert all(len(pack) == 1 for pack in packs)


@settings(deadline=None)
@given(WALKS, st.integers(0, 2), st.integers(1, 4))
def test_from_the_ledger_of_any_step_the_walk_goes_on_the_same(walk: Walk, epoch: int, packs_per_step: int) -> None:
    steps = epoch_steps(walk, epoch, packs_per_step)
    for done, (_, ledger) in enumerate(steps, start=1):
        stored = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
        walk.check(stored)
        assert (stored.epoch, stored.step) == (epoch, done)
        rest = list(walk.steps(stored))
        assert [packs for packs, _ in rest] == [packs for packs, _ in steps[done:]]
        assert [after.to_dict() for _, after in rest] == [after.to_dict() for _, after in steps[done:]]
        assert walk.next_start(stored).epoch == (epoch + 1 if done == len(steps) else epoch)


@settings(deadline=None)
@given(WALKS_OF_MANY_FULL_ROWS | WALKS, st.integers(0, 2), st.integers(1, 6))
def test_the_number_of_steps_is_counted_exactly(walk: Walk, epoch: int, packs_per_step: int) -> None:
    assert walk.num_steps(epoch, packs_per_step) == len(epoch_steps(walk, epoch, packs_per_step))


def test_the_position_is_the_same_however_the_packs_are_dealt_later() -> None:
    # One step of 4 packs is two steps of 2: the walk knows packs, not ranks or micro-batches.
    fours = [pack for packs, _ in epoch_steps(a_walk(), 0, 4) for pack in packs]
    assert fours == [pack for packs, _ in epoch_steps(a_walk(), 0, 2) for pack in packs]


def test_validation_packs_hold_every_row_once_and_are_not_shuffled() -> None:
    walk = a_walk([[10, 10, 15, 5, 20]])
    assert list(walk.packs_in_file_order()) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sequence_len": 32}, "sequence_len was 20 and is 32"),
        ({"packing": False}, "packing was True and is False"),
        ({"weights": (1.0, 2.0)}, r"weights was None and is \[1.0, 2.0\]"),
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"fingerprints": "13"}, "b has other rows"),
        ({"fingerprints": "1"}, "the data sets were a, b and are a"),
    ],
)
def test_a_ledger_of_another_walk_is_refused_with_what_differs(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        a_walk(**change).check(a_walk().start(0, 4))


def test_the_rows_drawn_are_counted_over_all_epochs() -> None:
    walk = a_walk([[5, 5, 5, 5], [7, 7]], weights=(1.0, 1.0))
    (_, first), *_, (_, last) = epoch_steps(walk, 2, 1)
    assert walk.drawn(last) == [9, 9]
    assert sum(walk.drawn(first)) == 12 + sum(first.cursors)


def test_a_ledger_of_another_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="version 99"):
        Ledger.from_dict({**a_walk().start(0, 4).to_dict(), "version": 99})


def test_the_walk_of_a_large_epoch_is_quick_to_resume_and_small_to_store() -> None:
    lengths = np.random.default_rng(0).integers(5, SEQUENCE_LEN, 20_000).tolist()
    walk = a_walk([lengths])
    *_, (_, ledger) = (step for step, _ in zip(walk.steps(walk.start(0, 8)), range(500), strict=False))
    assert len(ledger.open_packs) <= 64
    assert len(json.dumps(ledger.to_dict())) < 4000
