from __future__ import annotations

import numpy as np
import torch
from support.tiny import random_rows, step_batch

from surogate.batches import IGNORE
from surogate.verification.recut import apart, packed, packs_of, with_micro_batches


def batch():
    rows = random_rows(8, seed=3)
    return step_batch([[rows[0:2], rows[2:3]], [rows[3:6], rows[6:8]]])


def supervised(of) -> list[tuple[int, ...]]:
    """The documents of a batch as (input, label) numbers, in an order of their own."""
    return sorted(
        tuple(np.concatenate([document.input_ids_T, document.labels_T]).tolist())
        for pack in packs_of(of)
        for document in pack
    )


def test_the_documents_of_a_batch_are_those_of_its_rows_without_padding() -> None:
    found = packs_of(batch())
    assert [len(pack) for pack in found] == [2, 1, 3, 2]
    lengths = [len(row) for row in random_rows(8, seed=3)]
    assert [len(document) for pack in found for document in pack] == lengths


def test_a_batch_that_is_cut_anew_has_the_same_documents_and_the_same_supervised_tokens() -> None:
    whole = batch()
    packs = packs_of(whole)
    for rows, size in ((packs, 1), (packs, 4), (apart(packs), 2), (packed(apart(packs), 64), 2)):
        other = with_micro_batches(whole, rows, size)
        assert other.num_loss_tokens == whole.num_loss_tokens
        assert supervised(other) == supervised(whole)
        assert len(other.micro_batches) == -(-len(rows) // size)


def test_positions_restart_at_each_document() -> None:
    (micro_batch,) = with_micro_batches(batch(), packs_of(batch())[:1], 1).micro_batches
    first, second = (len(row) for row in random_rows(8, seed=3)[:2])
    assert micro_batch.position_ids_BT[0].tolist() == [*range(first), *range(second)]
    assert micro_batch.cu_seqlens.tolist() == [0, first, first + second]


def test_packing_fills_rows_up_to_their_capacity_and_no_further() -> None:
    rows = packed(packs_of(batch()), 40)
    assert all(sum(map(len, row)) <= 40 for row in rows)
    assert len(rows) < 8 == len(apart(rows))


def test_what_supervises_nothing_is_left_out() -> None:
    whole = batch()
    whole.micro_batches[0].labels_BT[0] = torch.full_like(whole.micro_batches[0].labels_BT[0], IGNORE)
    assert [len(pack) for pack in packs_of(whole)] == [1, 3, 2]
