"""Policy losses: by hand, and how they behave where nothing trains and where a batch is cut.

Values against an independent implementation are in tests/numerics/test_grpo_against_trl.py.

Shape legend: N sampled tokens, S rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from surogate.config.parts_grpo import LossSpec
from surogate.losses.grpo import SampledTokens, clip_fractions, normaliser, normaliser_kind, policy_loss
from surogate.losses.policy_sums import MASKS

TYPES = ("aipo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")
SPECS = {
    **{name: LossSpec(type=name, kl_tau=0.2) for name in TYPES},  # type: ignore[arg-type]
    "aipo of sequences": LossSpec(type="aipo", ratio_type="sequence", kl_tau=0.2),
}
FLOAT64_TOLERANCE = 1e-12


def _tokens(
    ratios: Sequence[float], advantages: Sequence[float], ids: Sequence[int], num_sequences: int | None = None
) -> SampledTokens:
    """Return tokens whose trainer's probability is 1/2 and whose importance ratios are as given."""
    trainer = torch.full((len(ratios),), 0.5, dtype=torch.float64).log().requires_grad_()
    generator = trainer.detach() - torch.tensor(ratios, dtype=torch.float64).log()
    return SampledTokens(
        trainer,
        generator,
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(ids, dtype=torch.int64),
        max(ids) + 1 if num_sequences is None else num_sequences,
    )


def _random_tokens(lens: Sequence[int] = (3, 1, 4, 2), seed: int = 0, spread: float = 0.4) -> SampledTokens:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    trainer = -torch.rand(len(ids), generator=draw, dtype=torch.float64) * 3 - 0.1
    difference = spread * torch.randn(len(ids), generator=draw, dtype=torch.float64)
    advantages = torch.randn(len(lens), generator=draw, dtype=torch.float64)[ids]
    return SampledTokens(trainer.requires_grad_(), trainer.detach() - difference, advantages, ids, len(lens))


def _gradient(loss: Tensor, tokens: SampledTokens) -> list[float]:
    return torch.autograd.grad(loss, tokens.trainer_logprobs_N)[0].tolist()


def _check(tokens: SampledTokens, spec: LossSpec, loss: float, gradient: Sequence[float]) -> None:
    got = policy_loss(tokens, spec).loss
    assert got.item() == pytest.approx(loss, abs=FLOAT64_TOLERANCE)
    assert _gradient(got, tokens) == pytest.approx(gradient, abs=FLOAT64_TOLERANCE)


# ---- three tokens by hand: two of a rollout with advantage 1, one of a rollout with advantage -2


@pytest.mark.parametrize(("name", "long"), [("grpo", 0.5), ("dr_grpo", 1.0), ("dapo", 1.0)])
def test_the_clip_of_a_token_by_hand(name: str, long: float) -> None:
    """Ratio 1.1 is inside (term -1.1), 1.5 is cut at 1.2 (or 1.28) and loses its gradient, 0.9 x -2 is inside."""
    tokens = _tokens([1.1, 1.5, 0.9], [1.0, 1.0, -2.0], [0, 0, 1])
    cut = 1.28 if name == "dapo" else 1.2
    spec = LossSpec(type=name)  # type: ignore[arg-type]
    _check(tokens, spec, -1.1 * long - cut * long + 1.8, [-1.1 * long, 0.0, 1.8])


def test_the_clip_is_pessimistic_on_the_other_side() -> None:
    """A ratio too high with a negative advantage, and one too low with a positive one, keep value and gradient."""
    _check(
        _tokens([1.5, 0.5, 0.5], [-1.0, 1.0, -1.0], [0, 1, 2]), LossSpec(type="dapo"), 1.5 - 0.5 + 0.8, [1.5, -0.5, 0]
    )


def test_the_clip_of_a_sequence_by_hand() -> None:
    """Ratios 4 and 1 have the geometric mean 2, inside 1 +- 2; each token gets half of the sequence's gradient."""
    spec = LossSpec(type="gspo", clip_low=0.9, clip_high=2.0)
    _check(_tokens([4.0, 1.0, 0.5], [1.0, 1.0, -2.0], [0, 0, 1]), spec, -2.0 + 1.0, [-1.0, -1.0, 1.0])


