"""Weights to codes and back, on every device; the way back as torch operators, `surogate::dequantize_nf4` and so on.

A weight in storage is a tuple of tensors and a tuple of numbers, whose meaning its *kind* fixes (`KINDS`). CPU tensors
take vectorised torch here (reading codes two at a time through a table: 5.6 times as fast as the obvious form for a
576 x 1536 weight on 2 cores); CUDA tensors take the Triton kernels beside this file, which are imported only then, so
that a laptop needs no triton. What is not here: what the codes mean (reference.py), and modules (quant/).

The one idea: eager code writes into a workspace that the next layer uses again, compiled code calls the operator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surogate.kernels import reference

Tensors = tuple[Any, ...]
"""Tensors of a stored weight in the order of its kind, None where there is none."""
Numbers = tuple[int, ...]

_LIBRARY = torch.library.Library("surogate", "DEF")


class Kind(NamedTuple):
    """How one kind of storage is laid out.

    Attributes:
        tensors: names of its tensors; a trailing `?` marks one that may be None.
        numbers: names of its whole numbers.
        on_cpu: writes the weight into a contiguous float32 tensor.
        on_gpu: writes the weight into a contiguous CUDA tensor of any float dtype.
    """

    tensors: tuple[str, ...]
    numbers: tuple[str, ...]
    on_cpu: Callable[[Tensor, Tensors, Numbers], None]
    on_gpu: Callable[[Tensor, Tensors, Numbers], None]


def dequantize(kind: str, tensors: Tensors, numbers: Numbers, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a weight in a float dtype, newly allocated; the operator that torch.compile sees."""
    result: Tensor = getattr(torch.ops.surogate, f"dequantize_{kind}")(*tensors, *numbers, list(shape), dtype)
    return result


def dequantize_(out: Tensor, kind: str, tensors: Tensors, numbers: Numbers) -> Tensor:
    """Write a weight into a contiguous tensor, whose dtype decides what is written, and return it."""
    layout = KINDS[kind]
    if out.numel() == 0:
        return out
    if out.is_cuda:
        layout.on_gpu(out, tensors, numbers)
    elif out.dtype == torch.float32:
        layout.on_cpu(out, tensors, numbers)
    else:  # the product is rounded once, from float32
        wide = workspace(out.shape, torch.float32, out.device)
        layout.on_cpu(wide, tensors, numbers)
        out.copy_(wide)
    return out


_workspaces: dict[tuple[torch.device, int, torch.dtype], Tensor] = {}


