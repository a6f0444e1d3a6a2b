"""The specification against the formats' owners: bitsandbytes, torch, transformers, compressed-tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import functional as bitsandbytes
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_scheme import MXFP4A16, NVFP4A16
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.finegrained_fp8 import Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from surogate.kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NF4_BLOCKS = [64, 128, 256, 512]
SHAPES = [
    *((64,), (1, 64), (64, 1), (8, 64), (96, 128), (3, 512), (2, 3, 64)),  # whole blocks
    *((1,), (7,), (63,), (65,), (129,), (1, 1), (3, 5), (7, 9), (33, 70), (17, 31), (5, 134), (2, 3, 5)),
]

SQNR_FLOORS = {
    "nf4": 20.5,  # blocks of 64; observed 20.73
    "nf4 nested": 20.5,  # 8 bits for the scales cost 0.003
    "fp8": 31.4,  # 3 bits of mantissa: a uniform error within a binade gives 31.5, observed 31.55
    "nvfp4": 20.3,  # observed 20.42
    "nvfp4 4/6": 21.0,  # observed 21.19
    "mxfp4": 18.7,  # scales are powers of two, up to 6 / 4 too large or too small; observed 18.79
}
"""Least signal to quantisation noise of N(0, 1) weights, decibels; wrong rounding or a shifted scale costs more."""


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sqnr(weight: Tensor, decoded: Tensor) -> float:
    return 10 * torch.log10(weight.square().sum() / (weight - decoded).square().sum()).item()


# ---- NF4


@pytest.mark.parametrize("block_size", NF4_BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nf4_codes_and_scales_are_those_of_bitsandbytes(dtype: torch.dtype, block_size: int) -> None:
    for seed, shape in enumerate(SHAPES):
        weight = normal(*shape, dtype=dtype, seed=seed)
        codes, state = bitsandbytes.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
        ours, absmax = reference.nf4_quantize(weight, block_size)
        assert torch.equal(ours, codes), shape
        assert torch.equal(absmax, state.absmax), shape


@pytest.mark.parametrize("zeros_at_end", [False, True])
@pytest.mark.parametrize("num", [64, 65, 192, 200])
def test_nf4_codes_are_those_of_bitsandbytes_on_thresholds_and_zeros(num: int, zeros_at_end: bool) -> None:
    levels = reference.nf4_levels()
    thresholds = (levels[:-1] + levels[1:]) / 2
    weight = torch.cat([torch.ones(1), thresholds, thresholds.nextafter(levels[1:]), levels]).repeat(5)[:num]
    weight[64:128] = 0
    weight[-1] = -0.0
    if zeros_at_end:
        weight[192:] = 0
    codes, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours, absmax = reference.nf4_quantize(weight, 64)
    assert torch.equal(ours, codes)
    assert torch.equal(absmax, state.absmax)


def test_nf4_divides_in_a_short_block_as_bitsandbytes_does() -> None:
    """And multiplies by the reciprocal in a whole one: next to a threshold the two can differ."""
    levels = reference.nf4_levels()
    thresholds = (levels[:-1] + levels[1:]) / 2
    num_different = 0
    for absmax in normal(50).abs():
        edge = absmax * thresholds
        block = torch.cat([absmax[None], edge, edge.nextafter(levels[1:]), edge.nextafter(levels[:-1])])
        codes, _ = bitsandbytes.quantize_4bit(block, blocksize=64, quant_type="nf4")
        ours, _ = reference.nf4_quantize(block, 64)
        assert torch.equal(ours, codes)
        whole, _ = reference.nf4_quantize(F.pad(block, (0, 64 - len(block))), 64)
        num_different += not torch.equal(whole[: len(ours)], ours)
    assert num_different > 10


@pytest.mark.parametrize("block_size", [64, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_nf4_values_are_those_of_bitsandbytes(nested: bool, dtype: torch.dtype, block_size: int) -> None:
    """As one long row: bitsandbytes 0.50 on a CPU decodes 16 x 96 in blocks of 64 wrong, which it encoded flat."""
    for seed, shape in enumerate([*SHAPES, (300, 320)]):  # the last has more scales than a nested block
        weight = normal(*shape, dtype=dtype, seed=seed)
        codes, state = bitsandbytes.quantize_4bit(
            weight, blocksize=block_size, quant_type="nf4", compress_statistics=nested
        )
        absmax = state.absmax
        if nested:
            absmax = reference.nested_dequantize(absmax, state.state2.absmax, state.state2.code, state.offset)
        ours = reference.nf4_dequantize(codes, absmax, state.code, block_size, shape)
        state.shape = torch.Size([1, weight.numel()])
        assert torch.equal(ours.to(dtype), bitsandbytes.dequantize_4bit(codes, state).reshape(shape)), shape


def test_the_levels_are_those_of_bitsandbytes() -> None:
    assert torch.equal(reference.nf4_levels(), bitsandbytes.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(reference.dynamic_map(), bitsandbytes.create_dynamic_map())


def test_nested_codes_are_next_to_those_of_bitsandbytes_and_lose_no_more() -> None:
    """bitsandbytes' CPU operator takes the farther neighbour near a tie: 13 of 13824 codes differ by one."""
    absmax = reference.nf4_quantize(normal(576, 1536), 64)[1]
    codes, nested_absmax, offset = reference.nested_quantize(absmax)
    theirs, state = bitsandbytes.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    assert torch.equal(offset, absmax.mean())
    assert torch.equal(nested_absmax, state.absmax)
    assert (codes.int() - theirs.int()).abs().max() <= 1
    assert (codes != theirs).float().mean() < 0.002
    levels = reference.dynamic_map()
    ours = reference.nested_dequantize(codes, nested_absmax, levels, offset)
    bnb = reference.nested_dequantize(theirs, nested_absmax, levels, offset)
    assert (ours - absmax).square().mean() <= (bnb - absmax).square().mean()


