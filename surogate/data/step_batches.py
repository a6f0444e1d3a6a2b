"""From global batches of packs to the StepBatch of one rank.

What is not here: which rows come when (ledger.py). The one idea: the main process decides, the workers fetch. A
StepPlan names the rows of one step and the ledger after it; making the tensors needs nothing else, so workers are
stateless and a prefetched batch that is never trained leaves no trace.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from surogate.batches import MicroBatch, PackedRow, StepBatch
from surogate.data.ledger import Ledger, Pack, Walk
from surogate.data.row_store import RowStore


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of each global batch a rank takes."""

    world_size: int
    rank: int
    micro_batch_size: int

    @property
    def packs_per_round(self) -> int:
        """Packs that all ranks together take in one micro-batch each."""
        return self.world_size * self.micro_batch_size

    def of(self, packs: Sequence[Pack]) -> tuple[tuple[Pack, ...], ...]:
        """Deal the packs of a global batch.

        Pack j goes to micro-batch k, rank r, slot b with j = (k * world_size + r) * micro_batch_size + b. Where packs
        run out, ranks get micro-batches that are short or empty; their count is the same everywhere.
        """
        rounds = range(0, len(packs), self.packs_per_round)
        starts = [start + self.rank * self.micro_batch_size for start in rounds]
        return tuple(tuple(packs[start : start + self.micro_batch_size]) for start in starts)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step on one rank; see StepBatch for the other fields."""

    micro_batches: tuple[tuple[Pack, ...], ...]
    packing_efficiency: float
    ledger: dict[str, Any] = field(default_factory=dict)


class StepPlanSampler:
    """Yields this rank's plans from the present position to the end of its epoch.

    Args:
        walk: the stream of global batches.
        position: gives the position to start from, asked anew for each pass.
        share: this rank's.
    """

    def __init__(self, walk: Walk, position: Callable[[], Ledger], share: Share) -> None:
        self._walk = walk
        self._position = position
        self._share = share

    def __iter__(self) -> Iterator[StepPlan]:
        for packs, ledger in self._walk.steps(self._position()):
            yield StepPlan(self._share.of(packs), packing_efficiency(self._walk, packs), ledger.to_dict())


def plans_in_file_order(walk: Walk, share: Share) -> list[StepPlan]:
    """Plan a validation pass: rows in order, one micro-batch a step, the same count on every rank."""
    packs = list(walk.packs_in_file_order())
    size = share.packs_per_round
    batches = [packs[start : start + size] for start in range(0, len(packs), size)]
    return [StepPlan(share.of(batch), packing_efficiency(walk, batch)) for batch in batches]


def packing_efficiency(walk: Walk, packs: Sequence[Pack]) -> float:
    """Give real tokens / (packs x sequence_len)."""
    tokens = sum(int(walk.lengths[pack].sum()) for pack in packs)
    return tokens / (len(packs) * walk.spec.sequence_len)


class StepBatchDataset(Dataset[StepBatch]):
    """Makes the tensors of a plan.

    Args:
        stores: the rows of each source.
        pad_token_id: fills packs up to the width of their micro-batch.
    """

    def __init__(self, stores: Sequence[RowStore], pad_token_id: int) -> None:
        self._stores = stores
        self._first_rows = [0, *accumulate(len(store) for store in stores)]
        self._pad_token_id = pad_token_id

    def __getitem__(self, plan: StepPlan) -> StepBatch:
        places = [[[self._place(row_id) for row_id in pack] for pack in packs] for packs in plan.micro_batches]
        return StepBatch(
            micro_batches=tuple(self._micro_batch(packs) for packs in places),
            ledger=plan.ledger,
            packing_efficiency=plan.packing_efficiency,
            row_ids=tuple(place for packs in places for pack in packs for place in pack),
        )

    def _place(self, row_id: int) -> tuple[int, int]:
        source = bisect_right(self._first_rows, row_id) - 1
        return source, row_id - self._first_rows[source]

    def _micro_batch(self, packs: list[list[tuple[int, int]]]) -> MicroBatch:
        rows = [PackedRow.from_rows([self._stores[source][row] for source, row in pack]) for pack in packs]
        return MicroBatch.collate(rows, self._pad_token_id)


class StepBatchLoader:
    """An iterable of StepBatches.

    Not a DataLoader itself, so that Lightning neither swaps its sampler for a distributed one nor asks for a length
    that an epoch of packs does not have.

    Args:
        dataset: makes the batches.
        plans: what to make; a fresh pass for each iteration. Only a sized one gives the loader a length.
        num_workers: processes that prefetch.
    """

    def __init__(self, dataset: StepBatchDataset, plans: Iterable[StepPlan], num_workers: int) -> None:
        self._dataset = dataset
        self._plans = plans
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._plans)  # type: ignore[arg-type]  # Lightning takes the TypeError for "no length"

    def __iter__(self) -> Iterator[StepBatch]:
        yield from DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._plans,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            # Without one of its own the loader draws a seed from torch's global generator at every pass, and a resumed
            # run would see other dropout masks than an uninterrupted one.
            generator=torch.Generator(),
        )
