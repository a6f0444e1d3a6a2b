"""Triton kernels for what the compute recipes do to a tensor before a low-precision product.

Here: the largest magnitude, casts to FP8 with a given scale, NVFP4 with stochastic rounding or in 16x16 tiles, the
random Hadamard transform. Not here: the specification (reference_rounding.py), formats of stored weights (fp8, fp4).

The one idea: everything random comes from a seed in device memory, never from a Python number, so that a CUDA graph
that is played again draws new numbers; the kernels draw what `reference_rounding.philox_uniform` returns for that seed.

Shape legend: R rows, C columns; a block is 16 neighbours of a row with one scale, a tile is 16 x 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surogate.kernels._launch import EXACT, Target, flat, has_native_fp8
from surogate.kernels.fp4 import divide, f32_to_e2m1, nvfp4_scale, store_packed
from surogate.kernels.fp8 import f32_to_e4m3, magnitude_bits
from surogate.kernels.reference import NVFP4_BLOCK, nvfp4_global_scale

PROGRAM_ELEMENTS = 4096
"""Of kernels that read a tensor once, element by element: 32 a lane, four 16-byte loads of bfloat16."""


@triton.jit
def _amax(x_ptr, amax_ptr, num_elements, ELEMENTS: tl.constexpr):
    """Raise amax, the bits of a float32, to the largest magnitude; a maximum knows no order."""
    first = tl.program_id(0).to(tl.int64) * ELEMENTS
    offsets = tl.arange(0, ELEMENTS)
    x = tl.load(x_ptr + first + offsets, mask=offsets < num_elements - first, other=0.0)
    tl.atomic_max(amax_ptr, tl.max(magnitude_bits(x), 0))


def amax(x: Tensor, *, program_elements: int = PROGRAM_ELEMENTS) -> Tensor:
    """Return the largest magnitude of a contiguous tensor, a float32 scalar; 0 if it is empty, NaN if it has a NaN."""
    result = torch.zeros((), device=x.device)
    if num := x.numel():
        grid = (triton.cdiv(num, program_elements),)
        _amax[grid](flat(x), result.view(torch.int32), num, program_elements, **EXACT)
    return result


# ---- FP8


@triton.jit
def f32_to_e5m2(x):
    """Round to the nearest E5M2 (ties to even), saturating at 57344; NaN stays NaN; uint8."""
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    magnitude = tl.minimum(tl.abs(x), 57344.0)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # 2 bits of mantissa stay, the bias 127 becomes 15; see f32_to_e4m3
    normal = ((bits + 0xFFFFF + ((bits >> 21) & 1)) >> 21) - (112 << 2)
    # below 2 ** -14: next to 2 ** 7 float32 has steps of 2 ** -16
    subnormal = (magnitude + 128.0).to(tl.uint32, bitcast=True) - 0x43000000
    code = tl.where(magnitude < 0.00006103515625, subnormal, normal)
    return (sign | tl.where(x == x, code, 0x7F)).to(tl.uint8)


@triton.jit
def _quantize_fp8(
    x_ptr,
    inverse_scale_ptr,
    codes_ptr,
    amax_ptr,
    num_elements,
    HAS_AMAX: tl.constexpr,
    IS_E4M3: tl.constexpr,
    NATIVE: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ELEMENTS
    offsets = tl.arange(0, ELEMENTS)
    mask = offsets < num_elements - first
    x = tl.load(x_ptr + first + offsets, mask=mask, other=0.0).to(tl.float32)
    scaled = x * tl.load(inverse_scale_ptr)
    if NATIVE:
        codes = scaled.to(codes_ptr.dtype.element_ty)
    elif IS_E4M3:
        codes = f32_to_e4m3(scaled)
    else:
        codes = f32_to_e5m2(scaled)
    tl.store(codes_ptr + first + offsets, codes, mask=mask)
    if HAS_AMAX:
        tl.atomic_max(amax_ptr, tl.max(magnitude_bits(x), 0))


def quantize_fp8(
    x: Tensor,
    inverse_scale: Tensor,
    dtype: torch.dtype,
    amax: Tensor | None = None,
    *,
    native: bool | None = None,
    program_elements: int = PROGRAM_ELEMENTS,
) -> Tensor:
    """Round `x * inverse_scale` to FP8, saturating, bit for bit as `reference_rounding.fp8_cast`.

    Args:
        x: float32, bfloat16 or float16, contiguous.
        inverse_scale: float32 scalar.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        amax: float32 scalar, raised to the largest magnitude of x in the same pass (delayed scaling).
        native: convert with the chip's instructions; None asks the chip.
        program_elements: elements of one program.

    Returns:
        uint8, of x's shape.
    """
    native = has_native_fp8(x.device) if native is None else native
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    if num := x.numel():
        _quantize_fp8[(triton.cdiv(num, program_elements),)](
            flat(x),
            inverse_scale,
            codes.view(dtype) if native else codes,
            (inverse_scale if amax is None else amax).view(torch.int32),
            num,
            HAS_AMAX=amax is not None,
            IS_E4M3=dtype == torch.float8_e4m3fn,
            NATIVE=native,
            ELEMENTS=program_elements,
            **EXACT,
        )
    return codes


# ---- NVFP4


@triton.jit
def _stochastic_e2m1(values, uniform):
    """Return E2M1 codes of one of the two neighbours, as `reference_rounding.stochastic_e2m1_encode`."""
    a = tl.minimum(tl.abs(values), 6.0)
    first_code = tl.where(a < 2, 0.0, tl.where(a < 4, 4.0, 6.0))
    start = tl.where(a < 2, 0.0, tl.where(a < 4, 2.0, 4.0))
    steps = (a - start) * tl.where(a < 2, 2.0, tl.where(a < 4, 1.0, 0.5))
    below = steps.to(tl.int32).to(tl.float32)  # tl.floor would flush subnormal numbers
    code = first_code + below + (uniform < steps - below).to(tl.float32)
    return code.to(tl.uint32) | ((values.to(tl.uint32, bitcast=True) >> 28) & 8)


@triton.jit
def _uniform(seed_ptr, first_counter, BLOCKS: tl.constexpr):
    """Return 16 numbers a block (BLOCKS, 16) in [0, 1); a counter of Philox makes four neighbours."""
    counter = first_counter + tl.arange(0, BLOCKS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    a, b, c, d = tl.randint4x(tl.load(seed_ptr), counter)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # (BLOCKS, 4, 2, 2), so that the order is a, b, c, d
    return (tl.reshape(words, (BLOCKS, 16)).to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _quantize_nvfp4_stochastic(
    x_ptr, global_scale_ptr, seed_ptr, codes_ptr, scale_ptr, num_blocks, BLOCKS: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    left = num_blocks - first
    block = tl.arange(0, BLOCKS)
    offsets = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + first * 16 + offsets, mask=offsets < left * 16, other=0.0).to(tl.float32)
    scale, step = nvfp4_scale(tl.max(tl.abs(x), 1), tl.load(global_scale_ptr), 1.0)
    code = _stochastic_e2m1(divide(x, step, BLOCKS, 16), _uniform(seed_ptr, first * 4, BLOCKS))
    store_packed(codes_ptr + first * 8, code, left * 8, BLOCKS, 16)
    tl.store(scale_ptr + first + block, scale, mask=block < left)


def _empty_nvfp4(x_RC: Tensor) -> tuple[Tensor, Tensor]:
    R, C = x_RC.shape
    assert C % NVFP4_BLOCK == 0, f"rows are whole blocks of {NVFP4_BLOCK}: {C}"
    codes = torch.empty(R, C // 2, dtype=torch.uint8, device=x_RC.device)
    return codes, torch.empty(R, C // NVFP4_BLOCK, dtype=torch.uint8, device=x_RC.device)


def quantize_nvfp4_stochastic(
    x_RC: Tensor, global_scale: Tensor, seed: Tensor, *, program_elements: int = 2048
) -> tuple[Tensor, Tensor]:
    """Quantise to NVFP4 with stochastic rounding, bit for bit as the reference with `philox_uniform(seed, R * C)`.

    Args:
        x_RC: float32, bfloat16 or float16, contiguous, C a multiple of 16.
        global_scale: float32 (1,), which divides the scales.
        seed: int64 (1,) on x's device; another for each call, or the errors of the calls are the same.
        program_elements: elements of one program.

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3.
    """
    codes, scale = _empty_nvfp4(x_RC)
    if num_blocks := scale.numel():
        blocks = program_elements // NVFP4_BLOCK
        pointers = (flat(x_RC), global_scale, seed, codes, scale)
        _quantize_nvfp4_stochastic[(triton.cdiv(num_blocks, blocks),)](*pointers, num_blocks, blocks, **EXACT)
    return codes, scale


@triton.jit
def _quantize_nvfp4_2d(x_ptr, global_scale_ptr, codes_ptr, scale_ptr, R, C, TILES: tl.constexpr):
    """Quantise TILES tiles of 16 x 16 next to each other."""
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    mask = (row < R)[:, None] & (tile < C // 16)[None, :]
    block = row.to(tl.int64)[:, None] * (C // 16) + tile[None, :]  # (16, TILES)
    offsets = block[:, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    x = tl.load(x_ptr + offsets, mask=mask[:, :, None], other=0.0).to(tl.float32)
    scale, step = nvfp4_scale(tl.max(tl.max(tl.abs(x), 2), 0), tl.load(global_scale_ptr), 1.0)
    code = f32_to_e2m1(tl.math.div_rn(x, tl.broadcast_to(step[None, :, None], (16, TILES, 16))))
    low, high = tl.split(tl.reshape(code, (16, TILES, 8, 2)))
    bytes_ = block[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    tl.store(codes_ptr + bytes_, (low | (high << 4)).to(tl.uint8), mask=mask[:, :, None])
    tl.store(scale_ptr + block, tl.broadcast_to(scale[None, :], (16, TILES)), mask=mask)


def quantize_nvfp4_2d(weight_RC: Tensor, *, num_tiles: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to NVFP4 with one scale a 16x16 tile, bit for bit as `reference_rounding.nvfp4_quantize_2d`.

    Args:
        weight_RC: float32, bfloat16 or float16, contiguous, C a multiple of 16.
        num_tiles: of one program, a power of two.

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3, the same in all rows of a tile.
        global_scale: float32 (1,), which divides the scale.
    """
    R, C = weight_RC.shape
    codes, scale = _empty_nvfp4(weight_RC)
    global_scale = nvfp4_global_scale(weight_RC, four_over_six=False)
    grid = (triton.cdiv(R, 16), triton.cdiv(C // 16, num_tiles))
    _quantize_nvfp4_2d[grid](flat(weight_RC), global_scale, codes, scale, R, C, num_tiles, **EXACT)
    return codes, scale, global_scale


# ---- random Hadamard transform


@triton.jit
def _hadamard16(x_ptr, signs_ptr, y_ptr, num_blocks, BLOCKS: tl.constexpr):
    """Four butterfly stages; each pairs neighbours and rotates the bits of the index, so that all four are the same."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    column = tl.arange(0, 16)
    offsets = tl.arange(0, BLOCKS)[:, None] * 16 + column[None, :]
    mask = offsets < (num_blocks - first) * 16
    y = tl.load(x_ptr + first * 16 + offsets, mask=mask, other=0.0).to(tl.float32)
    y *= tl.load(signs_ptr + column).to(tl.float32)[None, :]
    for _ in tl.static_range(4):
        even, odd = tl.split(tl.reshape(y, (BLOCKS, 8, 2)))
        y = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), (BLOCKS, 16))
    tl.store(y_ptr + first * 16 + offsets, (y * 0.25).to(y_ptr.dtype.element_ty), mask=mask)


def hadamard16(x: Tensor, signs: Tensor, *, program_elements: int = 2048) -> Tensor:
    """Multiply each block of 16 by `diag(signs) H / 4`, bit for bit as `reference_rounding.hadamard16`.

    Args:
        x: float32, bfloat16 or float16, contiguous (..., C), C a multiple of 16.
        signs: +1 or -1, (16,).
        program_elements: elements of one program.

    Returns:
        x's shape and dtype.
    """
    y = torch.empty_like(x)
    if num_blocks := x.numel() // 16:
        blocks = program_elements // 16
        _hadamard16[(triton.cdiv(num_blocks, blocks),)](flat(x), signs, flat(y), num_blocks, blocks, **EXACT)
    return y


# ---- what a launch compiles, for the check without a GPU

_ELEMENTS = {"x_ptr": "*bf16:16", "num_elements": "i32:16"}
_CAST = {**_ELEMENTS, "inverse_scale_ptr": "*fp32", "amax_ptr": "*i32"}
_BLOCKS = {"x_ptr": "*bf16:16", "num_blocks": "i32:16"}
_NVFP4 = {"x_ptr": "*bf16:16", "global_scale_ptr": "*fp32:16", "codes_ptr": "*u8:16", "scale_ptr": "*u8:16"}


def _cast_target(codes: str, native: bool, has_amax: bool) -> Target:
    is_e4m3 = codes != "fp8e5"
    constants = {"HAS_AMAX": has_amax, "IS_E4M3": is_e4m3, "NATIVE": native, "ELEMENTS": PROGRAM_ELEMENTS}
    expected = {0: "F2FP.*E4M3" if is_e4m3 else "F2FP.*E5M2"} if native else {}
    signature = {**_CAST, "codes_ptr": f"*{codes if native else 'u8'}:16"}
    return Target(_quantize_fp8, signature, constants, EXACT, 89 if native else 80, expected)


TARGETS = {
    "amax": Target(_amax, {**_ELEMENTS, "amax_ptr": "*i32"}, {"ELEMENTS": PROGRAM_ELEMENTS}, EXACT),
    "quantize_fp8 e4m3": _cast_target("fp8e4nv", False, False),
    "quantize_fp8 e5m2": _cast_target("fp8e5", False, True),
    "quantize_fp8 e4m3 native": _cast_target("fp8e4nv", True, True),
    "quantize_fp8 e5m2 native": _cast_target("fp8e5", True, False),
    "quantize_nvfp4_stochastic": Target(
        _quantize_nvfp4_stochastic,
        {**_NVFP4, "seed_ptr": "*i64:16", "num_blocks": "i32:16"},
        {"BLOCKS": 128},
        EXACT,
    ),
    "quantize_nvfp4_2d": Target(_quantize_nvfp4_2d, {**_NVFP4, "R": "i32:16", "C": "i32:16"}, {"TILES": 8}, EXACT),
    "hadamard16": Target(
        _hadamard16, {**_BLOCKS, "signs_ptr": "*fp32:16", "y_ptr": "*bf16:16"}, {"BLOCKS": 128}, EXACT
    ),
}
"""Name -> kernel as compiled."""
