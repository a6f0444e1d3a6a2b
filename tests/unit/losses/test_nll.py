"""Fused negative log-likelihood against torch's cross entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from surogate.losses.nll import linear_nll, module_nll, piece_len

FLOAT32_TOLERANCE = 1e-5


def _inputs(dtype: torch.dtype = torch.float64, bias: bool = False) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    return hidden, nn.Linear(6, 13, bias=bias, dtype=dtype), torch.randint(0, 13, (11,))


def test_three_tokens_by_hand() -> None:
    """Logits (0, 0), (ln 3, 0), (0, ln 3) with labels 0, 0, 0 give ln 2, ln 4/3 and ln 4."""
    hidden = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2)
    sums = linear_nll(hidden, head, torch.tensor([0, 0, 0]))
    assert sums.loss.item() == pytest.approx(math.log(2) + math.log(4 / 3) + math.log(4), abs=FLOAT32_TOLERANCE)
    assert sums.num_correct.item() == 2  # a tie goes to the first


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pieces", [1, 3, 11, "auto"])
def test_value_and_gradients_equal_cross_entropy_in_any_number_of_pieces(bias: bool, pieces: int | str) -> None:
    hidden, head, labels = _inputs(bias=bias)
    expected = F.cross_entropy(head(hidden), labels, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.7, [hidden, *head.parameters()])
    sums = linear_nll(hidden, head, labels, num_pieces=pieces)
    got = torch.autograd.grad(sums.loss * 0.7, [hidden, *head.parameters()])
    torch.testing.assert_close(sums.loss, expected)
    assert sums.num_correct == (head(hidden).argmax(-1) == labels).sum()
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


def test_float64_gradient_check_with_a_soft_cap() -> None:
    hidden, head, labels = _inputs(bias=True)

    def cap(logits: torch.Tensor) -> torch.Tensor:
        return torch.tanh(logits / 2.0) * 2.0

    def loss(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        layer = nn.Linear(6, 13, dtype=h.dtype)
        del layer.weight, layer.bias
        layer.weight, layer.bias = w, b  # type: ignore[assignment]
        return linear_nll(h, layer, labels, cap, 3).loss

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do() -> None:
    hidden, head, labels = _inputs()
    head.requires_grad_(False)
    linear_nll(hidden, head, labels).loss.backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_no_supervised_token_gives_zero_with_a_graph() -> None:
    hidden, head, _ = _inputs()
    none = torch.zeros(0, dtype=torch.int64)
    for sums in (linear_nll(hidden[:0], head, none), module_nll(hidden[:0], head, none, 4)):
        assert sums.loss.item() == 0.0
        sums.loss.backward()
    assert hidden.grad is not None and not hidden.grad.any()


def test_a_module_head_gives_the_same_as_a_linear_head() -> None:
    hidden, head, labels = _inputs()
    linear, module = linear_nll(hidden, head, labels), module_nll(hidden, head, labels, 4)
    torch.testing.assert_close(linear.loss, module.loss)
    torch.testing.assert_close(torch.autograd.grad(linear.loss, hidden)[0], torch.autograd.grad(module.loss, hidden)[0])
    assert linear.num_correct == module.num_correct


def test_bfloat16_hidden_states_are_summed_in_float32() -> None:
    hidden, head, labels = _inputs(torch.bfloat16)
    loss = linear_nll(hidden, head, labels).loss
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_auto_pieces_bound_the_logits_and_a_number_of_pieces_is_kept() -> None:
    assert piece_len(4096, 150_000, "auto", "cpu") * 150_000 <= 1 << 24
    assert piece_len(100, 10, 3, "cpu") == 34
