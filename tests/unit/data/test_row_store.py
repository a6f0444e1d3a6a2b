from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surogate.batches import TokenRow
from surogate.data.row_store import RowStore

ROWS = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=20), max_size=10)


def as_rows(values: list[list[tuple[int, bool]]]) -> list[TokenRow]:
    return [TokenRow(np.array([i for i, _ in row], np.int32), np.array([m for _, m in row], bool)) for row in values]


@given(ROWS)
def test_rows_come_back_as_they_were_stored(values: list[list[tuple[int, bool]]]) -> None:
    rows = as_rows(values)
    store = RowStore.build(iter(rows))
    assert len(store) == len(rows)
    assert store.lengths.tolist() == [len(row) for row in rows]
    for i, row in enumerate(rows):
        assert np.array_equal(store[i].input_ids, row.input_ids)
        assert np.array_equal(store[i].loss_mask, row.loss_mask)


def test_a_first_token_is_not_counted_as_supervised() -> None:
    store = RowStore.build(as_rows([[(1, True), (2, True)], [(3, True)], [(4, False), (5, True), (6, True)]]))
    assert store.num_loss_tokens.tolist() == [1, 0, 2]


def test_the_fingerprint_changes_with_a_token_a_mask_bit_and_a_boundary() -> None:
    base = [[(1, False), (2, True)], [(3, False), (4, True)]]
    others = [
        [[(1, False), (9, True)], [(3, False), (4, True)]],
        [[(1, False), (2, False)], [(3, False), (4, True)]],
        [[(1, False)], [(2, True), (3, False), (4, True)]],
    ]
    fingerprints = [RowStore.build(as_rows(values)).fingerprint for values in (base, *others)]
    assert len(set(fingerprints)) == 4
    assert RowStore.build(as_rows(base)).fingerprint == fingerprints[0]