def test_a_sequence_outside_the_clip_has_no_gradient() -> None:
    spec = LossSpec(type="gspo", clip_low=0.5, clip_high=0.5)
    _check(_tokens([4.0, 1.0, 0.25], [1.0, 1.0, -2.0], [0, 0, 1]), spec, -1.5 + 1.0, [0.0, 0.0, 0.0])


def test_the_clipped_weight_by_hand() -> None:
    """Weights 1.1, 1.5 (cut from 2) and 0.1 on log 1/2: no token loses its gradient."""
    tokens = _tokens([1.1, 2.0, 0.1], [1.0, 1.0, -2.0], [0, 0, 1])
    half = math.log(0.5)
    _check(tokens, LossSpec(type="cispo", clip_high=0.5), -(1.1 + 1.5 - 0.2) * half, [-1.1, -1.5, 0.2])


def test_masked_importance_by_hand() -> None:
    """Ratios 2, 9 and 0.5: the second is over token_mask_high; the pull is kl_tau log r off the advantage."""
    tokens = _tokens([2.0, 9.0, 0.5], [1.0, 1.0, -2.0], [0, 0, 1])
    first, third = 2.0 * (1 - 0.1 * math.log(2)), 0.5 * (-2 - 0.1 * math.log(0.5))
    _check(tokens, LossSpec(kl_tau=0.1), -(first + third) * math.log(0.5), [-first, 0.0, -third])


def test_the_masked_importance_of_a_sequence_by_hand() -> None:
    """Ratios 4 and 1 weigh 2 each, over the two tokens of the rollout; the pull is that of each token."""
    tokens = _tokens([4.0, 1.0, 0.5], [1.0, 1.0, -2.0], [0, 0, 1])
    weights = [2.0 * (1 - 0.1 * math.log(4)) / 2, 2.0 / 2, 0.5 * (-2 - 0.1 * math.log(0.5))]
    spec = LossSpec(ratio_type="sequence", kl_tau=0.1)
    _check(tokens, spec, -sum(weights) * math.log(0.5), [-weight for weight in weights])


def test_a_masked_token_still_counts_in_the_length_of_its_rollout() -> None:
    tokens = _tokens([16.0, 1.0], [1.0, 1.0], [0, 0])
    _check(tokens, LossSpec(ratio_type="sequence"), -2.0 * math.log(0.5), [0.0, -2.0])


def test_the_ratio_is_cut_off_at_ratio_clip() -> None:
    assert LossSpec().ratio_clip == pytest.approx(math.e**2, abs=1e-3)
    _check(_tokens([7.9], [1.0], [0]), LossSpec(), -7.389 * math.log(0.5), [-7.389])
    _check(
        _tokens([3.0, 3.0], [1.0, 1.0], [0, 0]),
        LossSpec(ratio_type="sequence", ratio_clip=2.0),
        -2 * math.log(0.5),
        [-1, -1],
    )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_the_pull_of_the_other_types_by_hand(name: str) -> None:
    """With no advantage, kl_tau (1/r + log r - 1) is left: its slope in log r is kl_tau (1 - 1/r)."""
    tokens = _tokens([2.0, 0.5, 1.0], [0.0, 0.0, 0.0], [0, 1, 2])
    spec = LossSpec(type=name, kl_tau=0.3)  # type: ignore[arg-type]
    value = 0.3 * (0.5 + math.log(2) - 1 + 2 - math.log(2) - 1)
    _check(tokens, spec, value, [0.3 * 0.5, 0.3 * -1.0, 0.0])