# ---- FP8


def test_e4m3_codes_mean_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = reference.e4m3_decode(codes)
    mantissa, exponent = codes.int() & 7, codes.int() >> 3 & 15
    by_hand = torch.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    by_hand = torch.where(codes >= 128, -by_hand, by_hand)
    is_nan = codes & 0x7F == 0x7F
    assert torch.equal(values.isnan(), is_nan)
    assert torch.equal(values[~is_nan], by_hand[~is_nan])


def test_e4m3_rounds_to_the_nearest_and_ties_to_even() -> None:
    finite = reference.e4m3_decode(torch.arange(127, dtype=torch.uint8))
    middle = (finite[:-1] + finite[1:]) / 2
    even = torch.arange(126) + torch.arange(126) % 2  # of two neighbouring codes the even one
    for sign in (1, -1):
        code = even + (128 if sign < 0 else 0)
        assert torch.equal(reference.e4m3_encode(sign * middle), code.to(torch.uint8))
        below, above = middle.nextafter(finite[:-1]), middle.nextafter(finite[1:])
        offset = 128 if sign < 0 else 0
        assert torch.equal(reference.e4m3_encode(sign * below), (torch.arange(126) + offset).to(torch.uint8))
        assert torch.equal(reference.e4m3_encode(sign * above), (torch.arange(1, 127) + offset).to(torch.uint8))


def test_e4m3_saturates_and_keeps_nan() -> None:
    extreme = torch.tensor([448.0, 449.0, 1e9, torch.inf, -torch.inf, -0.0, torch.nan])
    codes = reference.e4m3_encode(extreme)
    assert codes[:6].tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x80]
    assert codes[6] & 0x7F == 0x7F


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (384, 128)])
def test_fp8_tiles_are_those_of_transformers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = normal(*shape, dtype=dtype)
    weight[:128, :128] = 0
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=None)
    theirs = Fp8Quantize(SimpleNamespace(quantization_config=config)).convert({"a.weight": weight})
    codes, scale = reference.fp8_quantize(weight, (128, 128))
    assert torch.equal(codes, theirs["a.weight"].view(torch.uint8))
    assert torch.equal(scale, theirs["a.weight_scale_inv"])


