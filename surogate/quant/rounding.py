"""Rounding of the operands of a recipe's products, on whichever device they are.

CPU tensors take the specification (kernels/reference_rounding.py), NVFP4 in a quicker form of it (1.4 ms for 512 x 352
values to nearest and 2.3 ms at random on one core, instead of 2.1 and 6.2); CUDA tensors take its Triton twins
(kernels/rounding.py). All give the same bits. What is not here: products, and when which rounding is used.

The one idea: what is random is drawn from torch's generator of the device, so that whoever seeds it decides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surogate.kernels import ops, reference_rounding
from surogate.kernels.reference import (
    E2M1_MAX,
    NVFP4_BLOCK,
    e2m1_encode,
    e4m3_decode,
    e4m3_encode,
    nvfp4_global_scale,
    pack_nibbles,
)

Nvfp4 = tuple[Tensor, Tensor, Tensor]
"""Codes, block scales and the global scale that divides them."""


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Return it as a float32 scalar; NaN where there is one."""
    if _has_triton(tensor):
        from surogate.kernels import rounding

        return rounding.amax(tensor.contiguous())
    return reference_rounding.amax(tensor)


def to_fp8(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor * scale` in FP8, rounded to nearest and saturated."""
    if _has_triton(tensor):
        from surogate.kernels import rounding

        return rounding.quantize_fp8(tensor.contiguous(), scale, dtype).view(dtype)
    return reference_rounding.fp8_cast(tensor, scale, dtype).view(dtype)


def to_nvfp4(matrix_RC: Tensor, four_over_six: bool = False) -> Nvfp4:
    """Round to nearest in blocks of a row; C a multiple of 16."""
    global_scale = nvfp4_global_scale(matrix_RC, four_over_six)
    if not (four_over_six or _has_triton(matrix_RC)):
        return *_in_blocks(matrix_RC, global_scale, e2m1_encode), global_scale
    return *ops.quantize_nvfp4(matrix_RC.contiguous(), global_scale, four_over_six), global_scale


def to_nvfp4_tiles(matrix_RC: Tensor) -> Nvfp4:
    """Round to nearest in tiles of 16 x 16."""
    if _has_triton(matrix_RC):
        from surogate.kernels import rounding

        return rounding.quantize_nvfp4_2d(matrix_RC.contiguous())
    return reference_rounding.nvfp4_quantize_2d(matrix_RC)


def to_nvfp4_at_random(matrix_RC: Tensor) -> Nvfp4:
    """Round up or down in blocks of a row, so that the mean is right."""
    global_scale = nvfp4_global_scale(matrix_RC, four_over_six=False)
    if _has_triton(matrix_RC):
        from surogate.kernels import rounding

        seed = torch.randint(2**62, (1,), device=matrix_RC.device)
        return *rounding.quantize_nvfp4_stochastic(matrix_RC.contiguous(), global_scale, seed), global_scale
    uniform = torch.rand(matrix_RC.shape, device=matrix_RC.device)
    return *_in_blocks(matrix_RC, global_scale, lambda values: e2m1_at_random(values, uniform)), global_scale


def hadamard16(matrix_RC: Tensor, signs: Tensor) -> Tensor:
    """Multiply each block of 16 along the rows by the random Hadamard matrix of these signs."""
    if _has_triton(matrix_RC):
        from surogate.kernels import rounding

        return rounding.hadamard16(matrix_RC.contiguous(), signs)
    return reference_rounding.hadamard16(matrix_RC, signs)


def _in_blocks(matrix_RC: Tensor, global_scale: Tensor, encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return NVFP4 codes and block scales: reference.nvfp4_quantize without its look at the error."""
    R, C = matrix_RC.shape
    blocks = matrix_RC.float().reshape(R, C // NVFP4_BLOCK, NVFP4_BLOCK)
    scale = e4m3_encode(blocks.abs().amax(-1) / E2M1_MAX * global_scale)
    scale = torch.where(scale == 0, _E4M3_EIGHTH, scale)
    step = e4m3_decode(scale) / global_scale
    return pack_nibbles(encode((blocks / step[..., None]).reshape(R, C))), scale


_E4M3_EIGHTH = 0x20
"""The scale of a block of zeros."""


def e2m1_at_random(values: Tensor, uniform: Tensor) -> Tensor:
    """Round as reference_rounding.stochastic_e2m1_encode does.

    The levels have three spacings, 1/2 up to 2, 1 up to 4, 2 up to 6. A magnitude is taken apart into the part of each
    stretch that it covers, counted in steps; at most one of the three is no whole number, so every step here is exact.
    """
    magnitude = values.abs()
    stretches = (
        magnitude.clamp(max=2).mul_(2),
        magnitude.clamp(2, 4).sub_(2),
        magnitude.clamp_(4, 6).sub_(4).mul_(0.5),
    )
    code, fraction = torch.zeros_like(magnitude), torch.zeros_like(magnitude)
    for steps in stretches:
        whole = steps.floor()
        code += whole
        fraction += steps.sub_(whole)
    code += uniform < fraction
    return code.to(torch.uint8).add_(torch.signbit(values).view(torch.uint8), alpha=8)


def _has_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda
