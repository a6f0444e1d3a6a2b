"""FrozenQuantLinear: a linear layer whose weight is stored in few bits and never trains.

    y = x W^T + b        dx = g W        dW does not exist

Nothing of x is needed for dx, so nothing of x is kept; the weight is dequantised again in the backward pass instead of
being saved (kernels/products.py). What is not here: the adapter beside the layer (PEFT's, and adapted.py).

Shape legend: T tokens (all leading dimensions), K in_features, N out_features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate.kernels import products
from surogate.quant.stored import StoredWeight


class FrozenQuantLinear(nn.Module):
    """A frozen linear layer over a stored weight.

    Args:
        stored: the weight, (N, K).
        bias: (N,), frozen, in the compute dtype; or None.
        dtype: in which the layer was before; what `weight` is returned in.
    """

    def __init__(self, stored: StoredWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.stored = stored
        self.dtype = dtype
        self.gemm: nn.Module | None = None
        """Another way to multiply than in the dtype of x: a recipe's (compute.py)."""
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, (N, K), made anew at each access; for those who must look at it (DoRA, merging)."""
        return self.stored.dequantize(self.dtype)

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.gemm is not None:
            return self.gemm(x, self.stored, self.bias)
        return frozen_linear(x, self.stored, self.bias)

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def frozen_linear(x: Tensor, stored: StoredWeight, bias: Tensor | None = None) -> Tensor:
    """Return `x W^T + bias` in the dtype of x, with a gradient for x alone.

    Args:
        x: (..., K), any float dtype.
        stored: (N, K).
        bias: (N,) or None; frozen.
    """
    layout = (stored.kind, stored.shape, stored.numbers())
    result: Tensor = _FrozenLinear.apply(x, bias, layout, *stored.tensors())
    return result


Layout = tuple[str, tuple[int, int], tuple[int, ...]]
"""Kind, shape and numbers of a stored weight."""


class _FrozenLinear(torch.autograd.Function):
    """Takes tensors and constants, not modules, so that torch.compile can follow it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layout: Layout, *stored: Tensor | None) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(*stored)  # references to the codes and scales
        kind, shape, numbers = layout
        # Autograd forbids a change in place (adapted.py) of a view that was made in here.
        y = products.forward_product(x, kind, shape, stored, numbers).detach()
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
        kind, shape, numbers = ctx.layout
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = products.backward_product(grads[0], kind, shape, stored, numbers)
        return (grad_x, None, None, *(None for _ in stored))