def test_adv_tau_scales_the_advantages_of_all_types() -> None:
    for name in TYPES:
        tokens, doubled = _random_tokens(), _random_tokens()
        doubled = doubled._replace(advantages_N=doubled.advantages_N * 2)
        plain = policy_loss(doubled, LossSpec(type=name)).loss  # type: ignore[arg-type]
        scaled = policy_loss(tokens, LossSpec(type=name, adv_tau=2.0)).loss  # type: ignore[arg-type]
        assert scaled.item() == pytest.approx(plain.item(), abs=FLOAT64_TOLERANCE)
        assert _gradient(scaled, tokens) == pytest.approx(_gradient(plain, doubled), abs=FLOAT64_TOLERANCE)


# ---- masks


@pytest.mark.parametrize(
    ("mask", "ratios", "keys", "stopped"),
    [
        ("token_low", [0.2, 1.0, 1.0], {"token_mask_low": 0.25}, [True, False, False]),
        ("token_high", [5.0, 1.0, 1.0], {"token_mask_high": 4.0}, [True, False, False]),
        ("geo_low", [0.2, 0.8, 1.0], {"geo_mask_low": 0.5}, [True, True, False]),
        ("geo_high", [4.0, 4.0, 1.0], {"geo_mask_high": 3.0}, [True, True, False]),
        ("sequence_low", [0.2, 1.0, 1.0], {"sequence_mask_low": 0.25}, [True, True, False]),
        ("sequence_high", [5.0, 1.0, 1.0], {"sequence_mask_high": 4.0}, [True, True, False]),
    ],
)
def test_each_mask_stops_its_tokens_and_is_counted(
    mask: str, ratios: list[float], keys: dict[str, float], stopped: list[bool]
) -> None:
    tokens = _tokens(ratios, [1.0, 1.0, 1.0], [0, 0, 1])
    result = policy_loss(tokens, LossSpec(**keys))  # type: ignore[arg-type]
    assert [value == 0 for value in _gradient(result.loss, tokens)] == stopped
    metrics = result.sums.metrics()
    assert metrics["masked_fraction/any"] == pytest.approx(sum(stopped) / 3)
    fractions = {name: metrics[f"masked_fraction/{name}"] for name in MASKS}
    assert {name for name, value in fractions.items() if value} == {mask}


def test_a_ratio_on_a_limit_trains() -> None:
    limits = {f"{mask}_mask_{side}": 1.0 for mask in ("token", "geo", "sequence") for side in ("low", "high")}
    tokens = _tokens([1.0, 1.0], [1.0, 1.0], [0, 1])
    assert policy_loss(tokens, LossSpec(**limits)).sums.metrics()["masked_fraction/any"] == 0  # type: ignore[arg-type]


def test_the_extremes_of_a_rollout_are_those_of_its_tokens_alone() -> None:
    spec = LossSpec(sequence_mask_low=1.5, sequence_mask_high=3.0)
    assert policy_loss(_tokens([2.0, 2.0], [1.0, 1.0], [0, 0], 3), spec).sums.metrics()["masked_fraction/any"] == 0
    spec = LossSpec(sequence_mask_high=0.9)
    assert policy_loss(_tokens([0.5, 0.5], [1.0, 1.0], [0, 0], 3), spec).sums.metrics()["masked_fraction/any"] == 0


def test_where_all_is_masked_the_loss_is_zero_and_so_is_the_gradient() -> None:
    for ratio_type in ("token", "sequence"):
        tokens = _tokens([50.0, 60.0, 0.001], [1.0, 1.0, -2.0], [0, 0, 1])
        result = policy_loss(tokens, LossSpec(ratio_type=ratio_type, kl_tau=0.1))  # type: ignore[arg-type]
        assert result.loss.item() == 0.0
        assert _gradient(result.loss, tokens) == [0.0, 0.0, 0.0]
        assert result.sums.metrics()["masked_fraction/any"] == 1.0


# ---- invariances


