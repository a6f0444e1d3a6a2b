"""Which rows are validated on instead of trained on.

What is not here: how they are read (row_store.py). The one idea: **the side is a property of the content.** The hash of
a document decides, against one threshold for all sources, and whatever is moved afterwards moves wherever it stands. So
equal documents fall on the same side in all sources, and rows added later move no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surogate.data.row_store import RowStore


def held_out(stores: Sequence[RowStore], fraction: float, seed: int) -> list[np.ndarray]:
    """Choose the rows of each source that are held out.

    Where a whole source would fall on one side, its lowest or highest document is moved to the other, in all sources.
    Of a text that is the only document of its source the last rows are held out.

    Args:
        stores: the training sources.
        fraction: of the documents, on average; above 0 it takes something of every source that has two different
            documents or two rows of one text, unless another source needs it for training.
        seed: eval_seed.

    Returns:
        (rows,) bool of each source; never all true.
    """
    chosen = [np.zeros(len(store), dtype=bool) for store in stores]
    if fraction == 0:
        return chosen
    hashes = [_mixed(store.document_hashes, seed) for store in stores]
    threshold = np.uint64(int(fraction * 2**64))
    split = _split_texts(stores, hashes)
    moved_out, moved_in = _moved(hashes, threshold, split)
    for store, of_documents, rows in zip(stores, hashes, chosen, strict=True):
        is_out = ((of_documents < threshold) | np.isin(of_documents, moved_out)) & ~np.isin(of_documents, moved_in)
        rows[:] = is_out[store.documents]
        for number in np.flatnonzero(np.isin(of_documents, split)):
            (places,) = np.nonzero(store.documents == number)
            kept = len(places) - max(1, round(fraction * len(places)))
            rows[places] = np.arange(len(places)) >= max(kept, 1)
    return chosen


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Give each hash another value for each seed (the finaliser of splitmix64, which is a bijection)."""
    mixed: np.ndarray = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _split_texts(stores: Sequence[RowStore], hashes: Sequence[np.ndarray]) -> np.ndarray:
    """Give the hashes of the texts that stand alone in their source and have rows to share."""
    alone = [
        of_documents[0]
        for store, of_documents in zip(stores, hashes, strict=True)
        if store.info.get("type") == "text" and len(of_documents) == 1 and len(store) > 1
    ]
    return np.array(alone, dtype=np.uint64)


def _moved(hashes: Sequence[np.ndarray], threshold: np.uint64, split: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the hashes that are held out, and those that are trained on, although the threshold says otherwise.

    Training comes last, because a source without validation is poorer, and one without training is none.
    """
    distinct = [np.setdiff1d(of_documents, split) for of_documents in hashes]
    out = [values[0] for values in distinct if len(values) > 1 and not (values < threshold).any()]
    moved_out = np.array(out, dtype=np.uint64)
    kept = [
        values[-1]
        for values, of_documents in zip(distinct, hashes, strict=True)
        if len(values) == len(np.unique(of_documents)) and ((values < threshold) | np.isin(values, moved_out)).all()
    ]
    return moved_out, np.array(kept, dtype=np.uint64)
