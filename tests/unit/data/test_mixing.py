from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surogate.data.mixing import draws_per_epoch, epoch_order, shuffled
from surogate.errors import ConfigError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(SIZES, st.integers(0, 2**40), st.integers(0, 5))
def test_without_weights_an_epoch_is_every_row_once(sizes: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(sizes, None, seed, epoch)
    assert sorted(order.row_ids.tolist()) == list(range(sum(sizes)))
    starts = np.cumsum([0, *sizes])
    assert np.array_equal(np.searchsorted(starts, order.row_ids, side="right") - 1, order.sources)


@given(SIZES, st.data())
def test_with_weights_an_epoch_keeps_its_length_and_the_shares_follow(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    draws = draws_per_epoch(sizes, weights)
    assert sum(draws) == sum(sizes)
    exact = np.array(weights) / sum(weights) * sum(sizes)
    assert np.abs(np.array(draws) - exact).max() < 1
    assert np.bincount(epoch_order(sizes, weights, 1, 3).sources, minlength=len(sizes)).tolist() == draws


def test_equal_weights_mean_equal_shares_of_rows() -> None:
    assert draws_per_epoch([10, 30], [1.0, 1.0]) == [20, 20]
    assert draws_per_epoch([10, 30], None) == [10, 30]


def test_a_source_that_repeats_shows_every_row_before_any_again() -> None:
    drawn: list[int] = []
    for epoch in range(4):
        order = epoch_order([7, 93], [1.0, 2.0], seed=5, epoch=epoch)
        drawn += order.row_ids[order.sources == 0].tolist()
    assert len(drawn) == 4 * 33
    for seen in range(1, len(drawn) + 1):
        counts = Counter(drawn[:seen])
        assert max(counts.values()) - min(counts[row] for row in range(7)) <= 1


def test_a_subsampled_source_goes_on_in_the_next_epoch_with_the_rows_it_left_out() -> None:
    first, second = (epoch_order([10, 10], [1.0, 3.0], seed=5, epoch=epoch) for epoch in (0, 1))
    rows = [set(order.row_ids[order.sources == 0].tolist()) for order in (first, second)]
    assert [len(part) for part in rows] == [5, 5]
    assert not rows[0] & rows[1]


def test_sources_are_interleaved_evenly() -> None:
    order = epoch_order([10, 30], None, seed=1, epoch=0)
    assert all(np.count_nonzero(order.sources[start : start + 4] == 0) == 1 for start in range(0, 40, 4))


def test_a_shuffle_depends_on_seed_source_and_round_and_on_nothing_else() -> None:
    base = shuffled(50, seed=1, source=0, round_index=0)
    assert np.array_equal(base, shuffled(50, seed=1, source=0, round_index=0))
    for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert not np.array_equal(base, shuffled(50, *other))


def test_the_shuffle_is_the_same_on_every_machine_and_version() -> None:
    assert shuffled(8, seed=1234, source=0, round_index=0).tolist() == [7, 3, 0, 1, 4, 2, 5, 6]


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0]])
def test_weights_that_describe_no_mixture_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weight"):
        draws_per_epoch([3, 3], weights)


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    assert set(epoch_order([3, 5], [0.0, 1.0], seed=1, epoch=0).sources.tolist()) == {1}
