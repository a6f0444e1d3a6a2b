"""The specification of what the compute recipes do to a tensor before a low-precision product, in plain torch.

Here: casts to FP8 with a given scale, stochastic rounding to NVFP4, weights in 16x16 tiles, the random Hadamard
transform. Not here: formats of stored weights (reference.py), Triton (rounding.py), when a recipe does what.

Source: NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149, section 4 and its appendices. The one
idea: whatever is random is an argument (signs, uniform numbers), so that every function is a pure function and a GPU
gives the same bits as a CPU. `philox_uniform` makes such numbers from a seed, in the way the kernels make them.

Shape legend: R rows, C columns; a block is 16 neighbours of a row with one scale, a tile is 16 x 16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from surogate.kernels.reference import (
    E2M1_MAX,
    E4M3_MAX,
    NVFP4_BLOCK,
    e2m1_encode,
    e4m3_decode,
    e4m3_encode,
    nvfp4_global_scale,
    pack_nibbles,
)

_E4M3_EPS_CODE = 0x20
"""E4M3 0.125, the scale of a block of zeros (compressed-tensors)."""

FP8_MAX = {torch.float8_e4m3fn: E4M3_MAX, torch.float8_e5m2: 57344.0}


def fp8_cast(x: Tensor, inverse_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round `x * inverse_scale` to the nearest FP8 (ties to even), saturating; NaN stays NaN.

    Args:
        x: float32, bfloat16 or float16, any shape.
        inverse_scale: float32 scalar.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.

    Returns:
        uint8, of x's shape.
    """
    largest = FP8_MAX[dtype]
    return (x.float() * inverse_scale).clamp(-largest, largest).to(dtype).view(torch.uint8)


def amax(x: Tensor) -> Tensor:
    """Return the largest magnitude, a float32 scalar; 0 for an empty tensor."""
    return x.abs().amax().float() if x.numel() else torch.zeros((), device=x.device)