def workspace(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for one dequantised weight, which the next call with this dtype hands out again.

    Kept for each device and stream (on a CPU: thread), as large as the largest weight seen. On a GPU the reused lines
    stay in the L2 cache; on a CPU fresh memory would cost page faults.
    """
    # On a GPU the stream orders its users, and autograd's own thread shares it; on a CPU nothing orders two threads.
    user = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else threading.get_ident()
    key = (device, user, dtype)
    num = torch.Size(shape).numel()
    if key not in _workspaces or _workspaces[key].numel() < num:
        with torch.inference_mode(False):  # or nobody could write into it outside of that mode
            _workspaces[key] = torch.empty(num, dtype=dtype, device=device)
    return _workspaces[key][:num].view(tuple(shape))


# ---- quantising

_PIECE = 1 << 17
"""Elements quantised at once on a CPU: the reference's intermediates take some 60 bytes an element."""


def quantize_nf4(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Return codes and absmax; see reference.nf4_quantize."""
    if weight.is_cuda:
        from surogate.kernels import nf4

        return nf4.quantize(weight, block_size)
    flat = weight.reshape(-1)
    step = max(1, _PIECE // (2 * block_size)) * 2 * block_size
    return _join(reference.nf4_quantize(piece, block_size) for piece in flat.split(step))


def quantize_fp8(weight_RC: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return codes and scale; see reference.fp8_quantize."""
    if weight_RC.is_cuda:
        from surogate.kernels import fp8

        return fp8.quantize(weight_RC, tile)
    step = max(1, _PIECE // (tile[0] * max(1, weight_RC.shape[1]))) * tile[0]
    return _join(reference.fp8_quantize(piece, tile) for piece in weight_RC.split(step))


def quantize_nvfp4(weight_RC: Tensor, global_scale: Tensor, four_over_six: bool) -> tuple[Tensor, Tensor]:
    """Return codes and block scales; see reference.nvfp4_quantize."""
    if weight_RC.is_cuda:
        from surogate.kernels import fp4

        return fp4.quantize_nvfp4(weight_RC, global_scale, four_over_six)
    step = max(1, _PIECE // max(1, weight_RC.shape[1]))
    return _join(reference.nvfp4_quantize(piece, global_scale, four_over_six) for piece in weight_RC.split(step))


def _join(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    codes, scales = zip(*pieces, strict=True)
    return torch.cat(codes), torch.cat(scales)


# ---- NF4 and bitsandbytes' FP4


@cache
def _byte_pairs(levels: tuple[float, ...], high_first: bool) -> Tensor:
    """Return for each byte its two values, float32, as one int64 (256,)."""
    byte = torch.arange(256)
    first, second = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    table = torch.tensor(levels, dtype=torch.float32)
    return torch.stack([table[first], table[second]], dim=1).contiguous().view(torch.int64).reshape(256)


def _look_up_pairs_(out: Tensor, pairs: Tensor, codes: Tensor) -> None:
    """Write the two values of each byte; an odd last element has half a byte."""
    flat, bytes_ = out.view(-1), codes.reshape(-1)
    whole = flat.numel() // 2
    if whole:
        torch.index_select(pairs, 0, bytes_[:whole].int(), out=flat[: 2 * whole].view(torch.int64))
    if flat.numel() % 2:
        flat[-1] = pairs[int(bytes_[whole])].reshape(1).view(torch.float32)[0]


def _scale_blocks_(out: Tensor, scales: Tensor, block_size: int) -> None:
    """Multiply each run of block_size elements by its scale; the last run may be shorter."""
    flat = out.view(-1)
    whole = flat.numel() // block_size
    flat[: whole * block_size].view(whole, block_size).mul_(scales[:whole, None])
    if flat.numel() % block_size:
        flat[whole * block_size :].mul_(scales[whole])


def nf4_absmax(tensors: Tensors) -> Tensor:
    """Return the scales of 4-bit blocks in float32, whether they are nested or not."""
    _, absmax, _, nested_absmax, nested_levels, offset = tensors
    if nested_absmax is None:
        plain: Tensor = absmax
        return plain
    return reference.nested_dequantize(absmax, nested_absmax, nested_levels, offset)


def _nf4_on_cpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    codes, levels = tensors[0], tensors[2]
    _look_up_pairs_(out, _byte_pairs(tuple(levels.tolist()), True), codes)
    _scale_blocks_(out, nf4_absmax(tensors), numbers[0])


def _nf4_on_gpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    from surogate.kernels import layouts, nf4

    nf4.dequantize_(out, tensors[0], layouts.Nf4Scales(*tensors[1:]), numbers[0])


# ---- FP8


@cache
def _e4m3_values() -> Tensor:
    return reference.e4m3_decode(torch.arange(256, dtype=torch.uint8))


def _fp8_on_cpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    codes, scale = tensors
    torch.index_select(_e4m3_values(), 0, codes.reshape(-1).int(), out=out.view(-1))  # torch's own cast takes 2.6 times
    (rows, columns), (R, C) = numbers, out.shape
    per_row = scale.repeat_interleave(rows, 0)[:R] if rows < R else scale
    whole = C // columns * columns
    if whole:
        out[:, :whole].unflatten(1, (-1, columns)).mul_(per_row[:, : whole // columns, None])
    if whole < C:
        out[:, whole:].mul_(per_row[:, -1:])


def _fp8_on_gpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    from surogate.kernels import fp8

    fp8.dequantize_(out, tensors[0], tensors[1], (numbers[0], numbers[1]))


# ---- FP4 in blocks of a row


def _fp4_on_cpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    codes, scale, tensor_scale = tensors
    if tensor_scale is None:
        step, block = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - 127), reference.MXFP4_BLOCK
    else:
        step, block = _e4m3_values()[scale.int()], reference.NVFP4_BLOCK
        step = step / tensor_scale if numbers[0] else step * tensor_scale
    _look_up_pairs_(out, _byte_pairs(reference.E2M1_LEVELS, False), codes)
    _scale_blocks_(out, step.reshape(-1), block)


def _fp4_on_gpu(out: Tensor, tensors: Tensors, numbers: Numbers) -> None:
    from surogate.kernels import fp4

    fp4.dequantize_(out, *tensors, divides=bool(numbers[0]))


KINDS = {
    "nf4": Kind(
        ("codes", "absmax", "levels", "nested_absmax?", "nested_levels?", "offset?"),
        ("block_size",),
        _nf4_on_cpu,
        _nf4_on_gpu,
    ),
    "fp8": Kind(("codes", "scale"), ("tile_rows", "tile_columns"), _fp8_on_cpu, _fp8_on_gpu),
    "fp4": Kind(("codes", "scale", "tensor_scale?"), ("divides",), _fp4_on_cpu, _fp4_on_gpu),
}
"""Every kind of storage by name; reference.py says what the codes mean."""


def _register(name: str, kind: Kind) -> None:
    tensors = [f"Tensor{'?' if n.endswith('?') else ''} {n.rstrip('?')}" for n in kind.tensors]
    numbers = [f"int {n}" for n in kind.numbers]
    schema = ", ".join([*tensors, *numbers, "SymInt[] shape", "ScalarType dtype"])
    operator = f"dequantize_{name}"
    _LIBRARY.define(f"{operator}({schema}) -> Tensor")
    split = len(kind.tensors)

    def run(*arguments: Any) -> Tensor:
        *stored, shape, dtype = arguments
        out = stored[0].new_empty(shape, dtype=dtype)
        return dequantize_(out, name, tuple(stored[:split]), tuple(stored[split:]))

    def fake(*arguments: Any) -> Tensor:
        *stored, shape, dtype = arguments
        out: Tensor = stored[0].new_empty(shape, dtype=dtype)
        return out

    _LIBRARY.impl(operator, run, "CPU")
    _LIBRARY.impl(operator, run, "CUDA")
    torch.library.register_fake(f"surogate::{operator}", fake, lib=_LIBRARY)


for _name, _kind in KINDS.items():
    _register(_name, _kind)
