"""Policy losses of GRPO's family, as sums over sampled tokens.

r = exp(trainer_logprob - generator_logprob) of a token, s the geometric mean of r over its rollout, A = adv_tau *
advantage, |o| the sampled tokens of the rollout, c = ratio_clip. What each token adds to the loss that is *minimised*:

| type           | term                                      | weight  | divided by    | source                       |
|----------------|-------------------------------------------|---------|---------------|------------------------------|
| grpo           | -min(r A, clip(r, 1 - low, 1 + high) A)   | 1 / |o| | sequences     | arXiv:2402.03300, eq. 3      |
| dr_grpo        | as grpo                                   | 1       | sequences * L | arXiv:2503.20783             |
| dapo           | as grpo, with high > low                  | 1       | tokens        | arXiv:2503.14476, eq. 8      |
| gspo           | -min(s A, clip(s, 1 - low, 1 + high) A)   | 1 / |o| | sequences     | arXiv:2507.18071, eq. 5 to 7 |
| cispo          | -sg(clip(r, 1 - low, 1 + high)) A logprob | 1       | tokens        | arXiv:2506.13585, eq. 4, 5   |
| aipo, token    | -sg(min(r, c) (A - kl_tau log r)) logprob | 1       | tokens        | arXiv:2505.24034, prime-rl   |
| aipo, sequence | -sg(min(s, c) (A - kl_tau log r)) logprob | 1 / |o| | sequences     | prime-rl                     |

L is the most tokens that a completion may have, a constant. sg stops the gradient. Papers write the objective of one
question and average over questions; here the normaliser is global over the optimizer step, so a result does not depend
on how rollouts are cut into micro-batches and ranks. dapo and cispo therefore divide by all tokens of the step, not by
those of each group in turn. A mean over groups is nowhere needed: with groups of equal size it is the mean over
rollouts.

kl_tau pulls towards the policy that generated. In aipo it is a reward of -log r inside the coefficient, on tokens that
train (the squared log ratio of arXiv:2501.12599, weighted by the ratio). In the other types kl_tau * (1/r + log r - 1)
is added to each token's term: arXiv:2402.03300, eq. 4 (k3), with the generator's policy in place of a reference
model's. adv_tau applies to all types.

aipo is prime-rl's loss of December 2025 to February 2026 (PrimeIntellect-ai/prime-rl at commit cc59d7bed,
src/prime_rl/trainer/rl/loss.py, default_loss_fn): a token trains unless one of six masks holds, `_aipo_masks`. Masked
tokens count in the normaliser and in |o|. Two deviations: the ratio of a sequence is the geometric mean, not the
product of its tokens' ratios; and ratio_clip, the truncation of AIPO (arXiv:2505.24034), caps both kinds of ratio,
where prime-rl capped that of sequences only.

In all types |log r| is cut off at 20 before it is exponentiated, so that no term is infinite; past that a ratio has no
gradient.

What is not here: log-probabilities (logprobs.py), advantages (advantages.py), monitoring (policy_sums.py).

Shape legend: N sampled tokens, S rollouts of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from surogate.config.parts_grpo import LossSpec
from surogate.losses.policy_sums import PolicySums, policy_sums

NormaliserKind = Literal["tokens", "sequences", "constant"]
"""What the sum of a step is divided by: sampled tokens, rollouts, or rollouts times the longest length allowed."""

_MAX_LOG_RATIO = 20.0


class SampledTokens(NamedTuple):
    """The sampled tokens of a micro-batch; a rollout is never split over micro-batches.

    Attributes:
        trainer_logprobs_N: under the policy that trains, with a graph; float32, or float64 in checks.
        generator_logprobs_N: under the distribution that each token was sampled from.
        advantages_N: of the token's rollout.
        sequence_ids_N: int64, the token's rollout, 0 to S - 1.
        num_sequences: S; rollouts without a token count for nothing.
        entropy_N: for monitoring only; None where it is not known.
    """

    trainer_logprobs_N: Tensor
    generator_logprobs_N: Tensor
    advantages_N: Tensor
    sequence_ids_N: Tensor
    num_sequences: int
    entropy_N: Tensor | None = None


class PolicyLoss(NamedTuple):
    """A micro-batch's part of the loss.

    Attributes:
        loss: scalar with a graph, a sum of weighted terms; the step divides it by `normaliser`.
        sums: what is monitored.
    """

    loss: Tensor
    sums: PolicySums


def policy_loss(tokens: SampledTokens, spec: LossSpec) -> PolicyLoss:
    """Return the loss of a micro-batch; the formulas are at the top of the file."""
    kind = _kind(spec)
    view = _view(tokens, spec)
    terms = kind.terms(view, spec)
    weight_N = 1 / view.lens_S[tokens.sequence_ids_N] if kind.normaliser == "sequences" else 1.0
    difference_N = tokens.trainer_logprobs_N.detach() - tokens.generator_logprobs_N
    clipped_N = (terms.clipped_low_N, terms.clipped_high_N)
    sums = policy_sums(difference_N, view.lens_S, terms.masked_N, clipped_N, tokens.entropy_N)
    return PolicyLoss((terms.term_N * weight_N).sum(), sums)


def normaliser_kind(spec: LossSpec) -> NormaliserKind:
    """Return what the sum of a step's losses is divided by."""
    return _kind(spec).normaliser