# ---- random numbers

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEYS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def _multiply_high_low(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both halves of a 32 x 32 bit product; int64 holds no unsigned 64-bit product, so b goes in two parts."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox_uniform(seed: int, num: int, device: torch.device | str = "cpu") -> Tensor:
    """Return uniform numbers in [0, 1), float32 (num,), multiples of 2**-24: the ones that the kernels draw.

    Number i is word i % 4 of Philox-4x32-10 at counter i // 4 under the key `seed` (Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", SC 2011), its upper 24 bits as a fraction.
    """
    counter = torch.arange((num + 3) // 4, dtype=torch.int64, device=device)
    c0, c1 = counter & _LOW, counter >> 32
    c2 = c3 = torch.zeros_like(counter)
    k0, k1 = seed & _LOW, seed >> 32 & _LOW
    for _ in range(10):
        high_a, low_a = _multiply_high_low(_PHILOX_MULTIPLIERS[0], c0)
        high_b, low_b = _multiply_high_low(_PHILOX_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _PHILOX_KEYS[0]) & _LOW, (k1 + _PHILOX_KEYS[1]) & _LOW
    words = torch.stack([c0, c1, c2, c3], dim=1).reshape(-1)[:num]
    return (words >> 8).float() * 2.0**-24


# ---- NVFP4


def stochastic_e2m1_encode(values: Tensor, uniform: Tensor) -> Tensor:
    """Round to one of the two E2M1 neighbours, to the upper one with the probability that makes the mean the value.

    Unbiased for |value| <= 6; beyond, it saturates. All of it is exact in float32: the steps are powers of two.

    Args:
        values: float32, any shape.
        uniform: float32 in [0, 1), of the same shape.

    Returns:
        codes 0..15 in uint8, the sign in bit 3.
    """
    a = values.abs().clamp(max=E2M1_MAX)
    first_code = torch.where(a < 2, 0.0, torch.where(a < 4, 4.0, 6.0))  # levels 0, 0.5 .. | 2, 3 | 4, 6
    start = torch.where(a < 2, 0.0, torch.where(a < 4, 2.0, 4.0))
    inverse_step = torch.where(a < 2, 2.0, torch.where(a < 4, 1.0, 0.5))
    steps = (a - start) * inverse_step
    below = steps.floor()
    code = first_code + below + (uniform < steps - below)
    return code.to(torch.uint8) + 8 * torch.signbit(values).byte()


def _block_scale(amax: Tensor, global_scale: Tensor) -> Tensor:
    """Return E4M3 codes of the scale that puts the largest value of a block on 6, never 0; uint8."""
    scale = e4m3_encode(amax / E2M1_MAX * global_scale)
    return torch.where(scale == 0, _E4M3_EPS_CODE, scale)


def nvfp4_quantize_stochastic(x_RC: Tensor, global_scale: Tensor, uniform_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise to NVFP4 as `reference.nvfp4_quantize` does, with stochastic rounding of the codes: for gradients.

    The block scale itself rounds to nearest, as in the paper, so the largest value of a block can lie up to 1/16 above
    6 and saturate; all others are unbiased.

    Args:
        x_RC: float32, bfloat16 or float16; C a multiple of 16.
        global_scale: as `reference.nvfp4_global_scale(x, four_over_six=False)` returns it.
        uniform_RC: float32 in [0, 1).

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3; a value is `e2m1 * (scale / global_scale)`.
    """
    R, C = x_RC.shape
    blocks = x_RC.float().reshape(R, C // NVFP4_BLOCK, NVFP4_BLOCK)
    scale = _block_scale(blocks.abs().amax(-1), global_scale)
    step = e4m3_decode(scale) / global_scale
    codes = stochastic_e2m1_encode(blocks / step[..., None], uniform_RC.reshape(blocks.shape))
    return pack_nibbles(codes.reshape(R, C)), scale


def nvfp4_quantize_2d(weight_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to NVFP4 with one scale a 16x16 tile, so that the matrix and its transpose have the same values.

    A forward product needs scales along C and the backward one along R; with blocks of a row these would be two
    different weights, and the gradient that of another function (the paper's 2D scaling).

    Args:
        weight_RC: float32, bfloat16 or float16; C a multiple of 16; tiles at the lower edge may be smaller.

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3, the same in all rows of a tile: `reference.nvfp4_dequantize` reads it as it is.
        global_scale: float32 (1,), which divides the scale.
    """
    R, C = weight_RC.shape
    global_scale = nvfp4_global_scale(weight_RC, four_over_six=False)
    rows = F.pad(weight_RC.float(), (0, 0, 0, -R % NVFP4_BLOCK))
    tiles = rows.reshape(-1, NVFP4_BLOCK, C // NVFP4_BLOCK, NVFP4_BLOCK)
    tile_scale = _block_scale(tiles.abs().amax((1, 3)), global_scale)
    scale = tile_scale.repeat_interleave(NVFP4_BLOCK, 0)[:R].contiguous()
    step = (e4m3_decode(scale) / global_scale).repeat_interleave(NVFP4_BLOCK, 1)
    return pack_nibbles(e2m1_encode(weight_RC.float() / step)), scale, global_scale


# ---- random Hadamard transform


def hadamard16(x: Tensor, signs: Tensor) -> Tensor:
    """Multiply each block of 16 along the last dimension by `diag(signs) H / 4`: outliers spread over their block.

    An orthogonal matrix, so `(x Q)(y Q)^T == x y^T` when both operands of a product get it along the axis that is
    summed (in the paper: of the weight gradient). Four butterfly stages in float32; the division by 4 is exact.

    Args:
        x: float32, bfloat16 or float16 (..., C), C a multiple of 16.
        signs: +1 or -1, (16,).

    Returns:
        x's shape and dtype.
    """
    y = x.float().reshape(-1, 16) * signs.float()
    for _ in range(4):  # pairs neighbours and rotates the bits of the index; after four stages the order is back
        even, odd = y[:, ::2], y[:, 1::2]
        y = torch.cat([even + odd, even - odd], dim=1)
    return (y * 0.25).reshape(x.shape).to(x.dtype)
