"""What is monitored of the sampled tokens."""

from __future__ import annotations

import math

import pytest
import torch

from surogate.losses.policy_sums import PolicySums, policy_sums

BIN_WIDTH = 10 ** (1 / 20) - 1
"""Relative width of a bin of |log ratio|."""


def _sums(log_ratios: torch.Tensor, entropy: torch.Tensor | None = None) -> PolicySums:
    none = torch.zeros(len(log_ratios), dtype=torch.bool)
    return policy_sums(log_ratios, torch.tensor([len(log_ratios), 0]), {}, (none, none), entropy)


def test_means_and_extremes_by_hand() -> None:
    ratios = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    masked, low, high = ratios > 3, ratios < 0.6, ratios > 1.5
    entropy = torch.tensor([0.1, 0.2, 0.3, 0.4])
    sums = policy_sums(ratios.log(), torch.tensor([3, 1]), {"token_high": masked}, (low, high), entropy)
    metrics = sums.metrics()
    two = math.log(2)
    kl = [0.5 + two - 1, 0.0, 2 - two - 1, 4 - 2 * two - 1]
    expected = {
        "sampled_tokens": 4,
        "importance_ratio/mean": 7.5 / 4,
        "importance_ratio/max": 4,
        "logprob_difference/mean": two,
        "logprob_difference/max": 2 * two,
        "generator_kl": sum(kl) / 4,
        "generator_kl_masked": kl[3],
        "entropy": 0.25,
        "masked_fraction/any": 0.25,
        "masked_fraction/token_high": 0.25,
        "masked_fraction/geo_low": 0,
        "clipped_fraction/low": 0.25,
        "clipped_fraction/high": 0.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.3])
def test_percentiles_are_those_of_the_tokens_to_the_width_of_a_bin(scale: float) -> None:
    log_ratios = scale * torch.randn(20_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metrics = _sums(log_ratios).metrics()
    for name, fraction in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        exact = log_ratios.quantile(fraction).item()
        assert math.log(metrics[f"importance_ratio/{name}"]) == pytest.approx(exact, rel=BIN_WIDTH, abs=1e-6)


def test_equal_policies_have_ratio_one_at_every_percentile() -> None:
    metrics = _sums(torch.zeros(5)).metrics()
    assert {metrics[f"importance_ratio/{name}"] for name in ("mean", "max", "p01", "p50", "p99")} == {1.0}
    assert metrics["generator_kl"] == metrics["logprob_difference/max"] == 0.0


def test_ratios_outside_all_bins_are_counted_in_the_outer_ones() -> None:
    metrics = _sums(torch.tensor([-50.0, 50.0, 50.0])).metrics()
    assert metrics["importance_ratio/p01"] == pytest.approx(math.exp(-10))
    assert metrics["importance_ratio/p99"] == pytest.approx(math.exp(10))
    assert metrics["importance_ratio/max"] == pytest.approx(math.exp(50))


def test_the_maximum_of_parts_is_that_of_the_whole_and_no_tokens_change_nothing() -> None:
    left, right = torch.tensor([0.5, -2.0]), torch.tensor([1.0])
    merged = PolicySums.zeros("cpu").merged(_sums(left)).merged(_sums(torch.zeros(0))).merged(_sums(right))
    assert merged.maxima.tolist() == [1.0, 2.0]
    assert merged.metrics() == pytest.approx(_sums(torch.cat([left, right])).metrics())


def test_of_no_tokens_nothing_is_said_but_that_there_are_none() -> None:
    assert PolicySums.zeros("cpu").metrics() == {"sampled_tokens": 0.0}


def test_sums_have_no_graph() -> None:
    sums = _sums(torch.zeros(2, requires_grad=True))
    assert not sums.sums.requires_grad and not sums.maxima.requires_grad
