from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surogate.batches import TokenRow
from surogate.data.held_out import held_out
from surogate.data.row_store import RowStore
from surogate.data.row_writer import COLUMNS, RowWriter


def a_source(contents: Sequence[int], rows_each: int = 1, type_: str = "conversation") -> RowStore:
    """A store with a document of some rows for each content."""
    sinks = {name: io.BytesIO() for name in COLUMNS}
    writer = RowWriter(sinks, np.int32)
    for content in contents:
        for _ in range(rows_each):
            writer.add(TokenRow(np.array([content, 1], np.int32), np.array([False, True])))
        writer.end_document(f"rows:{content}", int(np.random.default_rng(content).integers(2**63)) * 2)
    manifest = writer.finish({"type": type_})
    return RowStore({n: np.frombuffer(sinks[n].getbuffer(), manifest["dtypes"][n]) for n in COLUMNS}, manifest)


def sides(stores: Sequence[RowStore], chosen: Sequence[np.ndarray]) -> tuple[set[int], set[int]]:
    """The contents that are trained on, and those that are held out."""
    train: set[int] = set()
    held: set[int] = set()
    for store, rows in zip(stores, chosen, strict=True):
        for row in range(len(store)):
            (held if rows[row] else train).add(int(store[row].input_ids[0]))
    return train, held


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 1e-9, 1), (3, 1 - 1e-9, 2), (1, 0.5, 0)])
def test_at_least_one_is_held_out_but_never_all(count: int, fraction: float, expected: int) -> None:
    assert held_out([a_source(range(count))], fraction, seed=1)[0].sum() == expected


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_asked_share_is_held_out(fraction: float) -> None:
    for seed in range(3):
        chosen = held_out([a_source(range(1000))], fraction, seed)[0]
        assert chosen.mean() == pytest.approx(fraction, abs=0.05)


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=4),
    st.sampled_from([0.01, 0.1, 0.5, 0.99]),
    st.integers(0, 5),
)
def test_no_content_is_ever_on_both_sides_and_every_source_trains(
    contents: list[list[int]], fraction: float, seed: int
) -> None:
    stores = [a_source(part) for part in contents]
    chosen = held_out(stores, fraction, seed)
    train, held = sides(stores, chosen)
    assert not train & held
    assert not any(rows.all() for rows in chosen)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=2), min_size=1, max_size=4), st.integers(0, 5))
def test_texts_that_stand_alone_are_never_on_both_sides_row_by_row(contents: list[list[int]], seed: int) -> None:
    stores = [a_source(part, rows_each=5, type_="text") for part in contents]
    chosen = held_out(stores, 0.2, seed)
    side: dict[tuple[int, int], bool] = {}
    for store, rows in zip(stores, chosen, strict=True):
        assert not rows.all()
        for row in range(len(store)):
            key = int(store[row].input_ids[0]), row % 5
            assert side.setdefault(key, bool(rows[row])) == rows[row]


def test_of_a_single_text_the_last_rows_are_held_out() -> None:
    chosen = held_out([a_source([7], rows_each=20, type_="text")], 0.1, seed=1)[0]
    assert chosen.tolist() == [False] * 18 + [True] * 2
    assert held_out([a_source([7], rows_each=2, type_="text")], 0.01, seed=1)[0].tolist() == [False, True]
    assert not held_out([a_source([7], rows_each=1, type_="text")], 0.5, seed=1)[0].any()


def test_the_rows_of_one_document_stay_together() -> None:
    chosen = held_out([a_source(range(100), rows_each=3)], 0.3, seed=1)[0].reshape(-1, 3)
    assert (chosen.all(axis=1) == chosen.any(axis=1)).all()


def test_equal_conversations_of_two_sources_fall_on_the_same_side() -> None:
    first, second = a_source(range(60)), a_source(range(30, 300))
    for seed in range(20):
        chosen = held_out([first], 0.2, seed)[0], held_out([second], 0.2, seed)[0]
        assert np.array_equal(chosen[0][30:], chosen[1][:30])


def test_a_ratio_of_zero_holds_nothing_out() -> None:
    assert not held_out([a_source(range(10))], 0.0, seed=1)[0].any()


def test_a_source_of_one_repeated_conversation_is_all_trained_on() -> None:
    assert not held_out([a_source([3] * 5)], 0.5, seed=1)[0].any()


def test_the_choice_follows_the_seed_and_not_the_order() -> None:
    contents = list(range(50))
    chosen = held_out([a_source(contents)], 0.3, seed=1)[0]
    assert np.array_equal(chosen, held_out([a_source(contents[::-1])], 0.3, seed=1)[0][::-1])
    assert not np.array_equal(chosen, held_out([a_source(contents)], 0.3, seed=2)[0])