@pytest.mark.parametrize("name", SPECS)
def test_no_token_gives_zero_with_a_graph(name: str) -> None:
    source = torch.ones(3, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.float64)
    for num_sequences in (0, 2):
        tokens = SampledTokens(source[:0] * 2, empty, empty, torch.zeros(0, dtype=torch.int64), num_sequences)
        result = policy_loss(tokens, SPECS[name])
        assert result.loss.item() == 0.0
        assert torch.autograd.grad(result.loss, source)[0].tolist() == [0.0, 0.0, 0.0]
        assert not any(result.sums.metrics().values())


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_cut_in_two_gives_the_same_loss_gradient_and_metrics(name: str) -> None:
    whole = _random_tokens(spread=1.5)
    first = whole.sequence_ids_N < 2
    cut = [
        SampledTokens(*(values[part] for values in whole[:3]), whole.sequence_ids_N[part] - start, 2)
        for part, start in ((first, 0), (~first, 2))
    ]
    expected, parts = policy_loss(whole, SPECS[name]), [policy_loss(tokens, SPECS[name]) for tokens in cut]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, expected.loss)
    got = torch.autograd.grad(parts[0].loss + parts[1].loss, whole.trainer_logprobs_N)[0]
    assert got.tolist() == pytest.approx(_gradient(expected.loss, whole), abs=FLOAT64_TOLERANCE)
    merged = parts[0].sums.merged(parts[1].sums)
    assert merged.metrics() == pytest.approx(expected.sums.metrics(), abs=FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", SPECS)
def test_rollouts_without_a_token_and_the_order_of_tokens_do_not_matter(name: str) -> None:
    plain = _random_tokens()
    order = torch.randperm(len(plain.sequence_ids_N), generator=torch.Generator().manual_seed(1))
    shuffled = SampledTokens(*(values[order] for values in plain[:3]), plain.sequence_ids_N[order] + 1, 9)
    expected, got = policy_loss(plain, SPECS[name]), policy_loss(shuffled, SPECS[name])
    torch.testing.assert_close(got.loss, expected.loss)
    gradient = torch.autograd.grad(got.loss, plain.trainer_logprobs_N)[0].tolist()
    assert gradient == pytest.approx(_gradient(expected.loss, plain), abs=FLOAT64_TOLERANCE)
    assert got.sums.metrics() == pytest.approx(expected.sums.metrics(), abs=FLOAT64_TOLERANCE)


def test_on_policy_every_type_has_the_plain_policy_gradient() -> None:
    """At ratio 1 the gradient is -A times the weight, nothing is masked or clipped, and the pull is 0."""
    for name, spec in SPECS.items():
        tokens = _random_tokens(spread=0.0)
        result = policy_loss(tokens, spec)
        lens = torch.tensor([3, 1, 4, 2])[tokens.sequence_ids_N]
        weights = 1 / lens if normaliser_kind(spec) == "sequences" else torch.ones_like(lens)
        assert _gradient(result.loss, tokens) == pytest.approx((-weights * tokens.advantages_N).tolist()), name
        metrics = result.sums.metrics()
        assert (
            metrics["importance_ratio/max"] == metrics["importance_ratio/mean"] == metrics["importance_ratio/p50"] == 1
        )
        assert not any(metrics[key] for key in metrics if key.startswith(("masked", "clipped", "generator_kl")))


# ---- gradients


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_float64_gradient_check(name: str) -> None:
    tokens = _random_tokens()
    spec = LossSpec(type=name, kl_tau=0.2, clip_low=0.2, clip_high=0.28)  # type: ignore[arg-type]

    def loss(trainer: Tensor) -> Tensor:
        return policy_loss(tokens._replace(trainer_logprobs_N=trainer), spec).loss

    assert torch.autograd.gradcheck(loss, tokens.trainer_logprobs_N)


def _token_objective(x: Tensor, advantages: Tensor, cap: float, tau: float) -> Tensor:
    """The function of log r whose slope is min(r, cap) (A - tau log r); its constant is where r = cap."""
    below = x.exp() * (advantages + tau - tau * x)
    above = cap * (advantages * x - tau * x**2 / 2)
    knee = x.new_tensor(cap).log()
    offset = knee.exp() * (advantages + tau - tau * knee) - cap * (advantages * knee - tau * knee**2 / 2)
    return torch.where(x < knee, below, above + offset)


@pytest.mark.parametrize(
    ("spec", "cap", "tau"),
    [(LossSpec(ratio_clip=1.3, kl_tau=0.2), 1.3, 0.2), (LossSpec(type="cispo", clip_high=0.3), 1.3, 0.0)],
    ids=["aipo", "cispo"],
)
def test_float64_gradient_check_of_the_objective_behind_a_stopped_gradient(
    spec: LossSpec, cap: float, tau: float
) -> None:
    """Differences of the loss itself miss what stopping takes away; so those of the function it descends are taken."""
    tokens = _random_tokens()
    x = (tokens.trainer_logprobs_N - tokens.generator_logprobs_N).detach()
    step = 1e-6
    ahead, behind = (_token_objective(x + shift, tokens.advantages_N, cap, tau) for shift in (step, -step))
    slopes = (-(ahead - behind) / (2 * step)).tolist()
    assert _gradient(policy_loss(tokens, spec).loss, tokens) == pytest.approx(slopes, abs=1e-8)
    assert (x.exp() > cap).any() and (x.exp() < cap).any()


def test_float64_gradient_check_of_the_objective_of_sequences() -> None:
    """aipo of sequences descends the mean over rollouts of -min(s, cap) A, as long as s stays under the cap."""
    tokens = _random_tokens()
    spec = LossSpec(ratio_type="sequence")

    def objective(trainer: Tensor) -> Tensor:
        rollouts = (tokens.sequence_ids_N == index for index in range(tokens.num_sequences))
        x = trainer - tokens.generator_logprobs_N
        return -torch.stack([x[part].mean().exp() * tokens.advantages_N[part][0] for part in rollouts]).sum()

    assert torch.autograd.gradcheck(objective, tokens.trainer_logprobs_N)
    expected = torch.autograd.grad(objective(tokens.trainer_logprobs_N), tokens.trainer_logprobs_N)[0].tolist()
    assert _gradient(policy_loss(tokens, spec).loss, tokens) == pytest.approx(expected, abs=FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", SPECS)
def test_a_ratio_beyond_any_float_gives_finite_numbers(name: str) -> None:
    generator = torch.tensor([-900.0, -1.0, -1.0])
    trainer = torch.tensor([-1.0, -900.0, -1.0], requires_grad=True)
    tokens = SampledTokens(trainer, generator, torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0, 0, 1]), 2)
    result = policy_loss(tokens, SPECS[name])
    assert result.loss.isfinite()
    assert torch.autograd.grad(result.loss, trainer)[0].isfinite().all()
    assert result.sums.metrics()["logprob_difference/max"] == pytest.approx(899.0)


# ---- the normaliser


def test_each_type_has_the_normaliser_and_the_clip_of_its_paper() -> None:
    kinds: dict[str, Any] = {name: (normaliser_kind(spec), *clip_fractions(spec)) for name, spec in SPECS.items()}
    assert kinds == {
        "aipo": ("tokens", 0.2, 0.2),
        "aipo of sequences": ("sequences", 0.2, 0.2),
        "grpo": ("sequences", 0.2, 0.2),
        "dr_grpo": ("constant", 0.2, 0.2),
        "dapo": ("tokens", 0.2, 0.28),
        "gspo": ("sequences", 3e-4, 4e-4),
        "cispo": ("tokens", 1.0, 4.0),
    }


@pytest.mark.parametrize(("name", "expected"), [("dapo", 70), ("grpo", 4), ("dr_grpo", 400)])
def test_the_normaliser_is_the_number_of_its_kind_and_at_least_one(name: str, expected: int) -> None:
    spec = LossSpec(type=name)  # type: ignore[arg-type]
    assert normaliser(spec, torch.tensor(70.0), torch.tensor(4.0), 100).item() == expected
    assert normaliser(spec, torch.tensor(0.0), torch.tensor(0.0), 100).item() == 1
