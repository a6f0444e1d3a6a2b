"""Log-probabilities of given tokens and the entropy of their distributions, a piece of the tokens at a time.

Here the gradient of each token is known only in the backward pass: it depends on the log-probabilities of the whole
rollout. So a piece's logits are made twice, once for the value and once for the gradient, and dropped both times; the
negative log-likelihood, whose gradient is known at once, is in nll.py. Nothing of N x V numbers is ever held.

Shape legend: N sampled tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from surogate.losses.nll import piece_len


class TokenLogprobs(NamedTuple):
    """Of each token, under softmax(logits / temperature).

    Attributes:
        logprobs_N: log-probability of the label in nats, float32 with a graph.
        entropy_N: entropy of the distribution in nats, float32 without one.
    """

    logprobs_N: Tensor
    entropy_N: Tensor


def linear_logprobs(
    hidden_ND: Tensor,
    linear: nn.Linear,
    labels_N: Tensor,
    temperatures: Tensor | float,
    shape_logits: Callable[[Tensor], Tensor] | None = None,
    num_pieces: int | str = "auto",
) -> TokenLogprobs:
    """Score tokens: log softmax(shape_logits(linear(hidden)) / temperature)[label].

    Args:
        hidden_ND: hidden states of the positions that predict the labels, compute dtype.
        linear: the LM head; a weight that does not require a gradient gets none.
        labels_N: int64, each in the vocabulary.
        temperatures: over 0, that the tokens were sampled at: one number, or float32 (N,).
        shape_logits: a differentiable elementwise map of float32 logits (scale, soft cap); None where there is none.
        num_pieces: pieces of the N tokens, or `auto`.
    """
    step = piece_len(len(labels_N), linear.weight.shape[0], num_pieces, hidden_ND.device.type)
    temperatures_N = _per_token(temperatures, hidden_ND)
    return TokenLogprobs(
        *_LinearLogprobs.apply(hidden_ND, linear.weight, linear.bias, labels_N, temperatures_N, shape_logits, step)
    )


def module_logprobs(
    hidden_ND: Tensor, logits_of: Callable[[Tensor], Tensor], labels_N: Tensor, temperatures: Tensor | float, step: int
) -> TokenLogprobs:
    """The same for a head that is any module (an adapted one, say), which autograd runs again in the backward pass.

    Args:
        hidden_ND: as in linear_logprobs.
        logits_of: maps (n, D) hidden states to (n, V) float32 logits.
        labels_N: as in linear_logprobs.
        temperatures: as in linear_logprobs.
        step: tokens in a piece.
    """

    def piece(hidden: Tensor, labels: Tensor, temperatures_N: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (logits_of(hidden) / temperatures_N[:, None]).log_softmax(-1)
        picked = logprobs.gather(-1, labels[:, None])[:, 0]
        return picked, torch.special.entr(logprobs.detach().exp()).sum(-1)

    if len(labels_N) == 0:
        nothing = hidden_ND.float().sum(-1) * 0.0  # keeps the graph
        return TokenLogprobs(nothing, nothing.detach())
    per_token = (hidden_ND, labels_N, _per_token(temperatures, hidden_ND))
    pieces = [
        checkpoint(piece, *(values[start : start + step] for values in per_token), use_reentrant=False)
        for start in range(0, len(labels_N), step)
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return TokenLogprobs(torch.cat(logprobs), torch.cat(entropies))


class _LinearLogprobs(torch.autograd.Function):
    """Keeps what it was given and a log normaliser per token; the backward pass makes each piece's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        temperatures_N: Tensor,
        shape_logits: Callable[[Tensor], Tensor] | None,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)  # float64 stays, for gradient checks
        logprobs_N, entropy_N, log_normaliser_N = (hidden_ND.new_empty(len(labels_N), dtype=wide) for _ in range(3))
        for start in range(0, len(labels_N), step):
            part = slice(start, start + step)
            logits = nn.functional.linear(hidden_ND[part], weight_VD, bias_V).to(wide)
            logits = (logits if shape_logits is None else shape_logits(logits)).div_(temperatures_N[part, None])
            log_normaliser_N[part] = logits.logsumexp(-1)
            logprobs_N[part] = logits.gather(-1, labels_N[part, None])[:, 0] - log_normaliser_N[part]
            entropy_N[part] = torch.special.entr(logits.sub_(log_normaliser_N[part, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, temperatures_N, log_normaliser_N)
        ctx.shape_logits, ctx.step = shape_logits, step
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstream_N = grads[0]
        hidden_ND, weight_VD, bias_V, labels_N, temperatures_N, log_normaliser_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = log_normaliser_N.dtype
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if needs_bias else None
        for start in range(0, len(labels_N), ctx.step):
            part = slice(start, start + ctx.step)
            raw = nn.functional.linear(hidden_ND[part], weight_VD, bias_V).to(wide)
            scales = (upstream_N[part], temperatures_N[part], log_normaliser_N[part])
            grad = _grad_of_raw_logits(raw, labels_N[part], *scales, ctx.shape_logits)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight_VD.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight_VD
            if grad_weight is not None:
                grad_weight += grad.T @ hidden_ND[part]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
            None,
        )


def _per_token(temperatures: Tensor | float, hidden_ND: Tensor) -> Tensor:
    """Return temperatures as (N,), in float32 at least."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    return torch.as_tensor(temperatures, dtype=wide, device=hidden_ND.device).expand(len(hidden_ND))


def _grad_of_raw_logits(
    raw_NV: Tensor,
    labels_N: Tensor,
    upstream_N: Tensor,
    temperatures_N: Tensor,
    log_normaliser_N: Tensor,
    shape_logits: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Return d sum(upstream * logprobs) / d raw logits of one piece: upstream / temperature * (one-hot - softmax)."""
    raw = raw_NV
    shaped = raw
    if shape_logits is not None:
        with torch.enable_grad():
            raw = raw_NV.detach().requires_grad_()
            shaped = shape_logits(raw)
    scale_N = upstream_N / temperatures_N
    grad = shaped.detach().div(temperatures_N[:, None]).sub_(log_normaliser_N[:, None]).exp_()  # softmax
    grad.mul_(-scale_N[:, None])
    grad[torch.arange(len(labels_N), device=grad.device), labels_N] += scale_N
    return grad if shape_logits is None else torch.autograd.grad(shaped, raw, grad)[0]
