"""Triton kernels for 4-bit codes of 16 levels in blocks over the flattened weight: bitsandbytes' NF4 (and FP4).

Here: quantise to NF4, dequantise, and products with a weight that stays packed. Not here: the specification
(reference.py), the choice between a fused product and dequantising into a workspace (quant/).

The one idea: a lane reads one 32-bit word, 8 codes, and writes 8 neighbouring weights, one 16-byte store of bfloat16.
With as many words a program as lanes, the layouts of loads and stores agree and nothing moves through shared memory:
about 10 instructions a weight on SM90, where bitsandbytes' kernel has 26.5 and the memory bound is near 20.

Shape legend: M rows of activations, N rows and K columns of a weight; a block has one scale.
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
from surogate.kernels.layouts import Nf4Scales
from surogate.kernels.reference import NF4_LEVELS

_levels = torch.tensor(NF4_LEVELS)
MIDPOINTS = tuple(((_levels[:-1] + _levels[1:]) / 2).tolist())
"""What separates neighbouring levels, float32: the code of a value is the number of midpoints below it."""


@triton.jit
def _quantize_blocks(
    x_ptr, codes_ptr, absmax_ptr, num_elements, MIDPOINTS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """Quantise BLOCKS blocks of BLOCK elements; the last block of the weight may be shorter."""
    first_block = tl.program_id(0) * BLOCKS
    first = first_block.to(tl.int64) * BLOCK
    left = num_elements - first
    blocks = tl.arange(0, BLOCKS)
    offsets = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + first + offsets, mask=offsets < left, other=0.0).to(tl.float32)

    absmax = tl.max(tl.abs(x), 1)
    # 1e-38 by its bits: below the smallest normal number, a literal would be float64 for Triton 3.6
    divisor = tl.maximum(absmax, tl.full((BLOCKS,), 0x006CE3EE, tl.int32).to(tl.float32, bitcast=True))
    inverse = tl.math.div_rn(tl.full((BLOCKS,), 1.0, tl.float32), divisor)
    # bitsandbytes multiplies by the reciprocal, but divides in a block that is short
    is_short = (blocks + 1) * BLOCK > left
    quotient = tl.math.div_rn(x, tl.broadcast_to(divisor[:, None], (BLOCKS, BLOCK)))
    scaled = tl.clamp(tl.where(is_short[:, None], quotient, x * inverse[:, None]), -1.0, 1.0)
    code = tl.zeros((BLOCKS, BLOCK), tl.int32)
    for i in tl.static_range(15):
        code += (scaled > MIDPOINTS[i]).to(tl.int32)

    first_of_pair, second_of_pair = tl.split(tl.reshape(code, (BLOCKS, BLOCK // 2, 2)))
    pairs = blocks[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    packed = ((first_of_pair << 4) | second_of_pair).to(tl.uint8)
    tl.store(codes_ptr + first // 2 + pairs, packed, mask=2 * pairs < left)
    tl.store(absmax_ptr + first_block + blocks, tl.where(is_short, divisor, absmax), mask=blocks * BLOCK < left)


def quantize(weight: Tensor, block_size: int, *, program_elements: int = 2048) -> tuple[Tensor, Tensor]:
    """Quantise to NF4, bit for bit as `reference.nf4_quantize`.

    Args:
        weight: float32, bfloat16 or float16, contiguous, any shape.
        block_size: a power of two, 8 or more.
        program_elements: elements of one program.

    Returns:
        codes: uint8 (ceil(n / 2), 1), the first element in the high nibble.
        absmax: float32 (ceil(n / block_size),).
    """
    assert_block_size(block_size)
    num = weight.numel()
    num_blocks = triton.cdiv(num, block_size)
    codes = torch.empty((num + 1) // 2, 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(num_blocks, dtype=torch.float32, device=weight.device)
    blocks = max(program_elements // block_size, 1)
    if num:
        grid = (triton.cdiv(num_blocks, blocks),)
        _quantize_blocks[grid](flat(weight), codes, absmax, num, MIDPOINTS, block_size, blocks, **EXACT)
    return codes, absmax


def assert_block_size(block_size: int) -> None:
    """Check that the 8 codes of a word lie in one block, and that its index is a shift."""
    assert block_size >= 8 and block_size.bit_count() == 1, f"the block size is a power of two from 8 on: {block_size}"


@triton.jit
def _scale_of(block, mask, absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr, NESTED: tl.constexpr):
    """Return the scale of blocks; nested ones take two roundings, product and sum."""
    if NESTED:
        code = tl.load(absmax_ptr + block, mask=mask, other=0).to(tl.int32)
        nested_absmax = tl.load(nested_absmax_ptr + (block >> 8), mask=mask, other=0.0)
        return tl.load(nested_levels_ptr + code) * nested_absmax + tl.load(offset_ptr)
    else:
        return tl.load(absmax_ptr + block, mask=mask, other=0.0)


@triton.jit
def _dequantize_words(
    out_ptr,
    words_ptr,
    codes_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    num_words,
    tail,
    LOG2_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Dequantise WORDS words; program 0 also the `tail` codes, fewer than 8, behind the last whole word."""
    first = tl.program_id(0) * WORDS
    lane = tl.arange(0, WORDS)
    mask = first + lane < num_words
    word = tl.load(words_ptr + first + lane, mask=mask, other=0)
    block = (first + lane) >> (LOG2_BLOCK - 3)
    scale = _scale_of(block, mask, absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr, NESTED)
    element = tl.arange(0, 8)
    shift = (element >> 1) * 8 + 4 - (element & 1) * 4  # bytes from the low end, in each the high nibble first
    value = tl.load(levels_ptr + ((word[:, None] >> shift[None, :]) & 0xF)) * scale[:, None]
    offsets = lane[:, None] * 8 + element[None, :]
    tl.store(out_ptr + first.to(tl.int64) * 8 + offsets, value.to(out_ptr.dtype.element_ty), mask=mask[:, None])
    if HAS_TAIL:  # noqa: SIM102 -- known when it compiles, the other when it runs
        if first == 0:
            start = tl.cast(num_words, tl.int64) * 8  # an argument that is 1 has no methods
            code = _code_at(codes_ptr + start // 2, element, element < tail)
            # all of it lies in one block, which begins at a multiple of 8
            last_block = num_words >> (LOG2_BLOCK - 3)
            last_scale = _scale_of(
                last_block, True, absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr, NESTED
            )
            last = tl.load(levels_ptr + code) * last_scale
            tl.store(out_ptr + start + element, last.to(out_ptr.dtype.element_ty), mask=element < tail)


@triton.jit
def _code_at(codes_ptr, element, mask):
    """Return codes one by one, for where a word would reach past the end."""
    byte = tl.load(codes_ptr + (element >> 1), mask=mask, other=0).to(tl.int32)
    return (byte >> (4 - (element & 1) * 4)) & 0xF


def dequantize_(out: Tensor, codes: Tensor, scales: Nf4Scales, block_size: int, *, num_warps: int = 4) -> None:
    """Write `levels[code] * absmax` into a contiguous tensor, the float32 product rounded once to its dtype.

    One launch, with nested scales too.

    Args:
        out: float32, bfloat16 or float16, n elements in any shape.
        codes: uint8, ceil(n / 2), from a multiple of 4 bytes on.
        scales: of the blocks.
        block_size: a power of two, 8 or more.
        num_warps: a program has 32 words for each.
    """
    assert_block_size(block_size)
    num = out.numel()
    if num == 0:
        return
    num_words, tail = divmod(num, 8)
    program_words = 32 * num_warps
    _dequantize_words[(max(triton.cdiv(num_words, program_words), 1),)](
        flat(out),
        words(codes, num_words),
        flat(codes),
        *scale_pointers(scales),
        num_words,
        tail,
        LOG2_BLOCK=block_size.bit_length() - 1,
        NESTED=scales.nested_absmax is not None,
        HAS_TAIL=tail > 0,
        WORDS=program_words,
        num_warps=num_warps,
        **EXACT,
    )


def scale_pointers(scales: Nf4Scales) -> tuple[Tensor, ...]:
    """Return levels, absmax and the three tensors of nested scales; where there are none, absmax stands in."""
    nested = (scales.nested_absmax, scales.nested_levels, scales.offset)
    return scales.levels, scales.absmax, *(scales.absmax if tensor is None else tensor for tensor in nested)


# ---- products with a packed weight


@triton.jit
def _multiply(
    x_ptr,
    words_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    y_ptr,
    M,
    N,
    K,
    OVER_COLUMNS: tl.constexpr,
    LOG2_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
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
    element = tl.arange(0, 8)
    shift = (element >> 1) * 8 + 4 - (element & 1) * 4
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, depth, DEPTH):
        n = (output if OVER_COLUMNS else start) + tl.arange(0, NUM_N)
        word_of_row = ((start if OVER_COLUMNS else output) // 8) + tl.arange(0, NUM_K // 8)
        mask = (n < N)[:, None] & (word_of_row < K // 8)[None, :]
        index = n[:, None] * (K // 8) + word_of_row[None, :]
        word = tl.load(words_ptr + index, mask=mask, other=0)
        block = index >> (LOG2_BLOCK - 3)
        scale = _scale_of(block, mask, absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr, NESTED)
        value = tl.load(levels_ptr + ((word[:, :, None] >> shift[None, None, :]) & 0xF)) * scale[:, :, None]
        w = tl.reshape(value, (NUM_N, NUM_K)).to(x_ptr.dtype.element_ty)
        x = load_activations(x_ptr, row, start + tl.arange(0, DEPTH), M, depth)
        sums = tl.dot(x, tl.trans(w) if OVER_COLUMNS else w, sums, input_precision="ieee")
    store_product(y_ptr, sums, row, output + tl.arange(0, OUTPUTS), M, num_outputs)


def fits_fused(num_columns: int) -> bool:
    """Tell whether a weight with K columns can stay packed in a product: a word of 8 codes must not cross rows."""
    return num_columns % 8 == 0


def linear_nt(
    x_MK: Tensor, codes: Tensor, scales: Nf4Scales, block_size: int, num_rows: int, tile: GemmTile | None = None
) -> Tensor:
    """Return `x @ W^T` in x's dtype, sums in float32.

    Args:
        x_MK: float32, bfloat16 or float16, contiguous, K a multiple of 8.
        codes: uint8, of W (N, K) row by row.
        scales: of the blocks.
        block_size: a power of two, 8 or more.
        num_rows: N.
        tile: of a program; None chooses by M.
    """
    y_MN = x_MK.new_empty(x_MK.shape[0], num_rows)
    shape = (num_rows, x_MK.shape[1])
    _launch_multiply(x_MK, codes, scales, block_size, y_MN, shape, True, tile)
    return y_MN


def linear_nn(
    g_MN: Tensor, codes: Tensor, scales: Nf4Scales, block_size: int, num_columns: int, tile: GemmTile | None = None
) -> Tensor:
    """Return `g @ W` in g's dtype, the gradient with respect to the input of `linear_nt`.

    Args:
        g_MN: float32, bfloat16 or float16, contiguous.
        codes: uint8, of W (N, K) row by row.
        scales: of the blocks.
        block_size: a power of two, 8 or more.
        num_columns: K, a multiple of 8.
        tile: of a program; None chooses by M.
    """
    dx_MK = g_MN.new_empty(g_MN.shape[0], num_columns)
    shape = (g_MN.shape[1], num_columns)
    _launch_multiply(g_MN, codes, scales, block_size, dx_MK, shape, False, tile)
    return dx_MK


def _launch_multiply(
    x: Tensor,
    codes: Tensor,
    scales: Nf4Scales,
    block_size: int,
    y: Tensor,
    weight_shape: tuple[int, int],
    over_columns: bool,
    tile: GemmTile | None,
) -> None:
    assert_block_size(block_size)
    num_rows, num_columns = weight_shape
    assert fits_fused(num_columns), f"columns come in words of 8 codes: {num_columns}"
    num_words = num_rows * num_columns // 8
    M, num_outputs = y.shape
    if num_words == 0 or M == 0:
        y.zero_()
        return
    tile = tile or gemm_tile(M)
    _multiply[gemm_grid(M, num_outputs, tile)](
        flat(x),
        words(codes, num_words),
        *scale_pointers(scales),
        flat(y),
        M,
        num_rows,
        num_columns,
        OVER_COLUMNS=over_columns,
        LOG2_BLOCK=block_size.bit_length() - 1,
        NESTED=scales.nested_absmax is not None,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        DEPTH=tile.depth,
        **tile.options,
    )


# ---- what a launch compiles, for the check without a GPU

_SCALES = {"levels_ptr": "*fp32:16", "absmax_ptr": "*fp32:16"}
_SCALES |= {f"{name}_ptr": "*fp32:16" for name in ("nested_absmax", "nested_levels", "offset")}
_NESTED_SCALES = {**_SCALES, "absmax_ptr": "*u8:16"}
_WORDS = {"out_ptr": "*bf16:16", "words_ptr": "*i32:16", "codes_ptr": "*u8:16", "num_words": "i32:16", "tail": "i32"}
_PRODUCT = {"x_ptr": "*bf16:16", "words_ptr": "*i32:16", "y_ptr": "*bf16:16", "M": "i32", "N": "i32:16", "K": "i32:16"}
_WHOLE = {"LOG2_BLOCK": 6, "NESTED": False, "HAS_TAIL": False, "WORDS": 128}


def _product_target(tile: GemmTile, over_columns: bool, nested: bool, expected: dict[int, str]) -> Target:
    shape = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "DEPTH": tile.depth}
    constants = {"OVER_COLUMNS": over_columns, "LOG2_BLOCK": 6, "NESTED": nested, **shape}
    signature = {**_PRODUCT, **(_NESTED_SCALES if nested else _SCALES)}
    return Target(_multiply, signature, constants, tile.options, expected=expected)


TARGETS = {
    "quantize": Target(
        _quantize_blocks,
        {"x_ptr": "*bf16:16", "codes_ptr": "*u8:16", "absmax_ptr": "*fp32:16", "num_elements": "i32:16"},
        {"MIDPOINTS": MIDPOINTS, "BLOCK": 64, "BLOCKS": 32},
        EXACT,
    ),
    "dequantize": Target(_dequantize_words, {**_WORDS, **_SCALES}, _WHOLE, EXACT, expected={0: r"STG\.E\.128"}),
    "dequantize nested": Target(
        _dequantize_words,
        {**_WORDS, **_NESTED_SCALES},
        {**_WHOLE, "NESTED": True, "HAS_TAIL": True},
        EXACT,
        expected={0: r"STG\.E\.128"},
    ),
    "linear_nt": _product_target(gemm_tile(64), True, False, TENSOR_CORES),
    "linear_nt few rows": _product_target(gemm_tile(1), True, True, {0: "HMMA"}),
    "linear_nn": _product_target(gemm_tile(64), False, False, TENSOR_CORES),
}
"""Name -> kernel as compiled."""
