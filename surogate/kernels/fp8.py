"""Triton kernels for FP8 E4M3 weights with one scale a tile: 128 x 128, a row, or the whole tensor.

Here: quantise, dequantise, products with a weight that stays FP8, and the conversions of E4M3. Not here: the
specification (reference.py), products on FP8 tensor cores (quant/ calls torch for them).

The one idea: a program works within one tile, so that its scale is one number. The conversions exist twice. In integer
arithmetic they run on every chip, since before SM89 there is no E4M3 type; natively they take half the instructions
(dequantising on SM90: 10.6 a weight instead of 18.3, where about 20 is what memory allows).

Shape legend: M rows of activations, N (or R) rows and K (or C) columns of a weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    has_native_fp8,
    load_activations,
    store_product,
)

# ---- conversions


@triton.jit
def e4m3_to_f32(code):
    """Return the value of E4M3 codes, exact for all 256.

    Exponent and mantissa, placed where float32 has them, are the value times 2 ** -120; subnormal ones too.
    """
    bits = code.to(tl.uint32)
    placed = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
    value = placed.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def f32_to_e4m3(x):
    """Round to the nearest E4M3 (ties to even), saturating at 448; NaN stays NaN; uint8."""
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    magnitude = tl.minimum(tl.abs(x), 448.0)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # 3 bits of mantissa stay: add just under half of the last, and its own bit for ties; then the bias 127 becomes 7
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # below 2 ** -6: next to 2 ** 14 float32 has steps of 2 ** -9, so that the addition rounds
    subnormal = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, subnormal, normal)
    return (sign | tl.where(x == x, code, 0x7F)).to(tl.uint8)


@triton.jit
def load_e4m3(pointer, mask, NATIVE: tl.constexpr):
    """Return the values behind E4M3 or, if not native, uint8 pointers, zeros where the mask is false."""
    if NATIVE:
        return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    else:
        return e4m3_to_f32(tl.load(pointer, mask=mask, other=0))


def _codes_pointer(codes: Tensor, native: bool) -> Tensor:
    return flat(codes).view(torch.float8_e4m3fn) if native else flat(codes)


# ---- tiles


class Part(NamedTuple):
    """What one program takes of a weight: it lies in one tile; both numbers are powers of two."""

    rows: int
    columns: int

    def grid(self, shape: torch.Size) -> tuple[int, int]:
        """Return the programs for a weight; its rows first, since the second dimension ends at 65535."""
        return triton.cdiv(shape[0], self.rows), triton.cdiv(shape[1], self.columns)

    @property
    def options(self) -> dict[str, Any]:
        """Return constants and launch options: warps for 16 elements a lane, 1 to 4."""
        num_warps = min(max(self.rows * self.columns // 512, 1), 4)
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": num_warps, **EXACT}


def part_of(tile: tuple[int, int], shape: torch.Size, num_elements: int) -> Part:
    """Choose a part with about num_elements, of 128 columns or more where the tile has them."""
    rows, columns = (
        of_tile & -of_tile if of_tile < size else triton.next_power_of_2(size)  # the power of two that divides it
        for of_tile, size in zip(tile, shape, strict=True)
    )
    part_columns = min(columns, max(128, num_elements // rows))
    return Part(min(rows, max(num_elements // part_columns, 1)), part_columns)


@triton.jit
def _locate(R, C, tile_rows, tile_columns, scale_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return offsets and mask of this program's part, and the index of its tile."""
    first_row = tl.program_id(0) * ROWS
    first_column = tl.program_id(1) * COLUMNS
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    offsets = row.to(tl.int64)[:, None] * C + column[None, :]
    tile = (first_row // tile_rows) * scale_columns + first_column // tile_columns
    return offsets, (row < R)[:, None] & (column < C)[None, :], tile


@triton.jit
def magnitude_bits(x):
    """Return |x| as int32: ordered like the values, with NaN above infinity, so that a maximum keeps it."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _tile_amax(
    x_ptr, amax_ptr, R, C, tile_rows, tile_columns, scale_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Raise amax, the bits of a float32, to the largest magnitude of the part; a maximum knows no order."""
    offsets, mask, tile = _locate(R, C, tile_rows, tile_columns, scale_columns, ROWS, COLUMNS)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    tl.atomic_max(amax_ptr + tile, tl.max(tl.max(magnitude_bits(x), 1), 0))


@triton.jit
def _quantize_tile(
    x_ptr,
    amax_ptr,
    codes_ptr,
    scale_ptr,
    R,
    C,
    tile_rows,
    tile_columns,
    scale_columns,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, mask, tile = _locate(R, C, tile_rows, tile_columns, scale_columns, ROWS, COLUMNS)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    amax = tl.load(amax_ptr + tile)
    one = tl.full((), 1.0, tl.float32)
    # 448 / amax in two roundings, as torch computes it; of an amax below 1.3e-36 it would be infinite
    inverse = tl.where(amax > 0, tl.math.div_rn(one, tl.where(amax > 0, amax, 1.0)) * 448.0, 1.0)
    inverse = tl.minimum(inverse, 3.4028234663852886e38)
    codes = (x * inverse).to(tl.float8e4nv) if NATIVE else f32_to_e4m3(x * inverse)  # both saturate
    tl.store(codes_ptr + offsets, codes, mask=mask)
    tl.store(scale_ptr + tile, tl.math.div_rn(one, inverse))  # every part of the tile writes the same


def quantize(
    weight_RC: Tensor, tile: tuple[int, int], *, native: bool | None = None, program_elements: int = 2048
) -> tuple[Tensor, Tensor]:
    """Quantise to E4M3 with one scale a tile, bit for bit as `reference.fp8_quantize`.

    Two passes over the weight, since a tile may be all of it; done once, when a model is loaded.

    Args:
        weight_RC: float32, bfloat16 or float16, contiguous.
        tile: rows and columns that share a scale.
        native: convert with the chip's instructions; None asks the chip.
        program_elements: elements of one program.

    Returns:
        codes: uint8 (R, C).
        scale: float32 (ceil(R / rows), ceil(C / columns)).
    """
    native = has_native_fp8(weight_RC.device) if native is None else native
    R, C = weight_RC.shape
    codes = torch.empty(R, C, dtype=torch.uint8, device=weight_RC.device)
    scale = torch.empty(triton.cdiv(R, tile[0]), triton.cdiv(C, tile[1]), device=weight_RC.device)
    if weight_RC.numel():
        amax = torch.zeros_like(scale)
        part = part_of(tile, weight_RC.shape, program_elements)
        grid, layout = part.grid(weight_RC.shape), (R, C, *tile, scale.shape[1])
        _tile_amax[grid](flat(weight_RC), amax.view(torch.int32), *layout, **part.options)
        pointers = (flat(weight_RC), amax, _codes_pointer(codes, native), scale)
        _quantize_tile[grid](*pointers, *layout, NATIVE=native, **part.options)
    return codes, scale


@triton.jit
def _dequantize_tile(
    out_ptr,
    codes_ptr,
    scale_ptr,
    R,
    C,
    tile_rows,
    tile_columns,
    scale_columns,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    offsets, mask, tile = _locate(R, C, tile_rows, tile_columns, scale_columns, ROWS, COLUMNS)
    value = load_e4m3(codes_ptr + offsets, mask, NATIVE) * tl.load(scale_ptr + tile)
    tl.store(out_ptr + offsets, value.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize_(
    out_RC: Tensor,
    codes_RC: Tensor,
    scale: Tensor,
    tile: tuple[int, int],
    *,
    native: bool | None = None,
    program_elements: int = 2048,
) -> None:
    """Write `code * scale` into a contiguous tensor, the float32 product rounded once to its dtype.

    Args:
        out_RC: float32, bfloat16 or float16.
        codes_RC: uint8, E4M3.
        scale: float32 (ceil(R / rows), ceil(C / columns)).
        tile: rows and columns that share a scale.
        native: convert with the chip's instructions; None asks the chip.
        program_elements: elements of one program.
    """
    if out_RC.numel() == 0:
        return
    native = has_native_fp8(out_RC.device) if native is None else native
    part = part_of(tile, out_RC.shape, program_elements)
    pointers = (flat(out_RC), _codes_pointer(codes_RC, native), flat(scale))
    layout = (*out_RC.shape, *tile, scale.shape[1])
    _dequantize_tile[part.grid(out_RC.shape)](*pointers, *layout, NATIVE=native, **part.options)


# ---- products with an FP8 weight


@triton.jit
def _multiply(
    x_ptr,
    codes_ptr,
    scale_ptr,
    y_ptr,
    M,
    N,
    K,
    tile_rows,
    tile_columns,
    scale_columns,
    OVER_COLUMNS: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute y = x W^T (the sum runs over the columns of W) or y = x W (over its rows), W (N, K).

    The weight is rounded to x's dtype before the product, as if it had been dequantised to memory.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS
    num_outputs = N if OVER_COLUMNS else K
    depth = K if OVER_COLUMNS else N
    NUM_N: tl.constexpr = OUTPUTS if OVER_COLUMNS else DEPTH
    NUM_K: tl.constexpr = DEPTH if OVER_COLUMNS else OUTPUTS
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, depth, DEPTH):
        n = (output if OVER_COLUMNS else start) + tl.arange(0, NUM_N)
        first_k = start if OVER_COLUMNS else output
        k = first_k + tl.arange(0, NUM_K)
        mask = (n < N)[:, None] & (k < K)[None, :]
        value = load_e4m3(codes_ptr + n.to(tl.int64)[:, None] * K + k[None, :], mask, NATIVE)
        index = (n // tile_rows) * scale_columns + first_k // tile_columns
        scale = tl.load(scale_ptr + index, mask=n < N, other=0.0)
        w = (value * scale[:, None]).to(x_ptr.dtype.element_ty)
        x = load_activations(x_ptr, row, start + tl.arange(0, DEPTH), M, depth)
        sums = tl.dot(x, tl.trans(w) if OVER_COLUMNS else w, sums, input_precision="ieee")
    store_product(y_ptr, sums, row, output + tl.arange(0, OUTPUTS), M, num_outputs)


def fits_fused(tile: tuple[int, int], num_columns: int) -> bool:
    """Tell whether a weight with K columns can stay FP8 in a product: a step of the sum must lie in one tile."""
    return tile[1] % 128 == 0 or tile[1] >= num_columns


def linear_nt(
    x_MK: Tensor, codes_NK: Tensor, scale: Tensor, tile: tuple[int, int], gemm: GemmTile | None = None
) -> Tensor:
    """Return `x @ W^T` in x's dtype, sums in float32.

    Args:
        x_MK: float32, bfloat16 or float16, contiguous.
        codes_NK: uint8, E4M3.
        scale: float32 (ceil(N / rows), ceil(K / columns)).
        tile: rows and columns that share a scale, such that `fits_fused`.
        gemm: tile of the product; None chooses by M.
    """
    y_MN = x_MK.new_empty(x_MK.shape[0], codes_NK.shape[0])
    _launch_multiply(x_MK, codes_NK, scale, tile, y_MN, True, gemm)
    return y_MN


def linear_nn(
    g_MN: Tensor, codes_NK: Tensor, scale: Tensor, tile: tuple[int, int], gemm: GemmTile | None = None
) -> Tensor:
    """Return `g @ W` in g's dtype, the gradient with respect to the input of `linear_nt`.

    Args:
        g_MN: float32, bfloat16 or float16, contiguous.
        codes_NK: uint8, E4M3.
        scale: float32 (ceil(N / rows), ceil(K / columns)).
        tile: rows and columns that share a scale, such that `fits_fused`.
        gemm: tile of the product; None chooses by M.
    """
    dx_MK = g_MN.new_empty(g_MN.shape[0], codes_NK.shape[1])
    _launch_multiply(g_MN, codes_NK, scale, tile, dx_MK, False, gemm)
    return dx_MK


def _launch_multiply(
    x: Tensor,
    codes_NK: Tensor,
    scale: Tensor,
    tile: tuple[int, int],
    y: Tensor,
    over_columns: bool,
    gemm: GemmTile | None,
) -> None:
    N, K = codes_NK.shape
    M, num_outputs = y.shape
    if codes_NK.numel() == 0 or M == 0:
        y.zero_()
        return
    gemm = gemm or gemm_tile(M)
    step_of_k = gemm.depth if over_columns else gemm.outputs
    assert tile[1] >= K or tile[1] % step_of_k == 0, f"{step_of_k} columns at once need more than one scale: {tile}"
    native = has_native_fp8(x.device)
    _multiply[gemm_grid(M, num_outputs, gemm)](
        flat(x),
        _codes_pointer(codes_NK, native),
        flat(scale),
        flat(y),
        M,
        N,
        K,
        *tile,
        scale.shape[1],
        OVER_COLUMNS=over_columns,
        NATIVE=native,
        ROWS=gemm.rows,
        OUTPUTS=gemm.outputs,
        DEPTH=gemm.depth,
        **gemm.options,
    )


# ---- what a launch compiles, for the check without a GPU

_TILE = {"tile_rows": "i32:16", "tile_columns": "i32:16", "scale_columns": "i32"}
_SHAPE = {"R": "i32:16", "C": "i32:16", **_TILE}
_PART = {"ROWS": 16, "COLUMNS": 128}
_INTEGERS, _NATIVE = "*u8:16", "*fp8e4nv:16"
_SCALE = {"scale_ptr": "*fp32:16"}
_PRODUCT = {"x_ptr": "*bf16:16", "y_ptr": "*bf16:16", "M": "i32", "N": "i32:16", "K": "i32:16", **_SCALE}


def _tile_target(kernel: object, pointers: dict[str, str], native: bool) -> Target:
    signature = {**pointers, "codes_ptr": _NATIVE if native else _INTEGERS, **_SCALE, **_SHAPE}
    constants = {"NATIVE": native, **_PART}
    expected = {0: "F2FP.*E4M3" if "x_ptr" in pointers else "F2FP.*E4M3|HADD|F2F"} if native else {}
    return Target(kernel, signature, constants, EXACT, 89 if native else 80, expected)


def _product_target(gemm: GemmTile, over_columns: bool, native: bool, expected: dict[int, str]) -> Target:
    signature = {**_PRODUCT, **_TILE, "codes_ptr": _NATIVE if native else _INTEGERS}
    shape = {"ROWS": gemm.rows, "OUTPUTS": gemm.outputs, "DEPTH": gemm.depth}
    constants = {"OVER_COLUMNS": over_columns, "NATIVE": native, **shape}
    return Target(_multiply, signature, constants, gemm.options, 89 if native else 80, expected)


TARGETS = {
    "amax": Target(_tile_amax, {"x_ptr": "*bf16:16", "amax_ptr": "*i32:16", **_SHAPE}, _PART, EXACT),
    "quantize": _tile_target(_quantize_tile, {"x_ptr": "*bf16:16", "amax_ptr": "*fp32:16"}, False),
    "quantize native": _tile_target(_quantize_tile, {"x_ptr": "*bf16:16", "amax_ptr": "*fp32:16"}, True),
    "dequantize": _tile_target(_dequantize_tile, {"out_ptr": "*bf16:16"}, False),
    "dequantize native": _tile_target(_dequantize_tile, {"out_ptr": "*bf16:16"}, True),
    "linear_nt": _product_target(gemm_tile(64), True, False, TENSOR_CORES),
    "linear_nt native": _product_target(gemm_tile(64), True, True, TENSOR_CORES),
    "linear_nn native few rows": _product_target(gemm_tile(1), False, True, {0: "HMMA"}),
}
"""Name -> kernel as compiled."""
