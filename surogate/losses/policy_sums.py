"""What is monitored of the sampled tokens, as sums that add over micro-batches and ranks.

A percentile does not add, so the ratios are counted in fixed bins of their logarithm and percentiles are read from the
counts; the bins are narrow where on-policy ratios lie. Reading the numbers waits for the device: once a step, in
`metrics`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

MASKS = ("token_low", "token_high", "geo_low", "geo_high", "sequence_low", "sequence_high")
"""Reasons for which a token does not train; several can hold at once."""

SUM_NAMES = (
    "tokens",
    "sequences",
    "masked",
    *(f"masked_{mask}" for mask in MASKS),
    "clipped_low",
    "clipped_high",
    "ratio",
    "abs_log_ratio",
    "kl",
    "masked_kl",
    "entropy",
)
"""What the first entries of PolicySums.sums count or add up, over sampled tokens; `sequences` counts rollouts."""

_BINS_PER_DECADE = 20
_SMALLEST, _LARGEST = -6, 1
"""Bins lie between |log ratio| = 1e-6 and 10; a bin spans 12 %, its middle is within 6 % of what it holds."""


class PolicySums(NamedTuple):
    """Sums over the sampled tokens of micro-batches, without a graph.

    Attributes:
        sums: float64; the entries of SUM_NAMES, then how many tokens have a log ratio in each bin. Ranks: add.
        maxima: float64; the largest log ratio and the largest |log ratio|. Ranks: take the larger.
    """

    sums: Tensor
    maxima: Tensor

    @classmethod
    def zeros(cls, device: torch.device | str) -> PolicySums:
        """Return the sums of no tokens."""
        size = len(SUM_NAMES) + len(_edges()) + 1
        sums = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(sums, torch.full((2,), -math.inf, dtype=torch.float64, device=device))

    def merged(self, other: PolicySums) -> PolicySums:
        """Return the sums of the tokens of both."""
        return PolicySums(self.sums + other.sums, torch.maximum(self.maxima, other.maxima))

    def metrics(self) -> dict[str, float]:
        """Return means, fractions and percentiles for the log; the number of tokens alone where there are none."""
        numbers = torch.cat([self.sums, self.maxima]).tolist()
        named = dict(zip(SUM_NAMES, numbers, strict=False))
        counts, maxima = numbers[len(SUM_NAMES) : -2], numbers[-2:]
        tokens = named["tokens"]
        if not tokens:
            return {"sampled_tokens": 0.0}
        return {
            "sampled_tokens": tokens,
            "importance_ratio/mean": named["ratio"] / tokens,
            "importance_ratio/max": _exp(maxima[0]),
            "importance_ratio/p01": _percentile(counts, 0.01),
            "importance_ratio/p50": _percentile(counts, 0.5),
            "importance_ratio/p99": _percentile(counts, 0.99),
            "logprob_difference/mean": named["abs_log_ratio"] / tokens,
            "logprob_difference/max": max(maxima[1], 0.0),
            "generator_kl": named["kl"] / tokens,
            "generator_kl_masked": named["masked_kl"] / max(named["masked"], 1.0),
            "entropy": named["entropy"] / tokens,
            "masked_fraction/any": named["masked"] / tokens,
            **{f"masked_fraction/{mask}": named[f"masked_{mask}"] / tokens for mask in MASKS},
            "clipped_fraction/low": named["clipped_low"] / tokens,
            "clipped_fraction/high": named["clipped_high"] / tokens,
        }


@torch.no_grad()
def policy_sums(
    log_ratio_N: Tensor,
    lens_S: Tensor,
    masked_N: dict[str, Tensor],
    clipped_N: tuple[Tensor, Tensor],
    entropy_N: Tensor | None,
) -> PolicySums:
    """Add up what is monitored.

    The KL is that of the generator's policy from the trainer's, `r - log r - 1` (http://joschu.net/blog/kl-approx.html,
    k3): the tokens are samples of the generator, so its mean is unbiased and no term is negative.

    Args:
        log_ratio_N: trainer_logprobs - generator_logprobs.
        lens_S: sampled tokens of each rollout.
        masked_N: mask of MASKS -> whether it stops the token; masks that do not apply may be absent.
        clipped_N: whether the ratio was below, and above, the clip range.
        entropy_N: of each token's distribution, in nats; None adds 0.
    """
    log_ratio = log_ratio_N.detach().double()
    ratio = log_ratio.exp()
    kl = ratio - log_ratio - 1
    none = torch.zeros_like(log_ratio, dtype=torch.bool)
    any_mask = torch.stack([none, *masked_N.values()]).any(0)
    columns = {
        "tokens": torch.ones_like(log_ratio),
        "sequences": lens_S > 0,
        "masked": any_mask,
        **{f"masked_{mask}": masked_N.get(mask, none) for mask in MASKS},
        "clipped_low": clipped_N[0],
        "clipped_high": clipped_N[1],
        "ratio": ratio,
        "abs_log_ratio": log_ratio.abs(),
        "kl": kl,
        "masked_kl": kl.where(any_mask, 0.0),
        "entropy": torch.zeros_like(log_ratio) if entropy_N is None else entropy_N,
    }
    sums, maxima = PolicySums.zeros(log_ratio.device)
    sums[: len(SUM_NAMES)] = torch.stack([columns[name].double().sum() for name in SUM_NAMES])
    bins = torch.bucketize(log_ratio, torch.tensor(_edges(), dtype=torch.float64, device=log_ratio.device))
    sums[len(SUM_NAMES) :].index_add_(0, bins, columns["tokens"])
    if len(log_ratio):
        maxima = torch.stack([log_ratio.max(), log_ratio.abs().max()])
    return PolicySums(sums, maxima)


@cache
def _edges() -> tuple[float, ...]:
    """Borders of the bins of log ratios, ascending and symmetric around 0."""
    steps = range(_SMALLEST * _BINS_PER_DECADE, _LARGEST * _BINS_PER_DECADE + 1)
    positive = [10 ** (step / _BINS_PER_DECADE) for step in steps]
    return (*(-edge for edge in reversed(positive)), *positive)


def _percentile(counts: list[float], fraction: float) -> float:
    """Return the ratio below which a fraction of the tokens lies, to the width of a bin; 0 where there are none."""
    wanted, seen = fraction * sum(counts), 0.0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return math.exp(_middle(index))
    return 0.0


def _middle(index: int) -> float:
    """Return the log ratio that stands for a bin: the geometric middle, 0 in the innermost, the border in the outer."""
    edges = _edges()
    if index in (0, len(edges)):
        return edges[0] if index == 0 else edges[-1]
    low, high = edges[index - 1], edges[index]
    return 0.0 if low < 0 < high else math.copysign(math.sqrt(low * high), low)


def _exp(log_ratio: float) -> float:
    """Return exp, infinite where it is larger than any float."""
    return math.exp(log_ratio) if log_ratio < 700 else math.inf
