"""The specification: every format in plain torch, as slow and as obvious as it can be said.

Whatever is fast (ops.py on the CPU, the Triton kernels on a GPU) is tested against these functions bit for bit, and
these against the formats' owners: bitsandbytes, torch's float8, compressed-tensors, transformers. Codes of 8 bits or
fewer travel as uint8, since older chips and torch builds lack the types.

Shape legend: R rows, C columns of a weight; n its elements; a block is a run of elements with one scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# ---- NF4 and bitsandbytes' FP4: 16 levels, blocks over the flattened weight, high nibble first

NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution (QLoRA, arXiv:2305.14314, appendix E; bitsandbytes get_4bit_type)."""

_TINY = 1e-38
"""bitsandbytes' guard against division by zero."""


def nf4_levels(device: torch.device | str = "cpu") -> Tensor:
    """Return the 16 levels, float32."""
    return torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device)


def nf4_quantize(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantise to NF4 as bitsandbytes does (backends/default/ops.py quantize_4bit).

    Args:
        weight: float32, bfloat16 or float16, any shape.
        block_size: elements of a block; the last one may be shorter.

    Returns:
        codes: uint8 (ceil(n / 2), 1), the first element in the high nibble.
        absmax: float32 (ceil(n / block_size),).
    """
    flat = weight.reshape(-1).float()
    whole = len(flat) // block_size * block_size
    blocks = flat[:whole].reshape(-1, block_size)
    absmax = blocks.abs().amax(1) if whole else flat.new_empty(0)
    scaled = (blocks * (1.0 / absmax.clamp(min=_TINY))[:, None]).reshape(-1)
    if whole < len(flat):  # bitsandbytes divides here, and multiplies by the reciprocal above
        last = flat[whole:].abs().amax().clamp(min=_TINY)
        absmax = torch.cat([absmax, last[None]])
        scaled = torch.cat([scaled, flat[whole:] / last])
    levels = nf4_levels(weight.device)
    codes = torch.bucketize(scaled.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2)
    if len(codes) % 2:
        codes = F.pad(codes, (0, 1), value=7)  # the level 0, as bitsandbytes pads
    return (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], absmax


def nf4_dequantize(codes: Tensor, absmax: Tensor, levels: Tensor, block_size: int, shape: tuple[int, ...]) -> Tensor:
    """Return `levels[code] * absmax`, float32, one rounding.

    Args:
        codes: as `nf4_quantize` returns them.
        absmax: float32, one a block.
        levels: float32 (16,).
        block_size: elements of a block.
        shape: of the weight.
    """
    bytes_ = codes.reshape(-1).long()
    nibbles = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).reshape(-1)
    num = torch.Size(shape).numel()
    values = levels[nibbles[:num]] * absmax.repeat_interleave(block_size)[:num]
    return values.reshape(shape)


NESTED_BLOCK = 256
"""Elements of a block of absmax values, in double quantisation."""


def dynamic_map() -> Tensor:
    """Return the 256 signed levels of 8-bit dynamic quantisation, float32, sorted.

    Source: Dettmers et al., arXiv:2110.02861, section 2.1; bitsandbytes/functional.py create_dynamic_map.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        levels += [sign * value for sign in (1, -1) for value in (10 ** (exponent - 6) * means).tolist()]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nested_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the scales themselves: QLoRA's double quantisation.

    Args:
        absmax: float32 (blocks,).

    Returns:
        codes: uint8 (blocks,), indices into `dynamic_map()`.
        nested_absmax: float32 (ceil(blocks / 256),).
        offset: float32 scalar, the mean of absmax.
    """
    offset = absmax.mean()
    centred = absmax - offset
    padded = F.pad(centred, (0, -len(centred) % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
    nested_absmax = padded.abs().amax(1)
    scaled = padded * (1.0 / nested_absmax.clamp(min=_TINY))[:, None]
    levels = dynamic_map().to(absmax.device)
    codes = torch.bucketize(scaled.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2)
    return codes.reshape(-1)[: len(absmax)].to(torch.uint8), nested_absmax, offset


def nested_dequantize(codes: Tensor, nested_absmax: Tensor, levels: Tensor, offset: Tensor) -> Tensor:
    """Return `levels[code] * nested_absmax + offset`, float32, two roundings."""
    scales = nested_absmax.repeat_interleave(NESTED_BLOCK)[: codes.numel()]
    return levels[codes.reshape(-1).long()] * scales + offset


# ---- FP8 E4M3 with one scale a tile

E4M3_MAX = 448.0


def e4m3_encode(values: Tensor) -> Tensor:
    """Round to the nearest E4M3 (ties to even), saturating at 448; uint8."""
    wide = values.float()
    return wide.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def e4m3_decode(codes: Tensor) -> Tensor:
    """Return the value of E4M3 codes, float32."""
    return codes.view(torch.float8_e4m3fn).float()


def fp8_quantize(weight_RC: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Quantise to E4M3 with one scale a tile; tiles at the edges may be smaller.

    The arithmetic is that of transformers' fine-grained FP8 (integrations/finegrained_fp8.py Fp8Quantize): the inverse
    scale is 448 / amax, which torch computes as reciprocal(amax) * 448, and a value is multiplied by it.

    Args:
        weight_RC: float32, bfloat16 or float16.
        tile: rows and columns that share a scale.

    Returns:
        codes: uint8 (R, C).
        scale: float32 (ceil(R / rows), ceil(C / columns)); a value is code * scale.
    """
    rows, columns = tile
    R, C = weight_RC.shape
    padded = F.pad(weight_RC.float(), (0, -C % columns, 0, -R % rows))
    tiles = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    amax = tiles.abs().amax((1, 3), keepdim=True)
    inverse = torch.where(amax > 0, E4M3_MAX / torch.where(amax > 0, amax, 1.0), 1.0)
    inverse = inverse.clamp(max=torch.finfo(torch.float32).max)  # of an amax below 1.3e-36 it would be infinite
    codes = e4m3_encode(tiles * inverse).reshape(padded.shape)[:R, :C].contiguous()
    return codes, (1.0 / inverse)[:, 0, :, 0].contiguous()


def fp8_dequantize(codes_RC: Tensor, scale: Tensor, tile: tuple[int, int]) -> Tensor:
    """Return `code * scale`, float32."""
    R, C = codes_RC.shape
    scales_RC = scale.repeat_interleave(tile[0], 0)[:R].repeat_interleave(tile[1], 1)[:, :C]
    return e4m3_decode(codes_RC) * scales_RC


# ---- FP4 E2M1 in blocks of a row, low nibble first: NVFP4 and MXFP4

E2M1_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E2M1_MAX = 6.0
NVFP4_BLOCK, MXFP4_BLOCK = 16, 32
_E4M3_EPS = 0.125
"""compressed-tensors' scale of a block of zeros."""
SCALE_MAX, SCALE_MAX_FOUR_OVER_SIX = 448.0, 256.0
"""Largest block scale; 256 leaves room for the larger scales of blocks that end at 4 (1.5 * 256 = 384)."""


def e2m1_encode(values: Tensor) -> Tensor:
    """Round to the nearest E2M1 (ties to even), saturating at 6; codes 0..15 in uint8, the sign in bit 3."""
    a = values.abs()
    code = (a > 0.25).byte() + (a >= 0.75).byte() + (a > 1.25).byte() + (a >= 1.75).byte()
    code += (a > 2.5).byte() + (a >= 3.5).byte() + (a > 5.0).byte()
    return code + 8 * torch.signbit(values).byte()


def e2m1_decode(codes: Tensor) -> Tensor:
    """Return the value of E2M1 codes 0..15, float32."""
    return torch.tensor(E2M1_LEVELS, dtype=torch.float32, device=codes.device)[codes.long()]


def pack_nibbles(codes_RC: Tensor) -> Tensor:
    """Pack codes 0..15 two to a byte, the first in the low nibble: (R, C) -> (R, C / 2)."""
    return codes_RC[..., ::2] | codes_RC[..., 1::2] << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Undo `pack_nibbles`."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def nvfp4_global_scale(weight: Tensor, four_over_six: bool) -> Tensor:
    """Return compressed-tensors' global scale (generate_gparam): what makes the largest block scale 448 (or 256).

    Returns:
        float32 (1,); a value is `e2m1 * (block scale / global scale)`.
    """
    largest = SCALE_MAX_FOUR_OVER_SIX if four_over_six else SCALE_MAX
    amax = weight.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest * E2M1_MAX / amax
    return torch.where(scale.isfinite(), scale, 1.0).reshape(1)


def nvfp4_quantize(weight_RC: Tensor, global_scale: Tensor, four_over_six: bool) -> tuple[Tensor, Tensor]:
    """Quantise to NVFP4, in the arithmetic of compressed-tensors (calculate_qparams, quantize_and_pack_fp4).

    With four_over_six each block is quantised twice, its largest value to 6 and to 4, and the one with the smaller
    squared error stays; 4 leaves smaller steps below the maximum (Four Over Six, arXiv:2512.02010).

    Args:
        weight_RC: float32, bfloat16 or float16; C a multiple of 16.
        global_scale: as `nvfp4_global_scale` returns it.
        four_over_six: try both.

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3.
    """
    R, C = weight_RC.shape
    blocks = weight_RC.float().reshape(R, C // NVFP4_BLOCK, NVFP4_BLOCK)
    to_six = blocks.abs().amax(-1) / E2M1_MAX * global_scale
    best: tuple[Tensor, Tensor] | None = None
    least = torch.full_like(to_six, torch.inf)
    for factor in (1.0, 1.5) if four_over_six else (1.0,):
        scale = e4m3_encode(to_six * factor)
        scale = torch.where(scale == 0, e4m3_encode(torch.tensor(_E4M3_EPS, device=scale.device)), scale)
        step = (e4m3_decode(scale) / global_scale)[..., None]
        codes = e2m1_encode(blocks / step)
        error = (e2m1_decode(codes) * step - blocks).square()
        while error.shape[-1] > 1:  # neighbours first: an order that every device can keep
            error = error[..., ::2] + error[..., 1::2]
        error = error[..., 0]
        if best is None:
            best, least = (codes, scale), error
        else:
            better = error < least
            best = torch.where(better[..., None], codes, best[0]), torch.where(better, scale, best[1])
    assert best is not None
    return pack_nibbles(best[0].reshape(R, C)), best[1]


def nvfp4_dequantize(codes: Tensor, scale: Tensor, tensor_scale: Tensor, divides: bool) -> Tensor:
    """Return `e2m1 * (block scale / tensor_scale)`, or with `* tensor_scale`, float32 (R, C).

    Args:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 16), E4M3.
        tensor_scale: float32 (1,).
        divides: compressed-tensors stores the inverse (global scale), ModelOpt the factor (weight_scale_2).
    """
    block_scale = e4m3_decode(scale)
    step = block_scale / tensor_scale if divides else block_scale * tensor_scale
    return e2m1_decode(unpack_nibbles(codes)) * step.repeat_interleave(NVFP4_BLOCK, -1)


def mxfp4_quantize(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise to MXFP4: blocks of 32 with a power of two each (OCP Microscaling Formats 1.0, section 6.3).

    Returns:
        codes: uint8 (R, C / 2).
        scale: uint8 (R, C / 32), E8M0: the value is 2 ** (code - 127).
    """
    R, C = weight_RC.shape
    blocks = weight_RC.float().reshape(R, C // MXFP4_BLOCK, MXFP4_BLOCK)
    amax = blocks.abs().amax(-1)
    exponent = torch.frexp(amax).exponent - 1 - 2  # floor(log2(amax)) - emax of E2M1
    exponent = torch.where(amax > 0, exponent, -127).clamp(-127, 127)
    codes = e2m1_encode(torch.ldexp(blocks, -exponent[..., None]))
    return pack_nibbles(codes.reshape(R, C)), (exponent + 127).to(torch.uint8)


def mxfp4_dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Return `e2m1 * 2 ** (scale - 127)`, float32; leading dimensions may be more than one."""
    step = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - 127)
    return e2m1_decode(unpack_nibbles(codes)) * step.repeat_interleave(MXFP4_BLOCK, -1)
