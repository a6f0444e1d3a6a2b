"""LayerTap: what goes through a linear layer in one forward and backward pass, recorded on the way.

It changes nothing: the layer multiplies a view of its input, and gradients pass as they are, so a step with taps gives
the same bits as one without. What is not here: which layers are tapped, and when (callbacks/precision_canary.py).

Shape legend: T recorded tokens, K in_features, N out_features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_TOKENS = 256
"""Tokens recorded, evenly spaced: a signal-to-noise ratio of 256 x 576 numbers is sure to 0.1 dB."""

MOST_DB = 150.0
"""About what float32 can tell apart; a number keeps records and plots readable where infinity would not."""


class LayerTap:
    """Records the first pass through a layer after it was made.

    Args:
        layer: takes (..., K), gives (..., N).

    Attributes:
        x_TK: inputs; None before the pass.
        y_TN: outputs.
        grad_y_TN: gradients of the outputs; None where none came.
        grad_x_TK: gradients of the inputs, by way of this layer alone.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.x_TK: Tensor | None = None
        self.y_TN: Tensor | None = None
        self.grad_y_TN: Tensor | None = None
        self.grad_x_TK: Tensor | None = None
        self._is_recording = False
        self._hooks = [layer.register_forward_pre_hook(self._before), layer.register_forward_hook(self._after)]

    def remove(self) -> None:
        """Leave the layer as it was."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        # Later passes are those of other micro-batches, and the second one of activation checkpointing.
        self._is_recording = self.x_TK is None
        if not self._is_recording:
            return arguments
        x, *rest = arguments
        self.x_TK = some_tokens(x.detach())
        return (_Passage.apply(x, self), *rest)

    def _after(self, layer: nn.Module, arguments: tuple[Any, ...], y: Tensor) -> None:
        if self._is_recording:
            self.y_TN = some_tokens(y.detach())
            if y.requires_grad:
                y.register_hook(self._take_grad_y)

    def _take_grad_y(self, grad: Tensor) -> None:
        self.grad_y_TN = some_tokens(grad)


class _Passage(torch.autograd.Function):
    """The identity, which sees the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tap: LayerTap) -> Tensor:
        ctx.tap = tap
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.tap.grad_x_TK = some_tokens(grads[0])
        return grads[0], None


def some_tokens(tensor: Tensor) -> Tensor:
    """Copy evenly spaced tokens of (..., K): at most MAX_TOKENS, the same ones of every tensor of as many."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat[:: -(-len(flat) // MAX_TOKENS)].clone() if len(flat) else flat.clone()


@torch.no_grad()
def output_snr_db(tap: LayerTap, weight_NK: Tensor, bias_N: Tensor | None) -> float:
    """Return the signal-to-noise ratio of a layer's output against the product with a weight in float32, in dB.

    At most MOST_DB, where next to nothing differs, and -MOST_DB where the output is not a number.
    """
    assert tap.x_TK is not None and tap.y_TN is not None
    exact = F.linear(tap.x_TK.float(), weight_NK.float(), None if bias_N is None else bias_N.float())
    noise = (tap.y_TN.float() - exact).square().sum()
    ratio = 10 * torch.log10(exact.square().sum() / noise)
    return ratio.nan_to_num(nan=-MOST_DB).clamp(-MOST_DB, MOST_DB).item()


@torch.no_grad()
def grad_cosine(tap: LayerTap, weight_NK: Tensor) -> float | None:
    """Return the cosine between the gradient that a layer passed on and that of the product with a weight in float32.

    None where no gradient went that way: the inputs of a first layer have none, and an empty micro-batch gives zeros.
    """
    if tap.grad_y_TN is None or tap.grad_x_TK is None:
        return None
    exact, got = (tap.grad_y_TN.float() @ weight_NK.float()).flatten(), tap.grad_x_TK.float().flatten()
    norms = exact.norm() * got.norm()
    if not norms.isfinite():
        return 0.0
    return (exact @ got / norms).item() if norms > 0 else None