def normaliser(spec: LossSpec, num_tokens: Tensor, num_sequences: Tensor, max_completion_len: int) -> Tensor:
    """Return the number that the sum of a step's losses is divided by; at least 1.

    Args:
        spec: the loss.
        num_tokens: sampled tokens of the step, over all ranks and micro-batches, masked ones too.
        num_sequences: rollouts of the step that have a sampled token.
        max_completion_len: most tokens that a completion may have.
    """
    kind = normaliser_kind(spec)
    counts = {"tokens": num_tokens, "sequences": num_sequences, "constant": num_sequences * max_completion_len}
    return counts[kind].clamp_min(1)


def clip_fractions(spec: LossSpec) -> tuple[float, float]:
    """Return how far below and above 1 a ratio may go: what the spec says, or the default of the type."""
    kind = _kind(spec)
    low = kind.clip_low if spec.clip_low is None else spec.clip_low
    high = kind.clip_high if spec.clip_high is None else spec.clip_high
    return low, high


class _View(NamedTuple):
    """The tokens as the terms want them: log ratios cut off at _MAX_LOG_RATIO, and means over rollouts.

    log_ratio_N and log_geometric_N (the mean of the rollout's log ratios, on each of its tokens) have a graph; lens_S
    counts the sampled tokens of each rollout.
    """

    tokens: SampledTokens
    advantages_N: Tensor
    log_ratio_N: Tensor
    log_geometric_N: Tensor
    lens_S: Tensor


class _Terms(NamedTuple):
    """Terms of the loss, before the weight of a rollout's length, and what happened to each token."""

    term_N: Tensor
    masked_N: dict[str, Tensor]
    clipped_low_N: Tensor
    clipped_high_N: Tensor


def _sum_by_sequence(values_N: Tensor, tokens: SampledTokens) -> Tensor:
    return values_N.new_zeros(tokens.num_sequences).index_add(0, tokens.sequence_ids_N, values_N)


def _view(tokens: SampledTokens, spec: LossSpec) -> _View:
    shape, dtype = tokens.trainer_logprobs_N.shape, tokens.trainer_logprobs_N.dtype
    assert shape == tokens.generator_logprobs_N.shape == tokens.advantages_N.shape == tokens.sequence_ids_N.shape
    assert dtype in (torch.float32, torch.float64), dtype  # a bfloat16 log-probability is off by up to 0.03 at -8
    log_ratio_N = tokens.trainer_logprobs_N - tokens.generator_logprobs_N.to(dtype)
    log_ratio_N = log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    lens_S = _sum_by_sequence(torch.ones_like(log_ratio_N), tokens)
    geometric_S = _sum_by_sequence(log_ratio_N, tokens) / lens_S.clamp_min(1)
    advantages_N = spec.adv_tau * tokens.advantages_N.to(dtype)
    return _View(tokens, advantages_N, log_ratio_N, geometric_S[tokens.sequence_ids_N], lens_S)


def _clipped_terms(view: _View, spec: LossSpec, log_ratio_N: Tensor) -> _Terms:
    """PPO's pessimistic clip (arXiv:1707.06347, eq. 7) of a token's or a rollout's ratio, and the pull of kl_tau."""
    low, high = clip_fractions(spec)
    ratio_N, advantages_N = log_ratio_N.exp(), view.advantages_N
    term_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - low, 1 + high) * advantages_N)
    is_low_N = (ratio_N < 1 - low) & (advantages_N < 0)
    is_high_N = (ratio_N > 1 + high) & (advantages_N > 0)
    return _Terms(term_N + _pull(view, spec), {}, is_low_N, is_high_N)


