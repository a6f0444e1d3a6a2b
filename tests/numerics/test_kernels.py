"""Every Triton kernel, in the interpreter, against the specification: bit for bit but for sums of products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.interpreter import interpreting
from torch import Tensor

from surogate.kernels import fp4, fp8, nf4, reference, rounding
from surogate.kernels import reference_rounding as rounding_reference
from surogate.kernels._launch import GemmTile
from surogate.kernels.layouts import Nf4Scales

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

LARGE = 1 << 15
"""Elements of a program, since the interpreter takes 4 to 6 ms for each however large it is."""
WARPS = LARGE // 8 // 32
TILE = GemmTile(64, 128, 128)

PRODUCT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative, of a sum in float32 that is rounded once; another order of summation changes a rounding at most."""
SUM_TOLERANCE = 1e-4
"""Absolute, of a sum of up to 300 products of N(0, 1) numbers in float32, where the sum itself is near zero."""

PRODUCTS = [(16, 64, 128), (5, 40, 96), (1, 136, 32), (70, 150, 288), (0, 8, 32)]
"""M, N, K: aligned, odd, one row, more than one tile in each direction, empty."""


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    torch.manual_seed(0)
    with interpreting():
        yield


def weight_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal weights of very different sizes, with zeros of both signs, and a whole block of zeros if there is room."""
    weight = torch.randn(shape) * torch.randn(shape).mul(2).exp()
    flat = weight.view(-1)
    if flat.numel() > 200:
        flat[64:128] = 0
    if flat.numel() > 3:
        flat[1], flat[2] = 0.0, -0.0
    return weight.to(dtype)


def assert_product(got: Tensor, left: Tensor, right: Tensor) -> None:
    """Compare with the product of the operands as they are, summed in float32."""
    expected = left.float() @ right.to(left.dtype).float()
    assert got.dtype == left.dtype
    tolerance = PRODUCT_TOLERANCE[left.dtype]
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=SUM_TOLERANCE)


# ---- NF4

NF4_SHAPES = [(96, 128), (33, 70), (7, 9), (1, 64), (1, 1), (5,), (0, 64), (3, 5, 7)]


def nf4_scales(absmax: Tensor, nested: bool) -> tuple[Nf4Scales, Tensor]:
    """The scales as they are stored, and what they are."""
    levels = reference.nf4_levels()
    if not nested:
        return Nf4Scales(absmax, levels), absmax
    codes, nested_absmax, offset = reference.nested_quantize(absmax)
    map_ = reference.dynamic_map()
    restored = reference.nested_dequantize(codes, nested_absmax, map_, offset)
    return Nf4Scales(codes, levels, nested_absmax, map_, offset), restored


@pytest.mark.parametrize("block_size", [64, 256, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NF4_SHAPES, ids=str)
def test_nf4_quantises_as_specified(shape: tuple[int, ...], dtype: torch.dtype, block_size: int) -> None:
    weight = weight_of(shape, dtype)
    codes, absmax = nf4.quantize(weight, block_size, program_elements=LARGE)
    expected_codes, expected_absmax = reference.nf4_quantize(weight, block_size)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(absmax, expected_absmax)


def test_nf4_quantises_the_smallest_numbers_as_specified() -> None:
    blocks = [torch.full((64,), 1e-39), torch.full((64,), -3e-38), torch.zeros(64), torch.zeros(7)]
    for end in (2, 3, 4):
        weight = torch.cat(blocks[:end])[: 64 * end - 57]
        for got, expected in zip(nf4.quantize(weight, 64), reference.nf4_quantize(weight, 64), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("num", [46, 64])
def test_nf4_quantises_next_to_thresholds_as_specified(num: int) -> None:
    """Where dividing, which a short block does, and multiplying by the reciprocal can give another code."""
    levels = reference.nf4_levels()
    thresholds = (levels[:-1] + levels[1:]) / 2
    for absmax in torch.randn(20).abs():
        edge = absmax * thresholds
        block = torch.cat([absmax[None], edge, edge.nextafter(levels[1:]), edge.nextafter(levels[:-1]), edge, edge])
        assert torch.equal(nf4.quantize(block[:num], 64)[0], reference.nf4_quantize(block[:num], 64)[0])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*NF4_SHAPES, (150, 128)], ids=str)  # the last has two nested blocks
def test_nf4_dequantises_as_specified(shape: tuple[int, ...], dtype: torch.dtype, nested: bool) -> None:
    codes, absmax = reference.nf4_quantize(weight_of(shape, dtype), 64)
    scales, absmax = nf4_scales(absmax, nested and absmax.numel() > 0)
    out = torch.full(shape, torch.nan, dtype=dtype)
    nf4.dequantize_(out, codes, scales, 64, num_warps=WARPS)
    assert torch.equal(out, reference.nf4_dequantize(codes, absmax, scales.levels, 64, shape).to(dtype))


@pytest.mark.parametrize("num", [*range(1, 19), 255, 257, 1023, 1025])
def test_nf4_dequantises_every_length_of_tail(num: int) -> None:
    codes, absmax = reference.nf4_quantize(torch.randn(num), 64)
    out = torch.full((num,), torch.nan)
    nf4.dequantize_(out, codes, Nf4Scales(absmax, reference.nf4_levels()), 64, num_warps=1)
    assert torch.equal(out, reference.nf4_dequantize(codes, absmax, reference.nf4_levels(), 64, (num,)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_nf4_products_are_those_of_the_dequantised_weight(
    shape: tuple[int, int, int], dtype: torch.dtype, nested: bool
) -> None:
    M, N, K = shape
    assert nf4.fits_fused(K) and not nf4.fits_fused(K + 1)
    codes, absmax = reference.nf4_quantize(torch.randn(N, K), 64)
    scales, absmax = nf4_scales(absmax, nested)
    weight = reference.nf4_dequantize(codes, absmax, scales.levels, 64, (N, K))
    x, g = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    assert_product(nf4.linear_nt(x, codes, scales, 64, N, TILE), x, weight.T)
    assert_product(nf4.linear_nn(g, codes, scales, 64, K, TILE), g, weight)


# ---- FP8

TILES = [((96, 256), (128, 128)), ((200, 300), (128, 128)), ((7, 9), (1, 9)), ((20, 300), (1, 128))]
TILES += [((33, 70), (33, 70)), ((50, 70), (16, 24)), ((1, 1), (128, 128)), ((0, 128), (128, 128))]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "tile"), TILES, ids=str)
def test_fp8_tiles_are_quantised_and_dequantised_as_specified(
    shape: tuple[int, int], tile: tuple[int, int], dtype: torch.dtype, native: bool
) -> None:
    weight = weight_of(shape, dtype)
    codes, scale = fp8.quantize(weight, tile, native=native, program_elements=LARGE)
    expected_codes, expected_scale = reference.fp8_quantize(weight, tile) if weight.numel() else (codes, scale)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)
    out = torch.full(shape, torch.nan, dtype=dtype)
    fp8.dequantize_(out, codes, scale, tile, native=native, program_elements=LARGE)
    assert torch.equal(out, reference.fp8_dequantize(codes, scale, tile).to(dtype))


@pytest.mark.parametrize("native", [False, True])
def test_every_e4m3_code_has_the_value_of_torch(native: bool) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128)
    values = torch.empty(2, 128)
    fp8.dequantize_(values, codes, torch.ones(1, 1), (128, 128), native=native)
    torch.testing.assert_close(values, reference.e4m3_decode(codes), rtol=0, atol=0, equal_nan=True)


FP8_TILES = [(128, 128), (1, 384), (256, 384), (1, 128)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", FP8_TILES, ids=str)
@pytest.mark.parametrize("shape", [*PRODUCTS, (33, 131, 259)], ids=str)
def test_fp8_products_are_those_of_the_dequantised_weight(
    shape: tuple[int, int, int], tile: tuple[int, int], dtype: torch.dtype
) -> None:
    M, N, K = shape
    assert fp8.fits_fused(tile, K) and not fp8.fits_fused((128, 24), K)
    codes, scale = reference.fp8_quantize(torch.randn(N, K), tile)
    weight = reference.fp8_dequantize(codes, scale, tile)
    x, g = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    assert_product(fp8.linear_nt(x, codes, scale, tile, TILE), x, weight.T)
    assert_product(fp8.linear_nn(g, codes, scale, tile, TILE), g, weight)


# ---- FP4

FP4_SHAPES = [(64, 128), (7, 96), (1, 32), (0, 64)]


@pytest.mark.parametrize("four_over_six", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*FP4_SHAPES, (3, 16)], ids=str)
def test_nvfp4_quantises_as_specified(shape: tuple[int, int], dtype: torch.dtype, four_over_six: bool) -> None:
    weight = weight_of(shape, dtype)
    tensor_scale = reference.nvfp4_global_scale(weight, four_over_six) if weight.numel() else torch.ones(1)
    codes, scale = fp4.quantize_nvfp4(weight, tensor_scale, four_over_six, program_elements=LARGE)
    expected_codes, expected_scale = reference.nvfp4_quantize(weight, tensor_scale, four_over_six)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", FP4_SHAPES, ids=str)
def test_mxfp4_quantises_as_specified(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = weight_of(shape, dtype)
    codes, scale = fp4.quantize_mxfp4(weight, program_elements=LARGE)
    expected_codes, expected_scale = reference.mxfp4_quantize(weight)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)


def test_mxfp4_quantises_numbers_of_every_size_as_specified() -> None:
    weight = (torch.randn(277, 32).clamp(-1.9, 1.9).double() * 2.0 ** torch.arange(-149, 128)[:, None]).float()
    for got, expected in zip(fp4.quantize_mxfp4(weight), reference.mxfp4_quantize(weight), strict=True):
        assert torch.equal(got, expected)


def fp4_weight(kind: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Random codes and scales, the tensor scale, and the weight that they are."""
    codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8)
    if kind == "mxfp4":
        scale = torch.randint(0, 255, (*shape[:-1], shape[-1] // 32), dtype=torch.uint8)
        scale.view(-1)[:1] = 0  # 2 ** -127, a subnormal number
        return codes, scale, None, reference.mxfp4_dequantize(codes, scale)
    scale = reference.e4m3_encode(torch.rand(*shape[:-1], shape[-1] // 16) * 400)
    tensor_scale = torch.tensor([1234.5 if kind == "divides" else 1 / 1234.5])
    return codes, scale, tensor_scale, reference.nvfp4_dequantize(codes, scale, tensor_scale, kind == "divides")


@pytest.mark.parametrize("kind", ["mxfp4", "divides", "multiplies"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*FP4_SHAPES, (2, 6, 96)], ids=str)  # the last as the experts of gpt-oss
def test_fp4_dequantises_as_specified(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    codes, scale, tensor_scale, weight = fp4_weight(kind, shape)
    out = torch.full(shape, torch.nan, dtype=dtype)
    fp4.dequantize_(out, codes, scale, tensor_scale, divides=kind == "divides", num_warps=WARPS)
    assert torch.equal(out, weight.to(dtype))


@pytest.mark.parametrize("kind", ["mxfp4", "divides", "multiplies"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_fp4_products_are_those_of_the_dequantised_weight(
    shape: tuple[int, int, int], dtype: torch.dtype, kind: str
) -> None:
    M, N, K = shape
    codes, scale, tensor_scale, _ = fp4_weight("divides" if kind == "mxfp4" else kind, (N, K))
    if kind == "mxfp4":
        scale = torch.randint(120, 128, (N, K // 32), dtype=torch.uint8)
        weight = reference.mxfp4_dequantize(codes, scale)
        tensor_scale = None
    else:
        weight = reference.nvfp4_dequantize(codes, scale, tensor_scale, kind == "divides")
    x, g = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    stored = (codes, scale, tensor_scale)
    assert_product(fp4.linear_nt(x, *stored, divides=kind == "divides", tile=TILE), x, weight.T)
    assert_product(fp4.linear_nn(g, *stored, divides=kind == "divides", tile=TILE), g, weight)


# ---- rounding for the recipes

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_magnitude_is_that_of_torch(dtype: torch.dtype) -> None:
    for shape in [(3, 5), (70, 1000), (1,)]:
        x = torch.randn(shape).to(dtype)
        assert torch.equal(rounding.amax(x, program_elements=LARGE), x.abs().amax().float())
    assert rounding.amax(torch.empty(0, 4, dtype=dtype)) == 0
    assert rounding.amax(torch.tensor([1.0, torch.nan, torch.inf]).to(dtype)).isnan()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("target", FP8, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fp8_casts_are_those_specified(dtype: torch.dtype, target: torch.dtype, native: bool) -> None:
    sizes = torch.linspace(-20, 12, 3001).exp()
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e30, -1e-30])
    x = torch.cat([torch.randn(3001) * sizes, special]).to(dtype)
    inverse_scale, amax = torch.tensor(3.0), torch.tensor(0.5)
    codes = rounding.quantize_fp8(x, inverse_scale, target, amax, native=native, program_elements=LARGE)
    assert torch.equal(codes, rounding_reference.fp8_cast(x, inverse_scale, target))
    assert torch.isinf(amax)


@pytest.mark.parametrize("target", FP8, ids=str)
def test_fp8_casts_take_ties_to_even_and_keep_nan(target: torch.dtype) -> None:
    values = torch.arange(127, dtype=torch.uint8).view(target).float()
    values = values[values.isfinite()]
    x = torch.cat([(values[:-1] + values[1:]) / 2, values, torch.tensor([torch.nan])])
    codes = rounding.quantize_fp8(torch.cat([x, -x]), torch.ones(()), target)
    assert torch.equal(codes, rounding_reference.fp8_cast(torch.cat([x, -x]), torch.ones(()), target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (7, 96), (1, 16), (0, 32)], ids=str)
def test_stochastic_nvfp4_draws_what_the_specification_draws(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = weight_of(shape, dtype)
    tensor_scale = reference.nvfp4_global_scale(x, four_over_six=False) if x.numel() else torch.ones(1)
    for seed in (0, 2**40 + 7, -1):
        got = rounding.quantize_nvfp4_stochastic(x, tensor_scale, torch.tensor([seed]), program_elements=LARGE)
        uniform = rounding_reference.philox_uniform(seed, x.numel()).reshape(shape)
        expected = rounding_reference.nvfp4_quantize_stochastic(x, tensor_scale, uniform)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (7, 96), (33, 16)], ids=str)
def test_nvfp4_tiles_are_those_specified(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = weight_of(shape, dtype)
    expected = rounding_reference.nvfp4_quantize_2d(weight)
    for got, wanted in zip(rounding.quantize_nvfp4_2d(weight, num_tiles=16), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (7, 96), (2, 3, 16), (0, 32)], ids=str)
def test_the_hadamard_transform_is_that_specified(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, signs = weight_of(shape, dtype), torch.randint(0, 2, (16,)) * 2.0 - 1
    got = rounding.hadamard16(x, signs, program_elements=LARGE)
    assert torch.equal(got, rounding_reference.hadamard16(x, signs))


# ---- layers as large as real ones


@pytest.mark.parametrize("kind", ["nf4", "fp8", "nvfp4"])
def test_a_whole_layer_agrees(kind: str) -> None:
    """Of SmolLM2-135M, 576 x 1536; with more than one program."""
    weight, out = torch.randn(576, 1536).bfloat16(), torch.empty(576, 1536, dtype=torch.bfloat16)
    if kind == "nf4":
        codes, absmax = nf4.quantize(weight, 64, program_elements=4 * LARGE)
        nf4.dequantize_(out, codes, Nf4Scales(absmax, reference.nf4_levels()), 64, num_warps=4 * WARPS)
        quantized = reference.nf4_quantize(weight, 64)
        expected = reference.nf4_dequantize(*quantized, reference.nf4_levels(), 64, (576, 1536))
    elif kind == "fp8":
        codes, scale = fp8.quantize(weight, (128, 128), program_elements=LARGE)
        fp8.dequantize_(out, codes, scale, (128, 128), program_elements=LARGE)
        expected = reference.fp8_dequantize(*reference.fp8_quantize(weight, (128, 128)), (128, 128))
    else:
        tensor_scale = reference.nvfp4_global_scale(weight, four_over_six=True)
        codes, scale = fp4.quantize_nvfp4(weight, tensor_scale, True, program_elements=4 * LARGE)
        fp4.dequantize_(out, codes, scale, tensor_scale, divides=True, num_warps=4 * WARPS)
        quantized = reference.nvfp4_quantize(weight, tensor_scale, True)
        expected = reference.nvfp4_dequantize(*quantized, tensor_scale, divides=True)
    assert torch.equal(out, expected.bfloat16())
