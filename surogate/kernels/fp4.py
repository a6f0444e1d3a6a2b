"""Triton kernels for FP4 E2M1 weights in blocks of a row: NVFP4 (16 values, an E4M3 scale) and MXFP4 (32, E8M0).

Here: quantise, dequantise, products with a weight that stays packed, the conversions of E2M1. The stacked experts of
gpt-oss lie in memory as MXFP4 rows do, so the same kernels read them. Not here: the specification (reference.py),
stochastic rounding (rounding.py), products on FP4 tensor cores.

The one idea: rows are whole blocks, so a weight is read flat, a 32-bit word of 8 codes a lane, as in nf4.py; the two
formats differ only in how a byte becomes a step.

Shape legend: M rows of activations, N (or R) rows and K (or C) columns of a weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from surogate.kernels._launch import (
    EXACT,
    TENSOR_CORES,
    GemmTile,
    Target,
    flat,
    gemm_grid,
    gemm_tile,
    load_activations,
    store_product,
    words,
)
from surogate.kernels.fp8 import e4m3_to_f32, f32_to_e4m3
from surogate.kernels.reference import MXFP4_BLOCK, NVFP4_BLOCK

MICROSCALING, MULTIPLIES, DIVIDES = 0, 1, 2
"""How a block's byte becomes its step: a power of two (MXFP4), or E4M3 times or divided by a scale of the tensor."""

# ---- conversions


@triton.jit
def e2m1_to_f32(code):
    """Return the value of E2M1 codes 0..15.

    Exponent and mantissa, placed where float32 has them, are the value times 2 ** -126; the subnormal 0.5 too.
    """
    bits = code.to(tl.uint32)
    placed = ((bits & 8) << 28) | ((bits & 7) << 22)
    return placed.to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2 ** 126


@triton.jit
def f32_to_e2m1(x):
    """Round to the nearest E2M1 (ties to even), saturating at 6; codes 0..15, the sign of zero stays."""
    a = tl.abs(x)
    code = (a > 0.25).to(tl.uint32) + (a >= 0.75).to(tl.uint32) + (a > 1.25).to(tl.uint32) + (a >= 1.75).to(tl.uint32)
    code += (a > 2.5).to(tl.uint32) + (a >= 3.5).to(tl.uint32) + (a > 5.0).to(tl.uint32)
    return code | ((x.to(tl.uint32, bitcast=True) >> 28) & 8)