def _token_clip(view: _View, spec: LossSpec) -> _Terms:
    return _clipped_terms(view, spec, view.log_ratio_N)


def _sequence_clip(view: _View, spec: LossSpec) -> _Terms:
    return _clipped_terms(view, spec, view.log_geometric_N)


def _clipped_weight(view: _View, spec: LossSpec) -> _Terms:
    """CISPO: the clip limits the weight of a token, and never takes its gradient away."""
    low, high = clip_fractions(spec)
    ratio_N = view.log_ratio_N.detach().exp()
    weight_N = ratio_N.clamp(1 - low, 1 + high) * view.advantages_N
    term_N = -weight_N * view.tokens.trainer_logprobs_N
    return _Terms(term_N + _pull(view, spec), {}, ratio_N < 1 - low, ratio_N > 1 + high)


def _masked_importance(view: _View, spec: LossSpec) -> _Terms:
    """AIPO in prime-rl's masked form."""
    log_ratio_N = view.log_ratio_N.detach()
    masked_N = _aipo_masks(view, spec)
    is_masked_N = torch.stack(list(masked_N.values())).any(0)
    leading_N = (view.log_geometric_N.detach() if spec.ratio_type == "sequence" else log_ratio_N).exp()
    weight_N = leading_N.clamp(max=spec.ratio_clip) * (view.advantages_N - spec.kl_tau * log_ratio_N)
    term_N = -weight_N.where(~is_masked_N, 0.0) * view.tokens.trainer_logprobs_N
    is_high_N = (leading_N > spec.ratio_clip) & ~is_masked_N
    return _Terms(term_N, masked_N, torch.zeros_like(is_high_N), is_high_N)


def _aipo_masks(view: _View, spec: LossSpec) -> dict[str, Tensor]:
    """Return which tokens do not train, by reason: their own ratio, their rollout's geometric mean, its extremes."""
    ids_N, ratio_N = view.tokens.sequence_ids_N, view.log_ratio_N.detach().exp()
    geometric_N = view.log_geometric_N.detach().exp()
    empty_S = ratio_N.new_ones(view.tokens.num_sequences)
    smallest_N = empty_S.scatter_reduce(0, ids_N, ratio_N, "amin", include_self=False)[ids_N]
    largest_N = empty_S.scatter_reduce(0, ids_N, ratio_N, "amax", include_self=False)[ids_N]
    return {
        "token_low": ratio_N < spec.token_mask_low,
        "token_high": ratio_N > spec.token_mask_high,
        "geo_low": geometric_N < spec.geo_mask_low,
        "geo_high": geometric_N > spec.geo_mask_high,
        "sequence_low": smallest_N < spec.sequence_mask_low,
        "sequence_high": largest_N > spec.sequence_mask_high,
    }


def _pull(view: _View, spec: LossSpec) -> Tensor | float:
    """Return kl_tau times the k3 estimate of KL(trainer, generator)."""
    if spec.kl_tau == 0.0:
        return 0.0
    return spec.kl_tau * ((-view.log_ratio_N).exp() + view.log_ratio_N - 1)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of loss: its terms, what they are divided by, and its default clip.

    arXiv:2402.03300 and arXiv:2503.20783 give no clip fraction: 0.2 is PPO's. cispo has no lower limit, and its paper
    does not publish the upper one: a largest weight of 5 is that of arXiv:2510.13786 (ScaleRL).
    """

    terms: Callable[[_View, LossSpec], _Terms]
    normaliser: NormaliserKind
    clip_low: float = 0.2
    clip_high: float = 0.2


_KINDS = {
    "grpo": _Kind(_token_clip, "sequences"),
    "dr_grpo": _Kind(_token_clip, "constant"),
    "dapo": _Kind(_token_clip, "tokens", clip_high=0.28),
    "gspo": _Kind(_sequence_clip, "sequences", clip_low=3e-4, clip_high=4e-4),
    "cispo": _Kind(_clipped_weight, "tokens", clip_low=1.0, clip_high=4.0),
    "aipo/token": _Kind(_masked_importance, "tokens"),
    "aipo/sequence": _Kind(_masked_importance, "sequences"),
}


def _kind(spec: LossSpec) -> _Kind:
    return _KINDS[f"aipo/{spec.ratio_type}" if spec.type == "aipo" else spec.type]
