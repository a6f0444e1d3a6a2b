"""Negative log-likelihood of supervised tokens, fused with the LM head, a piece of the tokens at a time.

Logits of a piece are made, turned into loss and gradient, and dropped in the forward pass: at a vocabulary of 150,000 a
row of 4,096 tokens would otherwise hold 2.4 GB of them, twice. Gradients are those of the *sum* of the losses; the
caller divides by the global token count (modes/base.py).

torch's own `F.linear_cross_entropy` is not used: torch 2.11 lacks it, and it gives no token accuracy.

Shape legend: N supervised tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGIT_BUDGET = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits in a piece when the number of pieces is `auto`: 64 MiB of float32 on a CPU, 512 MiB on a GPU."""


class NllSums(NamedTuple):
    """Sums over the supervised tokens.

    Attributes:
        loss: sum of -log p(label), float32 scalar with a graph.
        num_correct: tokens whose most likely prediction is the label, int64 scalar.
    """

    loss: Tensor
    num_correct: Tensor


def piece_len(num_tokens: int, vocab_size: int, num_pieces: int | str, device_type: str) -> int:
    """Return how many tokens go through the head at once."""
    if num_pieces == "auto":
        return max(64, _LOGIT_BUDGET.get(device_type, 1 << 24) // vocab_size)
    return max(1, -(-num_tokens // int(num_pieces)))


def linear_nll(
    hidden_ND: Tensor,
    linear: nn.Linear,
    labels_N: Tensor,
    shape_logits: Callable[[Tensor], Tensor] | None = None,
    num_pieces: int | str = "auto",
) -> NllSums:
    """Sum of -log softmax(linear(hidden))[label].

    Args:
        hidden_ND: hidden states of the supervised positions, compute dtype.
        linear: the LM head; a weight that does not require a gradient gets none.
        labels_N: int64, no IGNORE among them.
        shape_logits: a differentiable elementwise map of float32 logits (scale, soft cap); None where there is none.
        num_pieces: pieces of the N tokens, or `auto`.
    """
    step = piece_len(len(labels_N), linear.weight.shape[0], num_pieces, hidden_ND.device.type)
    loss, num_correct = _LinearNll.apply(hidden_ND, linear.weight, linear.bias, labels_N, shape_logits, step)
    return NllSums(loss, num_correct)


def module_nll(hidden_ND: Tensor, logits_of: Callable[[Tensor], Tensor], labels_N: Tensor, step: int) -> NllSums:
    """The same for a head that is any module (an adapted one, say): each piece is computed again in the backward pass.

    Args:
        hidden_ND: as in linear_nll.
        logits_of: maps (n, D) hidden states to (n, V) float32 logits.
        labels_N: as in linear_nll.
        step: tokens in a piece.
    """

    def piece(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(hidden)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return loss, (logits.argmax(-1) == labels).sum()

    loss = hidden_ND.float().sum() * 0.0  # a graph, also where nothing is supervised
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
    for start in range(0, len(labels_N), step):
        part = slice(start, start + step)
        piece_loss, piece_correct = checkpoint(piece, hidden_ND[part], labels_N[part], use_reentrant=False)
        loss, num_correct = loss + piece_loss, num_correct + piece_correct
    return NllSums(loss, num_correct)


class _LinearNll(torch.autograd.Function):
    """Forward computes the gradients too: with the logits at hand they cost one product, and nothing big is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        shape_logits: Callable[[Tensor], Tensor] | None,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)  # float64 stays, for gradient checks
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if needs_bias and bias_V is not None else None
        loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        for start in range(0, len(labels_N), step):
            hidden, labels = hidden_ND[start : start + step], labels_N[start : start + step]
            raw = nn.functional.linear(hidden, weight_VD, bias_V).to(wide)
            piece_loss, correct, grad = _piece(raw, labels, shape_logits, any(ctx.needs_input_grad[:3]))
            loss += piece_loss
            num_correct += correct
            if grad is None:
                continue
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight_VD.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + step] = grad @ weight_VD
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight_VD.dtype, bias_V.dtype if bias_V is not None else None)
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(weight_dtype),
            None if grad_bias is None else (grad_bias * scale).to(bias_dtype),
            None,
            None,
            None,
        )


def _piece(
    raw_NV: Tensor, labels_N: Tensor, shape_logits: Callable[[Tensor], Tensor] | None, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the loss sum, the number of right predictions, and d loss / d raw logits (float32) of one piece."""
    if shape_logits is not None:
        with torch.enable_grad():
            raw = raw_NV.detach().requires_grad_(with_grad)
            logits = shape_logits(raw)
            loss = nn.functional.cross_entropy(logits, labels_N, reduction="sum")
        correct = (logits.detach().argmax(-1) == labels_N).sum()
        return loss.detach(), correct, torch.autograd.grad(loss, raw)[0] if with_grad else None
    correct = (raw_NV.argmax(-1) == labels_N).sum()
    log_normaliser = raw_NV.logsumexp(-1)
    loss = (log_normaliser - raw_NV.gather(-1, labels_N[:, None])[:, 0]).sum()
    if not with_grad:
        return loss, correct, None
    grad = raw_NV.sub_(log_normaliser[:, None]).exp_()  # softmax, in the logits' own memory
    grad[torch.arange(len(labels_N), device=grad.device), labels_N] -= 1.0
    return loss, correct, grad
