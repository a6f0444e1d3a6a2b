"""From the rollouts of a step to the micro-batches of each rank.

What is not here: losses (losses/grpo.py). The one idea: **a rollout is a document of a packed row**, so the forward
pass is that of supervised fine-tuning. What the loss needs beside it lies in vectors over the supervised tokens, in the
order of `loss_positions`.

Shape legend: N tokens of a micro-batch that train, S rollouts of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from surogate.batches import MicroBatch, PackedRow, StepBatch, TokenRow
from surogate.errors import DataError
from surogate.rl.types import Rollout, RolloutBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMicroBatch(MicroBatch):
    """Packed rollouts.

    Attributes:
        generator_logprobs_N: float32, the engine's log-probability of each token, at its temperature.
        advantages_N: float32, of the rollout that the token belongs to.
        temperatures_N: float32, that the token was sampled at.
        sequence_ids_N: int64, which rollout of the micro-batch, 0 to num_sequences - 1.
        versions_N: int64, policy version that sampled the token.
        num_sequences: S.
    """

    generator_logprobs_N: Tensor
    advantages_N: Tensor
    temperatures_N: Tensor
    sequence_ids_N: Tensor
    versions_N: Tensor
    num_sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStepBatch(StepBatch):
    """A step of reinforcement learning on one rank.

    Attributes:
        step: updates behind the policy that it is for.
        normalisers: this rank's share of what a loss may be divided by: tokens and sequences that the step has, those
            included that teach nothing.
        rollout_metrics: numbers of the whole batch, on every rank alike.
        batch: the rollouts themselves; for records.
    """

    step: int
    normalisers: dict[str, float]
    rollout_metrics: dict[str, float] = field(default_factory=dict)
    batch: RolloutBatch


@dataclass(frozen=True, slots=True)
class Layout:
    """How rollouts are laid into micro-batches.

    Attributes:
        sequence_len: tokens in a packed row.
        rows: packed rows in a micro-batch.
        min_micro_batches: micro-batches of a rank at least.
        world_size: ranks.
        pad_token_id: fills rows.
    """

    sequence_len: int
    rows: int
    min_micro_batches: int
    world_size: int
    pad_token_id: int


def step_batch(batch: RolloutBatch, layout: Layout, rank: int, *, keeps_all: bool) -> RolloutStepBatch:
    """Make the micro-batches of a rank; all ranks get the same number.

    Args:
        batch: the rollouts of the step, the same on every rank.
        layout: sizes.
        rank: whose.
        keeps_all: also lay out rollouts whose advantage is 0. Without a KL term they have no gradient, and leaving
            them out saves their forward and backward pass; they count in the normalisers all the same.

    Raises:
        DataError: a rollout does not fit into a row.
    """
    tagged = [
        (rollout, group.temperature)
        for group in batch.groups
        for rollout in group.rollouts
        if rollout.trains and rollout.num_sampled and (keeps_all or rollout.advantage != 0)
    ]
    for rollout, _ in tagged:
        if _length(rollout) > layout.sequence_len:
            raise DataError(
                f"A rollout of {rollout.example_id} has {_length(rollout)} tokens, and a row of the trainer holds "
                f"sequence_len {layout.sequence_len}. Raise sequence_len, or lower the orchestrator's seq_len to it."
            )
    packs = _pack([_length(rollout) for rollout, _ in tagged], layout.sequence_len)
    per_rank = _deal(packs, [_length(rollout) for rollout, _ in tagged], layout)[rank]
    micro_batches = tuple(
        _collate([[tagged[index] for index in pack] for pack in micro], layout.pad_token_id) for micro in per_rank
    )
    counted = [rollout for rollout in batch.rollouts if rollout.trains and rollout.num_sampled]
    totals = {
        "tokens": float(sum(rollout.num_sampled for rollout in counted)),
        "sequences": float(len(counted)),
    }
    width = sum(_length(rollout) for rollout, _ in tagged) / max(1, len(packs) * layout.sequence_len)
    return RolloutStepBatch(
        micro_batches=micro_batches,
        ledger=batch.ledger,
        packing_efficiency=width,
        step=batch.step,
        normalisers={name: value / layout.world_size for name, value in totals.items()},
        rollout_metrics=batch.metrics,
        batch=batch,
    )


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt_ids) + len(rollout.completion_ids)


def _pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Lay documents into rows by first fit, the longest first; returns indices."""
    rows: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for place, (used, row) in enumerate(rows):
            if used + lengths[index] <= capacity:
                row.append(index)
                rows[place] = (used + lengths[index], row)
                break
        else:
            rows.append((lengths[index], [index]))
    return [row for _, row in rows]


