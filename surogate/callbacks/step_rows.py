"""Which rows a step was made of, and the files that keep them for a person to look at.

What is not here: why a step is worth looking at (health.py).

The one idea: a batch names its rows by source and number, and the row store knows each row's file and line, so the way
back through packing needs nothing but the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surogate.batches import MicroBatch, StepBatch

Described = dict[str, Any]
"""A micro-batch as plain values: the sum of its losses and their count, whether it is finite, and its rows."""

SHOWN_ROWS = 5
"""Rows that a message names; the file has all of them."""


def describe_step(step_batch: StepBatch | None, data: Any, micro_losses: Sequence[Tensor]) -> list[Described]:
    """Name the rows of each micro-batch of a rank.

    Args:
        step_batch: the rank's; None gives nothing.
        data: the run's data module; without one that knows its rows, their numbers are all there is.
        micro_losses: sums, one a micro-batch.
    """
    if step_batch is None:
        return []
    if hasattr(step_batch, "batch"):
        per_micro = _rollouts(step_batch)
    else:
        per_micro = _rows(step_batch, list(getattr(data, "train_stores", {}).items()))
    described = []
    for micro_batch, sum_of_losses, rows in zip(step_batch.micro_batches, micro_losses, per_micro, strict=True):
        loss = sum_of_losses.item()
        is_finite = math.isfinite(loss)
        of_losses = {"loss_sum": loss if is_finite else str(loss), "loss_tokens": micro_batch.num_loss_tokens}
        described.append({**of_losses, "is_finite": is_finite, "rows": rows})
    return described


def _rows(step_batch: StepBatch, stores: list[tuple[str, Any]]) -> list[list[Described]]:
    """Deal the rows of a step to its micro-batches, whose tokens are those of their rows."""
    if not stores:
        named = [{"source": source, "row": row} for source, row in step_batch.row_ids]
        return [named, *([] for _ in step_batch.micro_batches[1:])]
    left = iter(step_batch.row_ids)
    per_micro = []
    for micro_batch in step_batch.micro_batches:
        rows: list[Described] = []
        while sum(row["tokens"] for row in rows) < micro_batch.num_tokens:
            source, row = next(left)
            name, store = stores[source]
            rows.append({"dataset": name, "origin": store.origin(row), "row": row, "tokens": int(store.lengths[row])})
        per_micro.append(rows)
    return per_micro


def _rollouts(step_batch: Any) -> list[list[Described]]:
    """Name the rollouts of a step, all with the first micro-batch: how they were dealt is not kept."""
    rollouts = [
        {
            "dataset": rollout.env,
            "origin": rollout.example_id,
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "oldest_version": rollout.oldest_version,
        }
        for rollout in step_batch.batch.rollouts
    ]
    return [rollouts, *([] for _ in step_batch.micro_batches[1:])]


def name_rows(ranks: Iterable[list[Described]]) -> str:
    """Name the rows of a step in a message.

    Where micro-batches have a loss that is not finite, it is their rows; otherwise all, the highest loss first.
    """
    micro_batches = [micro for rank in ranks for micro in rank if micro["rows"]]
    guilty = [micro for micro in micro_batches if not micro["is_finite"]]
    by_loss = guilty or sorted(micro_batches, key=_mean_loss, reverse=True)
    names = list(dict.fromkeys(_name(row) for micro in by_loss for row in micro["rows"]))
    if not names:
        return "not known"
    more = len(names) - SHOWN_ROWS
    return ", ".join(names[:SHOWN_ROWS]) + (f" and {more:,} more" if more > 0 else "")


def _mean_loss(micro_batch: Described) -> float:
    return float(micro_batch["loss_sum"]) / max(int(micro_batch["loss_tokens"]), 1)


def _name(row: Described) -> str:
    return str(row.get("origin") or f"row {row['row']} of source {row['source']}")


def save_batch(step_batch: StepBatch, path: Path) -> None:
    """Write the tensors of a rank's micro-batches, readable with `torch.load(path)`.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        torch.save([_plain(micro_batch) for micro_batch in step_batch.micro_batches], file)


def _plain(micro_batch: MicroBatch) -> dict[str, Any]:
    values = {field.name: getattr(micro_batch, field.name) for field in fields(micro_batch)}
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
