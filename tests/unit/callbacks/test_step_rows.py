"""The way from a packed batch back to its rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support.tiny import random_rows

from surogate.batches import StepBatch, TokenRow
from surogate.callbacks.step_rows import describe_step, name_rows, save_batch
from surogate.data.row_store import RowStore
from surogate.data.step_batches import StepBatchDataset, StepPlan


def packed() -> tuple[StepBatch, Any]:
    """Two micro-batches of packs from two sources, and one that is empty; row ids 0 to 3 are of a, 4 to 6 of b."""
    stores = {"a": RowStore.build(random_rows(4)), "b": RowStore.build(random_rows(3, seed=1))}
    dataset = StepBatchDataset(list(stores.values()), pad_token_id=0)
    plan = StepPlan(micro_batches=(([5, 0], [3]), ([6],), ()), packing_efficiency=1.0)
    return dataset[plan], SimpleNamespace(train_stores=stores)


def losses(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value) for value in values]


def names(described: list[dict[str, Any]]) -> list[list[str]]:
    return [[f"{row['dataset']} {row['origin']}" for row in micro["rows"]] for micro in described]


def test_packed_rows_are_dealt_back_to_their_micro_batches() -> None:
    step_batch, data = packed()
    described = describe_step(step_batch, data, losses(1.0, 2.0, 0.0))
    assert names(described) == [["b row 1", "a row 0", "a row 3"], ["b row 2"], []]
    tokens = [sum(row["tokens"] for row in micro["rows"]) for micro in described]
    assert tokens == [micro_batch.num_tokens for micro_batch in step_batch.micro_batches]


def test_a_message_names_the_rows_of_the_losses_that_are_not_finite() -> None:
    step_batch, data = packed()
    ranks = [describe_step(step_batch, data, losses(1.0, float("nan"), 0.0))]
    assert ranks[0][1]["loss_sum"] == "nan"
    assert name_rows(ranks) == "row 2"


def test_where_all_are_finite_the_highest_mean_loss_comes_first() -> None:
    step_batch, data = packed()
    assert name_rows([describe_step(step_batch, data, losses(1.0, 500.0, 0.0))]) == "row 2, row 1, row 0, row 3"
    assert name_rows([describe_step(step_batch, data, losses(500.0, 1.0, 0.0))]) == "row 1, row 0, row 3, row 2"


def test_a_message_is_short_and_says_how_many_more_there_are() -> None:
    stores = {"a": RowStore.build([TokenRow(row.input_ids, row.loss_mask) for row in random_rows(12)])}
    batch = StepBatchDataset(list(stores.values()), 0)[StepPlan(((list(range(12)),),), 1.0)]
    text = name_rows([describe_step(batch, SimpleNamespace(train_stores=stores), losses(1.0))])
    assert text == "row 0, row 1, row 2, row 3, row 4 and 7 more"


def test_without_a_data_module_rows_have_numbers_and_without_a_batch_no_names() -> None:
    step_batch, _ = packed()
    assert name_rows([describe_step(step_batch, None, losses(1.0, 1.0, 0.0))]).startswith("row 1 of source 1, row 0 of")
    assert name_rows([describe_step(None, None, [])]) == "not known"


def test_the_batch_is_kept_as_plain_tensors(tmp_path: Path) -> None:
    step_batch, _ = packed()
    save_batch(step_batch, tmp_path / "health/step_1.rank_0.pt")
    kept = torch.load(tmp_path / "health/step_1.rank_0.pt", weights_only=True)
    assert [micro["num_tokens"] for micro in kept] == [m.num_tokens for m in step_batch.micro_batches]
    assert torch.equal(kept[0]["input_ids_BT"], step_batch.micro_batches[0].input_ids_BT)
