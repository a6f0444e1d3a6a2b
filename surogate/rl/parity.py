"""Parity: do the engine and the trainer see the same policy?

The one idea: the importance ratio of a token that the current policy sampled is 1. If it is not, the gradient is of
something else than the reward, and the run must not go on. So the same tokens are scored by both, and where they
disagree it is tried which known mistake would explain it.

Shape legend: N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surogate.errors import GeneratorError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest differences of log-probabilities, in nats, that rounding explains.

    Attributes:
        mean: of the absolute differences.
        maximum: of any token.
    """

    mean: float
    maximum: float


TOLERANCES = {
    torch.float32: Tolerance(1e-4, 1e-3),
    torch.bfloat16: Tolerance(5e-2, 2.0),
    torch.float16: Tolerance(2e-2, 1.0),
}
"""By the coarser dtype of the two. In float32 vLLM and transformers differ by 5e-6 in the mean and 6e-5 at most; those
of the 16-bit types are set by reasoning, not measured: a token of low probability may move far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """How far two scorings of the same tokens are apart.

    Attributes:
        num_tokens: compared.
        mean_difference: of |generator - trainer|, in nats.
        max_difference: the largest one.
        kl: estimate of KL(generator || trainer), in nats: mean of exp(d) - 1 - d with d = trainer - generator, the
            estimator k3 of http://joschu.net/blog/kl-approx.html.
    """

    num_tokens: int
    mean_difference: float
    max_difference: float
    kl: float

    def __str__(self) -> str:
        return (
            f"Engine and trainer agree: log-probabilities of {self.num_tokens} tokens differ by "
            f"{self.mean_difference:.1e} in the mean, {self.max_difference:.1e} at most."
        )

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the numbers by name."""
        return {
            f"{prefix}/mean_difference": self.mean_difference,
            f"{prefix}/max_difference": self.max_difference,
            f"{prefix}/kl": self.kl,
        }

    def within(self, tolerance: Tolerance) -> bool:
        """Whether rounding explains the differences; never where one is not a number."""
        return self.mean_difference <= tolerance.mean and self.max_difference <= tolerance.maximum


def compare(generator_logprobs_N: Tensor, trainer_logprobs_N: Tensor) -> ParityReport:
    """Compare two scorings, float, in nats."""
    difference = (trainer_logprobs_N - generator_logprobs_N).double()
    if not difference.numel():
        return ParityReport(num_tokens=0, mean_difference=0.0, max_difference=0.0, kl=0.0)
    return ParityReport(
        num_tokens=difference.numel(),
        mean_difference=difference.abs().mean().item(),
        max_difference=difference.abs().max().item(),
        kl=(torch.expm1(difference) - difference).mean().item(),
    )


def check(
    generator_logprobs_N: Tensor,
    trainer_logprobs_N: Tensor,
    tolerance: Tolerance,
    explanations: Mapping[str, Tensor],
) -> ParityReport:
    """Refuse to train on tokens that the engine sampled from another policy than the trainer's.

    Args:
        generator_logprobs_N: of the engine.
        trainer_logprobs_N: of the trainer.
        tolerance: what rounding explains.
        explanations: sentences, with the log-probabilities that the trainer gives if they are true.

    Raises:
        GeneratorError: they differ by more, and it names what explains it best; or there is nothing to compare.
    """
    if generator_logprobs_N.shape != trainer_logprobs_N.shape or not len(trainer_logprobs_N):
        raise GeneratorError(
            f"The engine gave {len(generator_logprobs_N)} log-probabilities for {len(trainer_logprobs_N)} tokens of "
            "the trainer, so nothing tells whether both hold the same policy."
        )
    report = compare(generator_logprobs_N, trainer_logprobs_N)
    if report.within(tolerance):
        return report
    raise disagreement(generator_logprobs_N, trainer_logprobs_N, tolerance, explanations)


def disagreement(
    generator_logprobs_N: Tensor,
    trainer_logprobs_N: Tensor,
    tolerance: Tolerance,
    explanations: Mapping[str, Tensor],
    otherwise: str = "",
) -> GeneratorError:
    """Return the error of two scorings that differ by more than rounding; see check.

    Args:
        generator_logprobs_N: of the engine.
        trainer_logprobs_N: of the trainer.
        tolerance: what rounding explains.
        explanations: as for check.
        otherwise: the guess where neither an explanation nor a pattern in the differences fits.
    """
    report = compare(generator_logprobs_N, trainer_logprobs_N)
    cause = _known_cause(generator_logprobs_N, trainer_logprobs_N, tolerance, explanations)
    return GeneratorError(
        f"The engine and the trainer do not agree on the policy: log-probabilities of the same {report.num_tokens} "
        f"tokens differ by {report.mean_difference:.2g} in the mean and {report.max_difference:.2g} at most (rounding: "
        f"{tolerance.mean:g} and {tolerance.maximum:g}), so training would follow a wrong gradient. "
        f"{cause or otherwise or _guess(report)}"
    )


_LOWER_SHARE = 0.02
"""Share of tokens that rounding may make less likely for an engine whose sampling is truncated."""


def _known_cause(
    generator_N: Tensor, trainer_N: Tensor, tolerance: Tolerance, explanations: Mapping[str, Tensor]
) -> str | None:
    for who, logprobs_N in {"engine": generator_N, "trainer": trainer_N}.items():
        if not logprobs_N.isfinite().all():
            return f"Cause: log-probabilities of the {who} are not finite numbers, so its weights are broken."
    for sentence, logprobs_N in explanations.items():
        if compare(generator_N, logprobs_N).within(tolerance):
            return f"Cause: {sentence}"
    # The median, since the first and last tokens of the sequences that are laid end to end here match nothing.
    shifted = (generator_N[:-1] - trainer_N[1:], generator_N[1:] - trainer_N[:-1]) if len(trainer_N) > 2 else ()
    is_off = (generator_N - trainer_N).abs().median() > tolerance.mean
    if is_off and any(difference.abs().median() <= tolerance.mean for difference in shifted):
        return "Cause: the log-probabilities are shifted by one token against the token ids."
    higher_N = generator_N - trainer_N
    is_lower_share = (higher_N < -tolerance.mean).double().mean()
    # A narrower distribution gives every token that it can sample at least the probability of the whole one.
    if higher_N.mean() > tolerance.mean and is_lower_share <= _LOWER_SHARE:
        return (
            "Cause, most likely: sampling is truncated or penalised (top_p, top_k, min_p, a penalty), so the engine's "
            "probabilities are those of a narrower distribution."
        )
    return None


def _guess(report: ParityReport) -> str:
    if report.mean_difference <= TOLERANCES[torch.bfloat16].mean:
        return (
            "The differences are small: the engine's dtype is coarser than the trainer's (dtype, kv_cache_dtype), or "
            "it holds the weights of another step (a stale adapter or cache)."
        )
    return (
        "It holds other weights than the trainer, or caches of older ones (a wrong or stale adapter, another model), "
        "or it samples with other settings."
    )
