from __future__ import annotations

import numpy as np
import torch

from surogate.batches import IGNORE, MicroBatch, PackedRow, StepBatch, TokenRow


def row(ids: list[int], mask: list[int]) -> TokenRow:
    return TokenRow(np.array(ids, dtype=np.int32), np.array(mask, dtype=bool))


def test_labels_are_the_next_token_and_never_cross_a_document() -> None:
    packed = PackedRow.from_rows([row([1, 2, 3], [0, 1, 1]), row([4, 5], [1, 1])])
    assert packed.input_ids_T.tolist() == [1, 2, 3, 4, 5]
    # Token 4 is marked as a target, but nothing of its own document precedes it.
    assert packed.labels_T.tolist() == [2, 3, IGNORE, 5, IGNORE]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert packed.document_ends.tolist() == [3, 5]


def test_padding_is_a_document_of_its_own_even_where_the_pad_token_is_the_end_token() -> None:
    end = 2
    long = PackedRow.from_rows([row([7, 8, 9, end], [0, 0, 1, 1])])
    short = PackedRow.from_rows([row([5, end], [0, 1])])
    batch = MicroBatch.collate([long, short], pad_token_id=end)
    assert batch.input_ids_BT.tolist() == [[7, 8, 9, end], [5, end, end, end]]
    assert batch.labels_BT.tolist() == [[IGNORE, 9, end, IGNORE], [end, IGNORE, IGNORE, IGNORE]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 8]
    assert batch.loss_positions.tolist() == [1, 2, 4]
    assert (batch.max_document_len, batch.num_tokens, batch.num_loss_tokens) == (4, 6, 3)


def test_a_batch_can_be_padded_to_a_fixed_width() -> None:
    batch = MicroBatch.collate([PackedRow.from_rows([row([5, 6], [0, 1])])], pad_token_id=0, pad_to=5)
    assert batch.input_ids_BT.shape == (1, 5)
    assert batch.cu_seqlens.tolist() == [0, 2, 5]
    assert (batch.max_document_len, batch.num_tokens) == (3, 2)


def test_a_batch_without_rows_still_has_a_shape_and_supervises_nothing() -> None:
    batch = MicroBatch.collate([], pad_token_id=3)
    assert batch.input_ids_BT.tolist() == [[3]]
    assert batch.cu_seqlens.tolist() == [0, 1]
    assert (batch.num_tokens, batch.num_loss_tokens) == (0, 0)


def test_a_step_counts_over_its_micro_batches_and_moves_all_of_them() -> None:
    first = MicroBatch.collate([PackedRow.from_rows([row([1, 2, 3], [0, 1, 1])])], pad_token_id=0)
    step = StepBatch(micro_batches=(first, MicroBatch.collate([], pad_token_id=0)), ledger={"step": 1})
    assert (step.num_tokens, step.num_loss_tokens) == (3, 2)
    moved = step.to(torch.device("meta"), non_blocking=True)
    assert all(micro_batch.input_ids_BT.is_meta for micro_batch in moved.micro_batches)
    assert moved.ledger == {"step": 1}
    assert moved.micro_batches[0].num_tokens == 3