def _deal(packs: list[list[int]], lengths: Sequence[int], layout: Layout) -> list[list[list[list[int]]]]:
    """Deal rows to the micro-batches of the ranks, each to the one with the fewest tokens that has room."""
    per_rank = max(-(-len(packs) // (layout.world_size * layout.rows)), layout.min_micro_batches)
    micros: list[list[list[int]]] = [[] for _ in range(per_rank * layout.world_size)]
    loads = [0] * len(micros)
    for pack in sorted(packs, key=lambda pack: -sum(lengths[index] for index in pack)):
        open_ones = [index for index, micro in enumerate(micros) if len(micro) < layout.rows]
        lightest = min(open_ones, key=lambda index: loads[index])
        micros[lightest].append(pack)
        loads[lightest] += sum(lengths[index] for index in pack)
    return [micros[rank :: layout.world_size] for rank in range(layout.world_size)]


def _collate(packs: list[list[tuple[Rollout, float]]], pad_token_id: int) -> RolloutMicroBatch:
    rows = [PackedRow.from_rows([_token_row(rollout) for rollout, _ in pack]) for pack in packs]
    plain = MicroBatch.collate(rows, pad_token_id)
    tagged = [item for pack in packs for item in pack]
    sizes = [rollout.num_sampled for rollout, _ in tagged]
    values = {name: getattr(plain, name) for name in (f.name for f in fields(MicroBatch))}
    return RolloutMicroBatch(
        **values,
        generator_logprobs_N=_per_token([_sampled(r, r.logprobs) for r, _ in tagged], torch.float32),
        versions_N=_per_token([_sampled(r, r.versions) for r, _ in tagged], torch.int64),
        advantages_N=_repeated([rollout.advantage for rollout, _ in tagged], sizes, torch.float32),
        temperatures_N=_repeated([temperature for _, temperature in tagged], sizes, torch.float32),
        sequence_ids_N=_repeated(list(range(len(tagged))), sizes, torch.int64),
        num_sequences=len(tagged),
    )


def _token_row(rollout: Rollout) -> TokenRow:
    assert rollout.prompt_ids, "the first token of a sequence cannot be scored"
    ids = np.array([*rollout.prompt_ids, *rollout.completion_ids], dtype=np.int32)
    return TokenRow(ids, np.array([False] * len(rollout.prompt_ids) + rollout.sampled))


def _sampled(rollout: Rollout, values: Sequence[float]) -> list[float]:
    return [value for value, is_sampled in zip(values, rollout.sampled, strict=True) if is_sampled]


def _per_token(values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for part in values for value in part], dtype=dtype)


def _repeated(values: Sequence[float], sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.repeat_interleave(torch.tensor(values, dtype=dtype), torch.tensor(sizes, dtype=torch.int64))


def single_row(rollout: Rollout, temperature: float, pad_token_id: int) -> RolloutMicroBatch:
    """Lay out one rollout alone, as the parity probe scores it."""
    return _collate([[(replace(rollout), temperature)]], pad_token_id)


def all_sampled(rollout: Rollout) -> Rollout:
    """Return a rollout with every token after the first as one to score."""
    ids = [*rollout.prompt_ids, *rollout.completion_ids]
    size = len(ids) - 1
    return replace(
        rollout,
        prompt_ids=ids[:1],
        completion_ids=ids[1:],
        sampled=[True] * size,
        logprobs=[0.0] * size,
        versions=[0] * size,
    )
