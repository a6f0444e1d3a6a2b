"""Taps record one pass and change no bit of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from surogate.quant import taps
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.taps import MOST_DB, LayerTap, grad_cosine, output_snr_db, some_tokens


class Block(nn.Module):
    """Three layers that share an input, one of them stored in few bits, and an input that needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 64)
        self.original = torch.randn(48, 64)
        bias = torch.randn(48)
        self.frozen = FrozenQuantLinear(Nf4Format().quantize(self.original), bias, torch.float32)
        self.beside = nn.Linear(64, 48)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        return self.frozen(hidden) + self.beside(self.dropout(hidden)) * hidden.mean()


def gradients(block: Block, recompute: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, 7, 32, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    y.square().sum().backward()
    assert x.grad is not None
    found = [y.detach(), x.grad, *(p.grad.clone() for p in block.parameters() if p.grad is not None)]
    block.zero_grad()
    return found


@pytest.mark.parametrize("recompute", [False, True])
def test_a_tapped_pass_gives_the_same_bits(recompute: bool) -> None:
    block = Block()
    expected = gradients(block, recompute)
    tapped = [LayerTap(layer) for layer in (block.first, block.frozen, block.beside)]
    got = gradients(block, recompute)
    for tap in tapped:
        tap.remove()
    assert all(a.equal(b) for a, b in zip(expected, got, strict=True))
    assert all(a.equal(b) for a, b in zip(expected, gradients(block, recompute), strict=True))
    assert not block.frozen._forward_hooks and not block.frozen._forward_pre_hooks


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_recorded_is_what_went_through_this_layer_alone(recompute: bool) -> None:
    block = Block()
    tap = LayerTap(block.frozen)
    gradients(block, recompute)
    first_x, first_grad = tap.x_TK, tap.grad_y_TN
    gradients(block, recompute)  # of another micro-batch
    assert first_x is tap.x_TK and first_grad is tap.grad_y_TN
    assert tap.x_TK is not None and tap.y_TN is not None and tap.grad_y_TN is not None and tap.grad_x_TK is not None
    assert tap.x_TK.shape == tap.grad_x_TK.shape == (14, 64) and tap.y_TN.shape == tap.grad_y_TN.shape == (14, 48)
    weight = block.frozen.weight
    torch.testing.assert_close(tap.y_TN, tap.x_TK @ weight.T + block.frozen.bias)
    torch.testing.assert_close(tap.grad_x_TK, tap.grad_y_TN @ weight)
    assert output_snr_db(tap, weight, block.frozen.bias) > 100
    assert grad_cosine(tap, weight) == pytest.approx(1)


def test_noise_is_measured_against_the_original_weight_by_hand() -> None:
    block = Block()
    tap = LayerTap(block.frozen)
    gradients(block)
    assert tap.x_TK is not None and tap.y_TN is not None and tap.grad_y_TN is not None and tap.grad_x_TK is not None
    exact = tap.x_TK @ block.original.T + block.frozen.bias
    expected = 20 * math.log10(exact.norm() / (tap.y_TN - exact).norm())
    assert output_snr_db(tap, block.original, block.frozen.bias) == pytest.approx(expected, rel=1e-4)
    assert 15 < expected < 30
    grads = (tap.grad_y_TN @ block.original, tap.grad_x_TK)
    cosine = nn.functional.cosine_similarity(*(grad.flatten() for grad in grads), dim=0)
    assert grad_cosine(tap, block.original) == pytest.approx(cosine.item(), rel=1e-5) and 0.98 < cosine < 1


def test_a_layer_whose_input_needs_no_gradient_has_no_cosine() -> None:
    frozen = Block().frozen
    tap = LayerTap(frozen)
    frozen(torch.randn(3, 64))
    assert tap.grad_y_TN is None and grad_cosine(tap, frozen.weight) is None
    assert output_snr_db(tap, frozen.weight, frozen.bias) > 100


def test_what_is_not_a_number_has_the_worst_signal() -> None:
    block = Block()
    block.frozen.stored.absmax.fill_(255)
    block.frozen.stored.nested_absmax.fill_(torch.nan)
    tap = LayerTap(block.frozen)
    gradients(block)
    assert output_snr_db(tap, block.original, None) == -MOST_DB and grad_cosine(tap, block.original) == 0


def test_tokens_are_thinned_to_the_same_ones_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "MAX_TOKENS", 4)
    block = Block()
    tap = LayerTap(block.frozen)
    gradients(block)
    assert tap.x_TK is not None and tap.y_TN is not None and len(tap.x_TK) == 4
    torch.testing.assert_close(tap.y_TN, tap.x_TK @ block.frozen.weight.T + block.frozen.bias)
    assert len(some_tokens(torch.empty(0, 3))) == 0 and len(some_tokens(torch.empty(5, 3))) == 3
