"""Products with a stored weight: in a fused kernel where tokens are few, by way of the workspace where they are many.

A fused kernel reads a quarter of the bytes and dequantises each weight once for every 64 tokens; a dequantised weight
is written once and then multiplied by the vendor's GEMM at full speed. With many tokens the second wins everywhere.
What is not here: the kernels (nf4.py, fp8.py, fp4.py) and autograd (quant/linear.py).

Shape legend: M tokens, N rows and K columns of the weight.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from surogate import chips
from surogate.kernels import ops
from surogate.kernels.ops import Numbers, Tensors


def forward_product(x: Tensor, kind: str, shape: tuple[int, int], tensors: Tensors, numbers: Numbers) -> Tensor:
    """Return `x W^T`, (..., K) -> (..., N), in the dtype of x."""
    if _is_fused(x, kind, shape, numbers):
        return _fused(x, kind, shape, tensors, numbers, over_columns=True)
    return F.linear(x, _weight(x, kind, shape, tensors, numbers))


def backward_product(grad: Tensor, kind: str, shape: tuple[int, int], tensors: Tensors, numbers: Numbers) -> Tensor:
    """Return `grad W`, (..., N) -> (..., K), in the dtype of grad."""
    if _is_fused(grad, kind, shape, numbers):
        return _fused(grad, kind, shape, tensors, numbers, over_columns=False)
    return grad @ _weight(grad, kind, shape, tensors, numbers)


def _weight(like: Tensor, kind: str, shape: tuple[int, int], tensors: Tensors, numbers: Numbers) -> Tensor:
    if torch.compiler.is_compiling():
        return ops.dequantize(kind, tensors, numbers, shape, like.dtype)
    return ops.dequantize_(ops.workspace(shape, like.dtype, like.device), kind, tensors, numbers)


def _is_fused(x: Tensor, kind: str, shape: tuple[int, int], numbers: Numbers) -> bool:
    if not x.is_cuda or torch.compiler.is_compiling() or x.dtype == torch.float64:
        return False
    num_tokens = x.numel() // x.shape[-1]
    return num_tokens <= fused_max_tokens(x.device) and _fits(kind, shape, numbers)


@cache
def fused_max_tokens(device: torch.device) -> int:
    """Return the entry of chips.FUSED_MAX_TOKENS for a device."""
    return chips.fused_max_tokens(torch.cuda.get_device_capability(device))


def _fits(kind: str, shape: tuple[int, int], numbers: Numbers) -> bool:
    from surogate.kernels import fp8, nf4

    if kind == "nf4":
        return nf4.fits_fused(shape[1])
    return kind == "fp4" or fp8.fits_fused((numbers[0], numbers[1]), shape[1])


def _fused(
    x: Tensor, kind: str, shape: tuple[int, int], tensors: Tensors, numbers: Numbers, *, over_columns: bool
) -> Tensor:
    from surogate.kernels import fp4, fp8, layouts, nf4

    x_MK = x.reshape(-1, x.shape[-1]).contiguous()
    num_out = shape[0] if over_columns else shape[1]
    if kind == "nf4":
        product = nf4.linear_nt if over_columns else nf4.linear_nn
        y_MN = product(x_MK, tensors[0], layouts.Nf4Scales(*tensors[1:]), numbers[0], num_out)
    elif kind == "fp8":
        multiply = fp8.linear_nt if over_columns else fp8.linear_nn
        y_MN = multiply(x_MK, tensors[0], tensors[1], (numbers[0], numbers[1]))
    else:
        compute = fp4.linear_nt if over_columns else fp4.linear_nn
        y_MN = compute(x_MK, *tensors, divides=bool(numbers[0]))
    return y_MN.view(*x.shape[:-1], num_out)
