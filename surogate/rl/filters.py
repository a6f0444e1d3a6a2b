"""Filters: checks that find completions not worth training on, from their tokens alone.

What is not here: what happens to those found (orchestrator.py). The one idea: only what the policy sampled is looked
at, and what lies between two turns of the environment is a piece of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from surogate.config.parts_grpo import FilterSpec
from surogate.rl.types import Rollout


def flagged(rollout: Rollout, spec: FilterSpec) -> bool:
    """Whether a check finds a rollout.

    Args:
        rollout: with ids and log-probabilities.
        spec: repetition: some 1 to `window` tokens stand `min_repeats` times in a row; gibberish: the mean
            log-probability of `span` tokens in a row is below `logprob_threshold`.
    """
    sampled = np.asarray(rollout.sampled, dtype=bool)
    if spec.type == "repetition":
        ids = np.asarray(rollout.completion_ids)
        return any(_repeats(piece, spec.window, spec.min_repeats) for piece in _pieces(ids, sampled))
    logprobs = np.asarray(rollout.logprobs, dtype=np.float64)
    return any(_has_unlikely_span(piece, spec.span, spec.logprob_threshold) for piece in _pieces(logprobs, sampled))


def _pieces(values_T: npt.NDArray, sampled_T: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray]:
    """Yield the stretches that were sampled."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], sampled_T, [False])).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield values_T[start:end]


def _repeats(ids_T: npt.NDArray, window: int, min_repeats: int) -> bool:
    """Whether p tokens stand min_repeats times in a row: then (min_repeats - 1) p tokens equal those p before them."""
    for period in range(1, min(window, len(ids_T) // min_repeats) + 1):
        differs = np.flatnonzero(ids_T[period:] != ids_T[:-period])
        edges = np.concatenate(([-1], differs, [len(ids_T) - period]))
        if (np.diff(edges) - 1).max() >= (min_repeats - 1) * period:
            return True
    return False


def _has_unlikely_span(logprobs_T: npt.NDArray, span: int, threshold: float) -> bool:
    if len(logprobs_T) < span:
        return False
    sums = np.cumsum(np.concatenate(([0.0], logprobs_T)))
    return bool(((sums[span:] - sums[:-span]) / span).min() < threshold)
