"""The row order of an epoch: which row of which source comes when, before packing.

What is not here: packing rows (packing.py) and remembering the position (ledger.py). The one idea: every source is an
endless stream of shuffles of its rows, and an epoch draws a fixed number from each stream, evenly interleaved. The
order follows from (seed, epoch) alone, so its state is a plain position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surogate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The draws of one epoch.

    Attributes:
        row_ids: (N,) int64, rows numbered through all sources.
        sources: (N,) int64, the source of each.
    """

    row_ids: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.row_ids)


def draws_per_epoch(num_rows: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Say how many rows of each source an epoch holds.

    Without weights that is every row once. Otherwise the shares of rows follow the weights while the epoch keeps its
    length: small sources repeat, large ones are subsampled, and what one epoch leaves out comes first in the next.

    Raises:
        ConfigError: a negative weight, or no positive one.
    """
    if weights is None:
        return list(num_rows)
    if any(weight < 0 for weight in weights) or not any(weight > 0 for weight in weights):
        raise ConfigError(f"weight: got {list(weights)}; every weight must be 0 or more and at least one above 0.")
    total = sum(num_rows)
    exact = total * np.asarray(weights, dtype=np.float64) / sum(weights)
    draws = np.floor(exact).astype(int)
    largest_remainders = np.argsort(draws - exact, kind="stable")[: total - draws.sum()]
    draws[largest_remainders] += 1
    return draws.tolist()


def shuffled(num_rows: int, seed: int, source: int, round_index: int) -> np.ndarray:
    """Shuffle the rows of a source: a permutation that depends on nothing but the arguments.

    Sorts Philox's raw 64-bit stream, which numpy keeps stable across versions (its `permutation` it does not).
    """
    stream = np.random.Philox(key=[seed % 2**64, source], counter=[0, 0, 0, round_index])
    return np.argsort(stream.random_raw(num_rows), kind="stable")


def epoch_order(num_rows: Sequence[int], weights: Sequence[float] | None, seed: int, epoch: int) -> EpochOrder:
    """Order the draws of an epoch.

    Args:
        num_rows: rows of each source.
        weights: one a source, or None (see draws_per_epoch).
        seed: of the shuffles.
        epoch: counted from 0.
    """
    row_ids, sources, places = [], [], []
    for source, (size, draws) in enumerate(zip(num_rows, draws_per_epoch(num_rows, weights), strict=True)):
        if draws == 0:
            continue
        start = epoch * draws
        rounds = range(start // size, (start + draws - 1) // size + 1)
        stream = np.concatenate([shuffled(size, seed, source, i) for i in rounds])
        row_ids.append(sum(num_rows[:source]) + stream[start - rounds[0] * size :][:draws])
        sources.append(np.full(draws, source))
        places.append((np.arange(draws) + 0.5) / draws)
    interleaved = np.argsort(np.concatenate(places), kind="stable")
    return EpochOrder(np.concatenate(row_ids)[interleaved], np.concatenate(sources)[interleaved])
