"""Gemm: the three products of a linear layer, each in numbers that a recipe chooses.

    y = x W^T        dX = g W        dW = g^T x

What all recipes share is here: the autograd rule, which asks a subclass for products and keeps what it wants kept, and
the product of operands that are exact in bfloat16. Here too the simplest of them, which only casts. What is not here:
FP8 (compute_fp8.py), NVFP4 (compute_nvfp4.py), and which layers of a model get one (compute.py).

The one idea: a Gemm has no weight. It multiplies by whatever the layer holds, a parameter that trains or a weight
stored in few bits, and the weight is rounded again in the backward pass instead of being kept.

Shape legend: T tokens (all leading dimensions), K in_features, N out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from surogate.quant.stored import StoredWeight

Kept = tuple[Tensor, ...]
"""What a Gemm keeps from the forward pass for the backward pass."""


class Gemm(nn.Module):
    """How a linear layer multiplies."""

    def forward_product(self, x_TK: Tensor, weight_NK: Tensor, keeps_x: bool, is_step: bool) -> tuple[Tensor, Kept]:
        """Return `x W^T` in the dtype of x, and what the backward pass will want.

        Args:
            x_TK: any float dtype; at least one token.
            weight_NK: any float dtype.
            keeps_x: whether the weight will want its gradient.
            is_step: whether this is part of a training step, rather than validation.
        """
        raise NotImplementedError

    def backward_products(
        self, grad_TN: Tensor, weight: Callable[[], Tensor], kept: Kept, wanted: tuple[bool, bool], is_step: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return `g W` and `g^T x`, those of them that are wanted, in the dtype of g.

        Args:
            grad_TN: any float dtype.
            weight: returns the weight once more, (N, K).
            kept: what forward_product returned.
            wanted: which of the two.
            is_step: as it was in the forward pass.
        """
        raise NotImplementedError

    @override
    def forward(self, x: Tensor, weight: Tensor | StoredWeight, bias: Tensor | None = None) -> Tensor:
        """Return `x W^T + bias` in the dtype of x, (..., K) -> (..., N)."""
        stored = weight if isinstance(weight, StoredWeight) else None
        parameter = None if isinstance(weight, StoredWeight) else weight
        if x.numel() == 0 or _PLAIN.get():  # an empty micro-batch has no magnitudes; it still needs its graph
            return F.linear(x, _dense(parameter, stored, x.dtype), bias)
        is_step = self.training and torch.is_grad_enabled()
        y_TN = _Products.apply(x.reshape(-1, x.shape[-1]), parameter, stored, self, is_step)
        y = y_TN.reshape(*x.shape[:-1], y_TN.shape[-1])
        return y if bias is None else y + bias.to(y.dtype)


_PLAIN = ContextVar("plain products", default=False)


@contextmanager
def plain_products() -> Iterator[None]:
    """Let every Gemm multiply in the dtype of its operands, for comparisons that rounding by tensor would blur."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, parameter: Tensor | None, stored: StoredWeight | None, gemm: Gemm, is_step: bool
    ) -> Tensor:
        ctx.stored, ctx.gemm, ctx.is_step = stored, gemm, is_step
        y_TN, kept = gemm.forward_product(x_TK, _dense(parameter, stored, x_TK.dtype), ctx.needs_input_grad[1], is_step)
        ctx.save_for_backward(*([] if parameter is None else [parameter]), *kept)
        return y_TN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TN,) = grads
        saved = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
        parameter, kept = (None, saved) if ctx.stored is not None else (saved[0], saved[1:])
        wanted = ctx.needs_input_grad[:2]

        def weight() -> Tensor:
            return _dense(parameter, ctx.stored, grad_TN.dtype)

        grad_x, grad_w = ctx.gemm.backward_products(grad_TN, weight, kept, wanted, ctx.is_step)
        if grad_w is not None and parameter is not None:
            grad_w = grad_w.to(parameter.dtype)
        return grad_x, grad_w, None, None, None


def _dense(parameter: Tensor | None, stored: StoredWeight | None, dtype: torch.dtype) -> Tensor:
    if stored is not None:
        return stored.dequantize(dtype)
    assert parameter is not None
    return parameter


def exact_product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Return `a b^T` in float32, for operands that are exact in bfloat16: what a tensor core computes.

    A product of two such numbers is exact in float32, so only the order of the sum is left to the device.
    """
    if a_MK.is_cuda:
        return torch.mm(a_MK.to(torch.bfloat16), b_NK.to(torch.bfloat16).t(), out_dtype=torch.float32)
    return a_MK.float() @ b_NK.float().t()


class CastGemm(Gemm):
    """Casts the operands and accumulates in float32.

    Args:
        matmul_dtype: of the forward product's operands; None = as they are.
        gradient_dtype: of the backward products' operands; None = as they are.
    """

    def __init__(self, matmul_dtype: torch.dtype | None, gradient_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.matmul_dtype, self.gradient_dtype = matmul_dtype, gradient_dtype

    @override
    def forward_product(self, x_TK: Tensor, weight_NK: Tensor, keeps_x: bool, is_step: bool) -> tuple[Tensor, Kept]:
        y_TN = _cast_product(x_TK, weight_NK, self.matmul_dtype or x_TK.dtype)
        return y_TN.to(x_TK.dtype), (x_TK,) if keeps_x else ()

    @override
    def backward_products(
        self, grad_TN: Tensor, weight: Callable[[], Tensor], kept: Kept, wanted: tuple[bool, bool], is_step: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dtype = self.gradient_dtype or grad_TN.dtype
        grad_x = _cast_product(grad_TN, weight().t(), dtype).to(grad_TN.dtype) if wanted[0] else None
        grad_w = _cast_product(grad_TN.t(), kept[0].t(), dtype) if wanted[1] else None
        return grad_x, grad_w


def _cast_product(a_MK: Tensor, b_NK: Tensor, dtype: torch.dtype) -> Tensor:
    a_MK, b_NK = a_MK.to(dtype), b_NK.to(dtype)
    return exact_product(a_MK, b_NK) if dtype == torch.bfloat16 else a_MK @ b_NK.t()
