"""The documents of a global batch, cut into micro-batches another way.

The one idea: labels are shifted already and documents never see each other, so a document may lie anywhere.

Shape legend: T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from surogate.batches import IGNORE, MicroBatch, PackedRow, StepBatch


@dataclass(frozen=True)
class Document:
    """A document with its labels, both (T,)."""

    input_ids_T: np.ndarray
    labels_T: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids_T)


Pack = list[Document]


def packs_of(step_batch: StepBatch) -> list[Pack]:
    """Return the packed rows of a batch as documents; those that supervise nothing, and padding, are left out."""
    packs = [pack for micro_batch in step_batch.micro_batches for pack in _packs(micro_batch)]
    return [pack for pack in packs if pack]


def _packs(micro_batch: MicroBatch) -> list[Pack]:
    width = micro_batch.input_ids_BT.shape[1]
    ids, labels = (part.cpu().numpy().reshape(-1) for part in (micro_batch.input_ids_BT, micro_batch.labels_BT))
    packs: list[Pack] = [[] for _ in range(len(ids) // width)]
    for start, end in pairwise(micro_batch.cu_seqlens.tolist()):
        if (labels[start:end] != IGNORE).any():
            packs[start // width].append(Document(ids[start:end], labels[start:end]))
    return packs


def apart(packs: Sequence[Pack]) -> list[Pack]:
    """Give each document a row of its own."""
    return [[document] for pack in packs for document in pack]


def packed(packs: Sequence[Pack], capacity: int) -> list[Pack]:
    """Lay documents together, in their order, as long as they fit."""
    rows: list[Pack] = []
    for document in (document for pack in packs for document in pack):
        if rows and sum(map(len, rows[-1])) + len(document) <= capacity:
            rows[-1].append(document)
        else:
            rows.append([document])
    return rows


def with_micro_batches(step_batch: StepBatch, packs: Sequence[Pack], size: int) -> StepBatch:
    """Return the batch with these rows, `size` in a micro-batch."""
    starts = range(0, len(packs), size)
    micro_batches = [
        MicroBatch.collate([_row(pack) for pack in packs[start : start + size]], pad_token_id=0) for start in starts
    ]
    return replace(step_batch, micro_batches=tuple(micro_batches))


def _row(pack: Pack) -> PackedRow:
    return PackedRow(
        np.concatenate([document.input_ids_T for document in pack]),
        np.concatenate([document.labels_T for document in pack]),
        np.concatenate([np.arange(len(document)) for document in pack]),
        np.cumsum([len(document) for document in pack]),
    )