@triton.jit
def power_of_two(exponent):
    """Return 2 ** exponent for -127 .. 128 (infinity), exact; -127 is a subnormal number."""
    bits = tl.where(exponent == -127, 0x400000, (exponent + 127) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def store_packed(codes_ptr, code, num_bytes, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """Write codes (BLOCKS, BLOCK) two to a byte, the first in the low nibble, at most num_bytes."""
    low, high = tl.split(tl.reshape(code, (BLOCKS, BLOCK // 2, 2)))
    offsets = tl.arange(0, BLOCKS)[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(codes_ptr + offsets, (low | (high << 4)).to(tl.uint8), mask=offsets < num_bytes)


@triton.jit
def divide(x, step, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """Return x (BLOCKS, BLOCK) divided by a step for each block, with IEEE rounding."""
    return tl.math.div_rn(x, tl.broadcast_to(step[:, None], (BLOCKS, BLOCK)))


@triton.jit
def nvfp4_scale(amax, global_scale, FACTOR: tl.constexpr):
    """Return the E4M3 code of a block's scale, never 0, that puts FACTOR times the amax on 6; and the step."""
    six = tl.full(amax.shape, 6.0, tl.float32)
    scale = f32_to_e4m3(tl.math.div_rn(amax, six) * global_scale * FACTOR)
    scale = tl.where(scale == 0, 0x20, scale).to(tl.uint8)  # a block of zeros has 0.125
    return scale, tl.math.div_rn(e4m3_to_f32(scale), tl.broadcast_to(global_scale, amax.shape))


# ---- quantise


@triton.jit
def _squared_error(code, step, x, BLOCKS: tl.constexpr):
    """Return the squared error of blocks of 16, summed neighbours first, the order of the reference."""
    difference = e2m1_to_f32(code) * step[:, None] - x
    error = difference * difference
    a, b = tl.split(tl.reshape(error, (BLOCKS, 8, 2)))
    a, b = tl.split(tl.reshape(a + b, (BLOCKS, 4, 2)))
    a, b = tl.split(tl.reshape(a + b, (BLOCKS, 2, 2)))
    a, b = tl.split(a + b)
    return a + b


@triton.jit
def _quantize_nvfp4(
    x_ptr, global_scale_ptr, codes_ptr, scale_ptr, num_blocks, FOUR_OVER_SIX: tl.constexpr, BLOCKS: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    left = num_blocks - first
    block = tl.arange(0, BLOCKS)
    offsets = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + first * 16 + offsets, mask=offsets < left * 16, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(x), 1)
    global_scale = tl.load(global_scale_ptr)
    scale, step = nvfp4_scale(amax, global_scale, 1.0)
    code = f32_to_e2m1(divide(x, step, BLOCKS, 16))
    if FOUR_OVER_SIX:
        larger_scale, larger_step = nvfp4_scale(amax, global_scale, 1.5)
        other_code = f32_to_e2m1(divide(x, larger_step, BLOCKS, 16))
        better = _squared_error(other_code, larger_step, x, BLOCKS) < _squared_error(code, step, x, BLOCKS)
        scale = tl.where(better, larger_scale, scale)
        code = tl.where(better[:, None], other_code, code)
    store_packed(codes_ptr + first * 8, code, left * 8, BLOCKS, 16)
    tl.store(scale_ptr + first + block, scale, mask=block < left)


@triton.jit
def _quantize_mxfp4(x_ptr, codes_ptr, scale_ptr, num_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    left = num_blocks - first
    block = tl.arange(0, BLOCKS)
    offsets = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + first * 32 + offsets, mask=offsets < left * 32, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(x), 1)
    # floor(log2(amax)) - 2, the exponent of 4 in E2M1; subnormal numbers and 0 end at the smallest scale
    exponent = tl.maximum((amax.to(tl.int32, bitcast=True) >> 23) - 127 - 2, -127)
    code = f32_to_e2m1(x * power_of_two(-exponent)[:, None])
    store_packed(codes_ptr + first * 16, code, left * 16, BLOCKS, 32)
    tl.store(scale_ptr + first + block, (exponent + 127).to(tl.uint8), mask=block < left)


def _empty_like_blocks(weight_RC: Tensor, block: int) -> tuple[Tensor, Tensor]:
    R, C = weight_RC.shape
    assert C % block == 0, f"rows are whole blocks of {block}: {C}"
    codes = torch.empty(R, C // 2, dtype=torch.uint8, device=weight_RC.device)
    return codes, torch.empty(R, C // block, dtype=torch.uint8, device=weight_RC.device)


def quantize_nvfp4(
    weight_RC: Tensor, global_scale: Tensor, four_over_six: bool, *, program_elements: int = 2048
) -> tuple[Tensor, Tensor]:
    """Quantise to NVFP4, bit for bit as `reference.nvfp4_quantize`.

    Args:
        weight_RC: float32, bfloat16 or float16, contiguous, C a multiple of 16.
        global_scale: float32 (1,), which divides the scales.
        four_over_six: quantise each block to 6 and to 4, and keep what has the smaller squared error.
        program_elements: elements of one program.

    Returns:
        codes: uint8 (R, C / 2), the first of a pair in the low nibble.
        scale: uint8 (R, C / 16), E4M3.
    """
    codes, scale = _empty_like_blocks(weight_RC, NVFP4_BLOCK)
    if num_blocks := scale.numel():
        blocks = program_elements // NVFP4_BLOCK
        pointers = (flat(weight_RC), global_scale, codes, scale)
        _quantize_nvfp4[(triton.cdiv(num_blocks, blocks),)](*pointers, num_blocks, four_over_six, blocks, **EXACT)
    return codes, scale


def quantize_mxfp4(weight_RC: Tensor, *, program_elements: int = 2048) -> tuple[Tensor, Tensor]:
    """Quantise to MXFP4, bit for bit as `reference.mxfp4_quantize`.

    Args:
        weight_RC: float32, bfloat16 or float16, contiguous, C a multiple of 32.
        program_elements: elements of one program.

    Returns:
        codes: uint8 (R, C / 2), the first of a pair in the low nibble.
        scale: uint8 (R, C / 32), E8M0.
    """
    codes, scale = _empty_like_blocks(weight_RC, MXFP4_BLOCK)
    if num_blocks := scale.numel():
        blocks = program_elements // MXFP4_BLOCK
        pointers = (flat(weight_RC), codes, scale)
        _quantize_mxfp4[(triton.cdiv(num_blocks, blocks),)](*pointers, num_blocks, blocks, **EXACT)
    return codes, scale


# ---- dequantise


@triton.jit
def _step_of(word_index, mask, scale_ptr, tensor_scale_ptr, KIND: tl.constexpr):
    """Return the step of the block in which a word of 8 codes lies: `KIND` is one of the three above."""
    if KIND == 0:
        return power_of_two(tl.load(scale_ptr + (word_index >> 2), mask=mask, other=127).to(tl.int32) - 127)
    scale = e4m3_to_f32(tl.load(scale_ptr + (word_index >> 1), mask=mask, other=0))
    tensor_scale = tl.load(tensor_scale_ptr)
    if KIND == 1:
        return scale * tensor_scale
    return tl.math.div_rn(scale, tl.broadcast_to(tensor_scale, scale.shape))


@triton.jit
def _dequantize_words(
    out_ptr, words_ptr, scale_ptr, tensor_scale_ptr, num_words, KIND: tl.constexpr, WORDS: tl.constexpr
):
    first = tl.program_id(0) * WORDS
    lane = tl.arange(0, WORDS)
    mask = first + lane < num_words
    word = tl.load(words_ptr + first + lane, mask=mask, other=0)
    step = _step_of(first + lane, mask, scale_ptr, tensor_scale_ptr, KIND)
    element = tl.arange(0, 8)
    value = e2m1_to_f32((word[:, None] >> (element * 4)[None, :]) & 0xF) * step[:, None]
    offsets = lane[:, None] * 8 + element[None, :]
    tl.store(out_ptr + first.to(tl.int64) * 8 + offsets, value.to(out_ptr.dtype.element_ty), mask=mask[:, None])


def _kind(tensor_scale: Tensor | None, divides: bool) -> int:
    if tensor_scale is None:
        return MICROSCALING
    return DIVIDES if divides else MULTIPLIES


def dequantize_(
    out: Tensor, codes: Tensor, scale: Tensor, tensor_scale: Tensor | None, *, divides: bool, num_warps: int = 4
) -> None:
    """Write `code * step` into a contiguous tensor, the float32 product rounded once to its dtype.

    Args:
        out: float32, bfloat16 or float16, n elements in any shape whose last dimension is whole blocks.
        codes: uint8, n / 2, from a multiple of 4 bytes on, the first of a pair in the low nibble.
        scale: uint8; E4M3, n / 16, or without a tensor scale E8M0, n / 32.
        tensor_scale: float32 (1,), NVFP4's; None for MXFP4.
        divides: the tensor scale divides the block scale (compressed-tensors) or multiplies it (ModelOpt).
        num_warps: a program has 32 words for each.
    """
    if out.numel() == 0:
        return
    num_words, program_words = out.numel() // 8, 32 * num_warps
    _dequantize_words[(triton.cdiv(num_words, program_words),)](
        flat(out),
        words(codes, num_words),
        flat(scale),
        scale if tensor_scale is None else tensor_scale,
        num_words,
        KIND=_kind(tensor_scale, divides),
        WORDS=program_words,
        num_warps=num_warps,
        **EXACT,
    )


# ---- products with a packed weight


@triton.jit
def _multiply(
    x_ptr,
    words_ptr,
    scale_ptr,
    tensor_scale_ptr,
    y_ptr,
    M,
    N,
    K,
    OVER_COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute y = x W^T (the sum runs over the columns of W) or y = x W (over its rows), W (N, K) packed.

    The weight is rounded to x's dtype before the product, as if it had been dequantised to memory.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS
    num_outputs = N if OVER_COLUMNS else K
    depth = K if OVER_COLUMNS else N
    NUM_N: tl.constexpr = OUTPUTS if OVER_COLUMNS else DEPTH
    NUM_K: tl.constexpr = DEPTH if OVER_COLUMNS else OUTPUTS
    shift = tl.arange(0, 8) * 4
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, depth, DEPTH):
        n = (output if OVER_COLUMNS else start) + tl.arange(0, NUM_N)
        word_of_row = ((start if OVER_COLUMNS else output) // 8) + tl.arange(0, NUM_K // 8)
        mask = (n < N)[:, None] & (word_of_row < K // 8)[None, :]
        index = n[:, None] * (K // 8) + word_of_row[None, :]
        word = tl.load(words_ptr + index, mask=mask, other=0)
        step = _step_of(index, mask, scale_ptr, tensor_scale_ptr, KIND)
        value = e2m1_to_f32((word[:, :, None] >> shift[None, None, :]) & 0xF) * step[:, :, None]
        w = tl.reshape(value, (NUM_N, NUM_K)).to(x_ptr.dtype.element_ty)
        x = load_activations(x_ptr, row, start + tl.arange(0, DEPTH), M, depth)
        sums = tl.dot(x, tl.trans(w) if OVER_COLUMNS else w, sums, input_precision="ieee")
    store_product(y_ptr, sums, row, output + tl.arange(0, OUTPUTS), M, num_outputs)


def linear_nt(
    x_MK: Tensor,
    codes: Tensor,
    scale: Tensor,
    tensor_scale: Tensor | None,
    *,
    divides: bool,
    tile: GemmTile | None = None,
) -> Tensor:
    """Return `x @ W^T` in x's dtype, sums in float32.

    Args:
        x_MK: float32, bfloat16 or float16, contiguous.
        codes: uint8 (N, K / 2).
        scale: of the blocks, as `dequantize_` takes it.
        tensor_scale: float32 (1,), NVFP4's; None for MXFP4.
        divides: the tensor scale divides the block scale.
        tile: of a program; None chooses by M.
    """
    y_MN = x_MK.new_empty(x_MK.shape[0], codes.shape[0])
    _launch_multiply(x_MK, codes, scale, tensor_scale, divides, y_MN, True, tile)
    return y_MN


def linear_nn(
    g_MN: Tensor,
    codes: Tensor,
    scale: Tensor,
    tensor_scale: Tensor | None,
    *,
    divides: bool,
    tile: GemmTile | None = None,
) -> Tensor:
    """Return `g @ W` in g's dtype, the gradient with respect to the input of `linear_nt`.

    Args:
        g_MN: float32, bfloat16 or float16, contiguous.
        codes: uint8 (N, K / 2).
        scale: of the blocks, as `dequantize_` takes it.
        tensor_scale: float32 (1,), NVFP4's; None for MXFP4.
        divides: the tensor scale divides the block scale.
        tile: of a program; None chooses by M.
    """
    dx_MK = g_MN.new_empty(g_MN.shape[0], 2 * codes.shape[1])
    _launch_multiply(g_MN, codes, scale, tensor_scale, divides, dx_MK, False, tile)
    return dx_MK


def _launch_multiply(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    tensor_scale: Tensor | None,
    divides: bool,
    y: Tensor,
    over_columns: bool,
    tile: GemmTile | None,
) -> None:
    num_words = codes.numel() // 4
    M, num_outputs = y.shape
    if num_words == 0 or M == 0:
        y.zero_()
        return
    tile = tile or gemm_tile(M)
    _multiply[gemm_grid(M, num_outputs, tile)](
        flat(x),
        words(codes, num_words),
        flat(scale),
        scale if tensor_scale is None else tensor_scale,
        flat(y),
        M,
        codes.shape[0],
        2 * codes.shape[1],
        OVER_COLUMNS=over_columns,
        KIND=_kind(tensor_scale, divides),
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        DEPTH=tile.depth,
        **tile.options,
    )


# ---- what a launch compiles, for the check without a GPU

_STORED = {"scale_ptr": "*u8:16", "tensor_scale_ptr": "*fp32:16"}
_WORDS = {"out_ptr": "*bf16:16", "words_ptr": "*i32:16", "num_words": "i32:16", **_STORED}
_PRODUCT = {"x_ptr": "*bf16:16", "words_ptr": "*i32:16", "y_ptr": "*bf16:16", "M": "i32", "N": "i32:16", "K": "i32:16"}
_BLOCKS = {"x_ptr": "*bf16:16", "codes_ptr": "*u8:16", "scale_ptr": "*u8:16", "num_blocks": "i32:16"}
_NVFP4_BLOCKS = {**_BLOCKS, "global_scale_ptr": "*fp32:16"}


def _words_target(kind: int) -> Target:
    return Target(_dequantize_words, _WORDS, {"KIND": kind, "WORDS": 128}, EXACT, expected={0: r"STG\.E\.128"})


def _product_target(tile: GemmTile, over_columns: bool, kind: int, expected: dict[int, str]) -> Target:
    shape = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "DEPTH": tile.depth}
    constants = {"OVER_COLUMNS": over_columns, "KIND": kind, **shape}
    return Target(_multiply, {**_PRODUCT, **_STORED}, constants, tile.options, expected=expected)


TARGETS = {
    "quantize_nvfp4": Target(_quantize_nvfp4, _NVFP4_BLOCKS, {"FOUR_OVER_SIX": False, "BLOCKS": 128}, EXACT),
    "quantize_nvfp4 4/6": Target(_quantize_nvfp4, _NVFP4_BLOCKS, {"FOUR_OVER_SIX": True, "BLOCKS": 128}, EXACT),
    "quantize_mxfp4": Target(_quantize_mxfp4, _BLOCKS, {"BLOCKS": 64}, EXACT),
    "dequantize mxfp4": _words_target(MICROSCALING),
    "dequantize nvfp4": _words_target(DIVIDES),
    "linear_nt mxfp4": _product_target(gemm_tile(64), True, MICROSCALING, TENSOR_CORES),
    "linear_nt nvfp4 few rows": _product_target(gemm_tile(1), True, DIVIDES, {0: "HMMA"}),
    "linear_nn nvfp4": _product_target(gemm_tile(64), False, MULTIPLIES, TENSOR_CORES),
}
"""Name -> kernel as compiled."""
