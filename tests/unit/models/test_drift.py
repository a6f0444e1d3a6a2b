"""Drift by hand on three tokens, and what must not change it: padding, cutting into passes, the weights' dtype."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import VOCAB, random_rows, save_tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from surogate.batches import TokenRow
from surogate.errors import ModelError
from surogate.models import drift as measuring
from surogate.models.drift import HeldOut, Reference, float32_compute

TOLERANCE = 1e-5


class Fixed(nn.Module):
    """Predicts the same at every position, whatever stands before it."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.log_probs = torch.tensor(probabilities).log()

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(num_embeddings=len(self.log_probs))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.log_probs.expand(*input_ids.shape, -1))


def row(ids: list[int], mask: list[int]) -> TokenRow:
    return TokenRow(np.array(ids, np.int32), np.array(mask, bool))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("one"))).eval()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tiny_model(tmp_path_factory.mktemp("other"), seed=1)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_three_tokens_by_hand() -> None:
    reference = Reference(Fixed(0.6, 0.3, 0.1), [row([1, 0, 2, 1], [0, 1, 0, 1])])
    assert reference.num_positions == 2
    assert reference.loss == pytest.approx(-(math.log(0.6) + math.log(0.3)) / 2)
    drift = reference.drift_of(Fixed(0.2, 0.5, 0.3))
    assert drift.mean_kl == pytest.approx(
        0.6 * math.log(0.6 / 0.2) + 0.3 * math.log(0.3 / 0.5) + 0.1 * math.log(0.1 / 0.3)
    )
    assert drift.top1_agreement == 0
    assert drift.loss == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2)
    changes = np.array([math.log(0.6 / 0.2), math.log(0.3 / 0.5)])  # of token 0, of token 1
    assert drift.loss_change == pytest.approx(changes.mean())
    assert drift.loss_error == pytest.approx(changes.std() / math.sqrt(2))


def test_a_model_has_no_drift_from_itself(model: Any) -> None:
    reference = Reference(model, random_rows(8))
    drift = reference.drift_of(model)
    assert drift.mean_kl == 0 and drift.top1_agreement == 1 and drift.loss_change == 0 == drift.loss_error


def test_only_supervised_positions_count_and_the_loss_is_that_of_the_rows(model: Any) -> None:
    rows = random_rows(3)
    losses = []
    for one in rows:
        with torch.no_grad():
            logits = model(torch.tensor(one.input_ids[None].astype(np.int64))).logits[0]
        targets = np.flatnonzero(one.loss_mask)
        losses += [-logits[t - 1].log_softmax(-1)[one.input_ids[t]].item() for t in targets if t > 0]
    reference = Reference(model, rows)
    assert reference.num_positions == len(losses)
    assert reference.loss == pytest.approx(np.mean(losses), rel=TOLERANCE)


def test_padding_and_passes_change_nothing(model: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(12, low=2, high=60)
    together = Reference(model, rows).drift_of(other)
    monkeypatch.setattr(measuring, "TOKENS_IN_A_PASS", 1)
    alone = Reference(model, rows).drift_of(other)
    assert together.mean_kl > 0.1
    for name in ("mean_kl", "top1_agreement", "loss", "loss_change", "loss_error"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=TOLERANCE), name


def test_a_model_without_the_choice_of_positions_gives_the_same(model: Any, other: Any) -> None:
    class Whole(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner
            self.get_input_embeddings = inner.get_input_embeddings

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    rows = random_rows(5)
    expected = Reference(model, rows).drift_of(other)
    got = Reference(Whole(model), rows).drift_of(Whole(other))
    assert got.mean_kl == pytest.approx(expected.mean_kl, rel=TOLERANCE)


def test_positions_are_thinned_where_their_predictions_would_not_fit(
    model: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(40)
    whole = Reference(model, rows)
    monkeypatch.setattr(measuring, "MAX_REFERENCE_BYTES", 4 * VOCAB * (whole.num_positions // 3))
    thinned = Reference(model, rows)
    assert whole.num_positions // 4 < thinned.num_positions <= whole.num_positions // 3 + 1
    assert thinned.drift_of(other).mean_kl == pytest.approx(whole.drift_of(other).mean_kl, rel=0.2)


def test_rows_that_supervise_nothing_are_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="supervise no token"):
        Reference(model, [row([1, 2, 3], [0, 0, 0])])


def test_sixteen_bit_weights_compute_in_float32_and_stay_as_they_are(model: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        with float32_compute(half):
            got = half(ids).logits
        expected = copy.deepcopy(half).float()(ids).logits
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_rows_are_thinned_evenly_to_a_number_or_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = HeldOut(rows=[row([n] * 10, [1] * 10) for n in range(100)], origin="rows")
    assert [int(one.input_ids[0]) for one in held_out.thinned(4).rows] == [0, 33, 66, 99]
    assert len(held_out.thinned().rows) == 100 and len(held_out.thinned(1000).rows) == 100
    monkeypatch.setattr(measuring, "DEFAULT_TOKENS", 200)
    assert len(held_out.thinned().rows) == 20