@pytest.mark.parametrize("tile", [(128, 128), (1, 300), (200, 300), (1, 128)])
def test_fp8_tiles_at_the_edge_have_a_scale_of_their_own(tile: tuple[int, int]) -> None:
    weight = normal(200, 300)
    codes, scale = reference.fp8_quantize(weight, tile)
    values = reference.fp8_dequantize(codes, scale, tile)
    for row in range(0, 200, tile[0]):
        for column in range(0, 300, tile[1]):
            part = (slice(row, row + tile[0]), slice(column, column + tile[1]))
            expected = weight[part].abs().amax() / reference.E4M3_MAX
            assert scale[row // tile[0], column // tile[1]] == pytest.approx(expected.item(), rel=1e-6)
            largest = weight[part].abs() == weight[part].abs().amax()
            assert torch.allclose(values[part][largest], weight[part][largest])


# ---- NVFP4


def compressed_nvfp4(weight: Tensor) -> dict[str, Tensor]:
    """The weight as compressed-tensors packs it with the preset NVFP4A16."""
    blocks = weight.reshape(weight.shape[0], -1, 16)
    global_scale = generate_gparam(weight.min(), weight.max())
    args = NVFP4A16["weights"]
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    scheme = QuantizationScheme(targets=["Linear"], **NVFP4A16)
    return NVFP4PackedCompressor.compress(state | {"weight_global_scale": global_scale}, scheme)


@pytest.mark.parametrize("shape", [(1, 16), (8, 64), (33, 48), (64, 128), (5, 272)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nvfp4_is_that_of_compressed_tensors(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """From float32, since compressed-tensors computes scales in the weight's dtype and we never round them."""
    weight = normal(*shape, dtype=dtype).float()
    if shape[0] > 1:
        weight[1, :16] = 0
    theirs = compressed_nvfp4(weight)
    global_scale = reference.nvfp4_global_scale(weight, four_over_six=False)
    codes, scale = reference.nvfp4_quantize(weight, global_scale, four_over_six=False)
    assert torch.equal(global_scale, theirs["weight_global_scale"])
    assert torch.equal(scale, theirs["weight_scale"].view(torch.uint8))
    assert torch.equal(codes, theirs["weight_packed"])


def test_nvfp4_values_are_those_of_compressed_tensors() -> None:
    theirs = compressed_nvfp4(normal(33, 48))
    args = (theirs["weight_packed"], theirs["weight_scale"].view(torch.uint8), theirs["weight_global_scale"])
    scheme = QuantizationScheme(targets=["Linear"], **NVFP4A16)
    decompressed = NVFP4PackedCompressor.decompress(theirs, scheme)["weight"]
    assert torch.equal(reference.nvfp4_dequantize(*args, divides=True).to(decompressed.dtype), decompressed)


def test_the_scale_of_an_all_zero_weight_is_finite() -> None:
    zeros = torch.zeros(2, 32)
    assert torch.equal(reference.nvfp4_global_scale(zeros, False), generate_gparam(zeros.min(), zeros.max()))
    global_scale = reference.nvfp4_global_scale(zeros, four_over_six=False)
    codes, scale = reference.nvfp4_quantize(zeros, global_scale, four_over_six=False)
    assert torch.equal(reference.nvfp4_dequantize(codes, scale, global_scale, divides=True), zeros)


def test_four_over_six_is_never_worse_in_a_block() -> None:
    weight = normal(64, 256)
    global_scale = reference.nvfp4_global_scale(weight, four_over_six=True)
    errors = []
    for four_over_six in (False, True):
        codes, scale = reference.nvfp4_quantize(weight, global_scale, four_over_six)
        values = reference.nvfp4_dequantize(codes, scale, global_scale, divides=True)
        errors.append((values - weight).square().reshape(64, -1, 16).double().sum(-1))
    slack = 1e-6 * errors[0]  # the choice is made in float32
    assert (errors[1] <= errors[0] + slack).all()
    assert (errors[1] < errors[0] - slack).float().mean() > 0.2


def test_multiplying_and_dividing_tensor_scales_agree() -> None:
    """compressed-tensors stores 448 * 6 / amax and divides, ModelOpt amax / (448 * 6) and multiplies."""
    weight = normal(16, 64)
    global_scale = reference.nvfp4_global_scale(weight, four_over_six=False)
    codes, scale = reference.nvfp4_quantize(weight, global_scale, four_over_six=False)
    divided = reference.nvfp4_dequantize(codes, scale, global_scale, divides=True)
    multiplied = reference.nvfp4_dequantize(codes, scale, 1 / global_scale, divides=False)
    torch.testing.assert_close(divided, multiplied, rtol=3e-7, atol=0)


def test_e2m1_rounds_ties_to_even() -> None:
    levels = torch.tensor(reference.E2M1_LEVELS[:8])
    middle = (levels[:-1] + levels[1:]) / 2
    assert reference.e2m1_encode(middle).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert reference.e2m1_encode(-middle).tolist() == [8, 10, 10, 12, 12, 14, 14]
    assert reference.e2m1_encode(torch.tensor([0.0, -0.0, 100.0])).tolist() == [0, 8, 7]
    assert torch.equal(reference.e2m1_encode(torch.tensor(reference.E2M1_LEVELS)), torch.arange(16).to(torch.uint8))


# ---- MXFP4


def test_mxfp4_values_are_those_of_transformers_for_gpt_oss() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=generator)
    scale = torch.randint(100, 140, (2, 6, 3), dtype=torch.uint8, generator=generator)
    ours = reference.mxfp4_dequantize(codes.flatten(-2), scale)
    theirs = convert_moe_packed_tensors(codes, scale, dtype=torch.float32)
    assert torch.equal(ours.transpose(1, 2), theirs)


def test_mxfp4_encodes_as_compressed_tensors_under_the_same_scale() -> None:
    """The Microscaling standard takes floor(log2(amax)); compressed-tensors goes up from a mantissa of 1.75 on."""
    weight = normal(64, 256)
    blocks = weight.reshape(64, -1, 32)
    args = MXFP4A16["weights"]
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    theirs = MXFP4PackedCompressor.compress(state, QuantizationScheme(targets=["Linear"], **MXFP4A16))
    codes, ours = reference.mxfp4_quantize(weight)
    goes_up = torch.frexp(blocks.abs().amax(-1)).mantissa >= 1.75 / 2
    assert torch.equal(theirs["weight_scale"].int(), ours.int() + goes_up.int())
    assert goes_up.float().mean() < 0.5
    differ = (codes != theirs["weight_packed"]).reshape(64, -1, 16).any(-1)
    assert not (differ & ~goes_up).any()


@pytest.mark.parametrize("exponent", [-149, -127, -126, 0, 100])
def test_mxfp4_has_a_scale_for_every_size_of_number(exponent: int) -> None:
    weight = torch.full((1, 32), 2.0**exponent)
    codes, scale = reference.mxfp4_quantize(weight)
    values = reference.mxfp4_dequantize(codes, scale)
    expected = weight if exponent >= -127 else torch.zeros_like(weight)  # the smallest step is 2 ** -127 / 2
    assert torch.equal(values, expected)


# ---- how much each format loses


def test_each_format_keeps_the_signal_it_should() -> None:
    weight = normal(512, 1024)
    levels, map_ = reference.nf4_levels(), reference.dynamic_map()
    codes, absmax = reference.nf4_quantize(weight, 64)
    nested, nested_absmax, offset = reference.nested_quantize(absmax)
    restored = reference.nested_dequantize(nested, nested_absmax, map_, offset)
    decoded = {
        "nf4": reference.nf4_dequantize(codes, absmax, levels, 64, weight.shape),
        "nf4 nested": reference.nf4_dequantize(codes, restored, levels, 64, weight.shape),
        "fp8": reference.fp8_dequantize(*reference.fp8_quantize(weight, (128, 128)), (128, 128)),
        "mxfp4": reference.mxfp4_dequantize(*reference.mxfp4_quantize(weight)),
    }
    for name, four_over_six in (("nvfp4", False), ("nvfp4 4/6", True)):
        scale = reference.nvfp4_global_scale(weight, four_over_six)
        quantized = reference.nvfp4_quantize(weight, scale, four_over_six)
        decoded[name] = reference.nvfp4_dequantize(*quantized, scale, divides=True)
    assert decoded.keys() == SQNR_FLOORS.keys()
    found = {name: sqnr(weight, values) for name, values in decoded.items()}
    assert all(found[name] >= floor for name, floor in SQNR_FLOORS.items()), found
