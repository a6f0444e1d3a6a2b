from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surogate.batches import TokenRow
from surogate.data import row_writer
from surogate.data.row_store import RowStore
from surogate.data.row_writer import COLUMNS, RowWriter, write_store

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


@pytest.fixture(params=["mapped", "in memory"])
def rows_in(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Stores rows, in a folder or in memory, with a buffer of a few tokens."""
    monkeypatch.setattr(row_writer, "_BUFFERED_TOKENS", 10)

    def store(rows: list[TokenRow]) -> RowStore:
        if request.param == "in memory":
            return RowStore.build(rows)
        return stored(tmp_path, rows, np.uint16)

    return store


def stored(folder: Path, rows: list[TokenRow], dtype: type = np.int32) -> RowStore:
    """Write rows into a folder, a document each, where next_token does not tie them."""

    def fill(writer: RowWriter) -> dict[str, object]:
        for number, row in enumerate(rows):
            writer.add(row)
            if row.next_token is None:
                writer.end_document(f"some/file.jsonl:{number}", number * 7)
        return {"type": "text"}

    write_store(folder, dtype, fill)
    return RowStore.open(folder)


def random_rows(count: int = 40) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    rows = [
        TokenRow(rng.integers(0, 2**16, n).astype(np.int32), rng.random(n) < 0.5) for n in rng.integers(1, 9, count)
    ]
    for row in range(0, count - 1, 3):
        object.__setattr__(rows[row], "next_token", int(rows[row + 1].input_ids[0]))
    return rows


def same(left: TokenRow, right: TokenRow) -> bool:
    same_arrays = np.array_equal(left.input_ids, right.input_ids) and np.array_equal(left.loss_mask, right.loss_mask)
    return same_arrays and left.next_token == right.next_token and left.input_ids.dtype == right.input_ids.dtype


def test_rows_are_written_as_they_come_and_read_back(rows_in: object) -> None:
    rows = random_rows()
    store = rows_in(rows)  # type: ignore[operator]
    assert len(store) == len(rows)
    assert all(same(store[i], row) for i, row in enumerate(rows))
    expected = [np.count_nonzero(row.loss_mask[1:]) + (row.next_token is not None) for row in rows]
    assert store.num_loss_tokens.tolist() == expected


def test_a_selection_shows_its_rows_in_its_order(rows_in: object) -> None:
    rows = random_rows()
    store = rows_in(rows)  # type: ignore[operator]
    part = store.select(np.arange(len(rows))[::-2]).select(np.array([3, 0, 5]))
    chosen = np.arange(len(rows))[::-2][[3, 0, 5]]
    assert all(same(part[i], rows[row]) for i, row in enumerate(chosen))
    for of_part, of_store in ((part.lengths, store.lengths), (part.num_loss_tokens, store.num_loss_tokens)):
        assert of_part.tolist() == of_store[chosen].tolist()
    assert part.documents.tolist() == store.documents[chosen].tolist()
    assert [part.origin(i) for i in range(3)] == [store.origin(int(row)) for row in chosen]


def test_the_fingerprint_of_a_selection_is_that_of_its_rows_and_their_order() -> None:
    store = RowStore.build(random_rows())
    selections = [np.arange(5), np.arange(6), np.arange(5)[::-1], np.arange(1, 6)]
    prints = [store.select(rows).fingerprint for rows in selections]
    assert len({store.fingerprint, *prints}) == 5
    assert store.select(np.arange(len(store))) is store


def test_where_the_rows_lie_changes_no_fingerprint(tmp_path: Path) -> None:
    rows = random_rows()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    mapped = stored(tmp_path / "a", rows)
    assert mapped.fingerprint == RowStore.build(rows).fingerprint
    assert stored(tmp_path / "b", rows).fingerprint == mapped.fingerprint


def test_small_vocabularies_take_two_bytes_a_token(tmp_path: Path) -> None:
    store = stored(tmp_path, random_rows(), np.uint16)
    assert (tmp_path / "tokens").stat().st_size == 2 * store.lengths.sum()


def test_a_store_in_a_folder_pickles_by_its_path(tmp_path: Path) -> None:
    rows = random_rows(200)
    store = stored(tmp_path, rows).select(np.arange(3, 9))
    content = pickle.dumps(store)
    assert len(content) < 600
    assert all(same(pickle.loads(content)[i], rows[i + 3]) for i in range(6))
    in_memory = RowStore.build(rows)
    assert same(pickle.loads(pickle.dumps(in_memory))[1], rows[1])


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused(tmp_path: Path, name: str, change: int) -> None:
    stored(tmp_path, random_rows())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] if change < 0 else content + b"x")
    with pytest.raises(ValueError, match=f"{name} has .* bytes instead of {len(content)}"):
        RowStore.open(tmp_path)


@pytest.mark.parametrize(
    "origin", ["a.jsonl:17", "a.jsonl:row 3", "hub[train]:row 0", "a", "a:007", "x:" + "9" * 30, ""]
)
def test_an_origin_comes_back_as_it_was(tmp_path: Path, origin: str) -> None:
    def fill(writer: RowWriter) -> dict[str, object]:
        for _ in range(2):
            writer.add(TokenRow(np.array([1, 2], np.int32), np.array([False, True])))
            writer.end_document(origin, 0)
        return {}

    write_store(tmp_path, np.int32, fill)
    assert RowStore.open(tmp_path).origin(1) == origin


def test_a_document_without_rows_leaves_no_trace(tmp_path: Path) -> None:
    def fill(writer: RowWriter) -> dict[str, object]:
        writer.end_document("a:1", 5)
        writer.add(TokenRow(np.array([1, 2], np.int32), np.array([False, True])))
        writer.end_document("a:2", 6)
        writer.end_document("a:3", 7)
        return {"n": 1}

    write_store(tmp_path, np.int32, fill)
    store = RowStore.open(tmp_path)
    assert (store.document_hashes.tolist(), store.origin(0), store.info) == ([6], "a:2", {"n": 1})


def test_an_empty_store_can_be_read(tmp_path: Path) -> None:
    assert len(stored(tmp_path, [])) == 0
    assert RowStore.build([]).lengths.tolist() == []
