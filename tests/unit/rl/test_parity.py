"""The probe names the mistake that explains a difference, and passes nothing that it cannot compare."""

from __future__ import annotations

import math

import pytest
import torch

from surogate.errors import GeneratorError
from surogate.rl import parity
from surogate.rl.parity import Tolerance, check, compare, disagreement

TOLERANCE = Tolerance(1e-4, 1e-3)
EXPLANATION = "the engine answers with the base model."


@pytest.fixture(scope="module")
def logits():
    return torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 20, (3, 12, 1), generator=torch.Generator().manual_seed(1))


def picked(logits, ids):
    return logits.log_softmax(-1).gather(-1, ids).flatten()


def message(engine, trainer, explanations=None):
    with pytest.raises(GeneratorError) as caught:
        check(engine, trainer, TOLERANCE, explanations or {})
    return str(caught.value)


def test_rounding_passes_and_is_measured(logits, ids):
    trainer = picked(logits, ids)
    engine = trainer.clone()
    engine[3] += 5e-4
    report = check(engine, trainer, TOLERANCE, {})
    assert report.num_tokens == 36
    assert report.max_difference == pytest.approx(5e-4, rel=1e-3)
    assert report.mean_difference == pytest.approx(5e-4 / 36, rel=1e-3)
    assert report.kl == pytest.approx((math.exp(-5e-4) - 1 + 5e-4) / 36, rel=1e-2)
    assert set(report.metrics("parity")) == {f"parity/{name}" for name in ("mean_difference", "max_difference", "kl")}


def test_one_token_that_is_far_off_is_enough(logits, ids):
    trainer = picked(logits, ids)
    engine = trainer.clone()
    engine[3] -= 2e-3
    assert "differ by 5.6e-05 in the mean and 0.002 at most (rounding: 0.0001 and 0.001)" in message(engine, trainer)


def test_a_known_mistake_is_named(logits, ids):
    base = picked(logits + 0.5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)), ids)
    assert message(base, picked(logits, ids), {EXPLANATION: base}).endswith(f"Cause: {EXPLANATION}")


def test_the_first_explanation_that_fits_is_named_and_others_are_not(logits, ids):
    trainer, hot = picked(logits, ids), picked(logits / 0.5, ids)
    text = message(hot, trainer, {EXPLANATION: picked(logits * 1.1, ids), "the temperature is not the same.": hot})
    assert text.endswith("Cause: the temperature is not the same.")


@pytest.mark.parametrize("by", [1, -1])
def test_a_shift_by_one_token_is_named_also_across_several_sequences(logits, ids, by):
    trainer = picked(logits, ids)
    engine = trainer.view(3, 12).roll(by, 1)
    engine[:, 0 if by == 1 else -1] = -3.0
    assert "shifted by one token" in message(engine.flatten(), trainer)


def test_truncated_sampling_is_named(logits, ids):
    kept = logits.topk(15, -1).values.min(-1, keepdim=True).values
    narrow = torch.where(logits >= kept, logits, -math.inf)
    sampled = narrow.argmax(-1, keepdim=True)
    assert "sampling is truncated or penalised (top_p" in message(picked(narrow, sampled), picked(logits, sampled))


def test_other_weights_are_the_last_guess(logits, ids):
    other = picked(logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)), ids)
    assert "It holds other weights than the trainer" in message(other, picked(logits, ids))


def test_small_differences_are_put_down_to_rounding_or_to_a_step(logits, ids):
    trainer = picked(logits, ids)
    noise = 1e-2 * torch.randn(trainer.shape, generator=torch.Generator().manual_seed(4))
    assert "the engine's dtype is coarser than the trainer's" in message(trainer + noise, trainer)


def test_who_knows_more_may_say_what_else_it_may_be(logits, ids):
    other = picked(logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)), ids)
    trainer = picked(logits, ids)
    assert str(disagreement(other, trainer, TOLERANCE, {}, "A guess.")).endswith("A guess.")
    assert str(disagreement(other, trainer, TOLERANCE, {EXPLANATION: other}, "A guess.")).endswith(EXPLANATION)


@pytest.mark.parametrize("who", ["engine", "trainer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_never_passes(logits, ids, who, value):
    engine, trainer = picked(logits, ids), picked(logits, ids)
    (engine if who == "engine" else trainer)[5] = value
    assert f"log-probabilities of the {who} are not finite" in message(engine, trainer)
    assert not compare(engine, trainer).within(Tolerance(1e9, 1e9)) or math.isinf(value)


def test_both_not_a_number_do_not_agree():
    nothing = torch.full((4,), math.nan)
    assert not compare(nothing, nothing).within(Tolerance(math.inf, math.inf))
    assert not compare(torch.full((4,), -math.inf), torch.full((4,), -math.inf)).within(TOLERANCE)


@pytest.mark.parametrize(("engine", "trainer"), [(0, 0), (3, 4), (1, 4), (4, 1)])
def test_nothing_to_compare_is_no_agreement(engine, trainer):
    text = message(torch.zeros(engine), torch.zeros(trainer))
    assert f"gave {engine} log-probabilities for {trainer} tokens" in text


def test_one_or_two_tokens_are_compared_as_well():
    for size in (1, 2):
        check(torch.zeros(size), torch.zeros(size), TOLERANCE, {})
        assert "do not agree" in message(torch.zeros(size), torch.ones(size))


def test_a_coarser_dtype_is_given_more():
    mean = {dtype: tolerance.mean for dtype, tolerance in parity.TOLERANCES.items()}
    assert mean[torch.float32] < mean[torch.float16] < mean[torch.bfloat16]
