"""Judging replies, and how sure a gain is.

The one idea: the two questions about a country stand or fall together more often than not, so what is drawn again in
the bootstrap is countries, not questions; drawing questions would make the interval too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Gain:
    """The change of a share of right answers, with a 95 % interval."""

    before: float
    after: float
    low: float
    high: float


def is_right(reply: str, expected: str) -> bool:
    """Tell whether a reply names the expected answer as words of their own, in any case.

    A reply in a whole sentence counts, so that an untrained model is not marked down for its style.
    """
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", reply, re.IGNORECASE) is not None


def gain(before: Sequence[bool], after: Sequence[bool], groups: Sequence[str], seed: int = 0) -> Gain:
    """Return the gain with the percentile interval of a paired cluster bootstrap.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; clusters are resampled whole (Davison and
    Hinkley, Bootstrap Methods and their Application (1997), section 3.8).

    Args:
        before: whether each question was answered right, before.
        after: the same questions in the same order, after.
        groups: which questions belong together.
        seed: of the resampling.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    gained = np.bincount(group_of, weights=difference)
    size = np.bincount(group_of)
    drawn = np.random.default_rng(seed).integers(len(names), size=(NUM_RESAMPLES, len(names)))
    gains = gained[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return Gain(float(np.mean(before)), float(np.mean(after)), float(low), float(high))
