"""compressed-tensors' checkpoints (llm-compressor, vLLM): FP8 by tensor, row, group or tile, NVFP4 and MXFP4.

Which of them a weight is in is told by its tensors, so that formats may be mixed. Source: compressed_tensors 0.20,
compressors/{naive_quantized,nvfp4,mxfp4}/base.py and quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from surogate.errors import ModelError
from surogate.kernels.reference import MXFP4_BLOCK, NVFP4_BLOCK
from surogate.quant.checkpoints.e4m3 import E4M3_NAN, SCALE, Tile, as_tile, fp8_weight
from surogate.quant.checkpoints.reading import UNUSED, Parts
from surogate.quant.fp4 import Fp4Weight
from surogate.quant.fp8 import Fp8Weight

PACKED, TENSOR_SCALE, ZERO_POINT = "packed", "tensor_scale", "zero_point"
E8M0_NAN = 0xFF


@dataclass(frozen=True)
class CompressedTensors:
    """See reading.Method.

    Attributes:
        tiles: of the FP8 weights, besides one for the tensor and one for each row.
    """

    tiles: tuple[Tile, ...]
    name: ClassVar[str] = "compressed-tensors"
    endings: ClassVar[Mapping[str, tuple[str, str]]] = {
        ".weight_packed": (".weight", PACKED),
        ".weight_scale": (".weight", SCALE),
        ".weight_global_scale": (".weight", TENSOR_SCALE),
        ".weight_zero_point": (".weight", ZERO_POINT),
        ".input_scale": (".weight", UNUSED),
        ".input_global_scale": (".weight", UNUSED),
        ".input_zero_point": (".weight", UNUSED),
        ".output_scale": (".weight", UNUSED),
    }

    @classmethod
    def of(cls, config: dict[str, Any]) -> CompressedTensors:
        """Read a quantization_config.

        Raises:
            ModelError: it has weights in whole numbers, sparse ones, rotated ones, or such as are not compressed.
        """
        _check_unsupported(config)
        tiles = []
        for group in (config.get("config_groups") or {}).values():
            weights = group.get("weights") or {}
            if weights.get("num_bits", 8) not in (4, 8) or weights.get("type", "float") != "float":
                raise ModelError(
                    f"it has weights of {weights.get('num_bits')} bits and type {weights.get('type')}; those that can "
                    "be trained on are floats of 4 or 8 bits (FP8, NVFP4, MXFP4)"
                )
            if tile := as_tile(weights.get("block_structure"), "block_structure"):
                tiles.append(tile)
            elif weights.get("group_size"):
                tiles.append((1, weights["group_size"]))
        return cls(tuple(tiles))

    def store(self, parts: Parts) -> Fp8Weight | Fp4Weight:
        """See reading.Method."""
        if ZERO_POINT in parts:
            parts.check(not bool(parts[ZERO_POINT].float().any()), ZERO_POINT, "is not zero: that is not supported")
        if PACKED not in parts:
            return fp8_weight(parts, self.tiles)
        return fp4_weight(parts, PACKED, divides=True)


def _check_unsupported(config: dict[str, Any]) -> None:
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ModelError(f"it is sparse (sparsity_config: {sparsity}), and only dense weights are read")
    if config.get("transform_config"):
        raise ModelError("it has a transform_config: its weights are rotated, which would have to be undone")
    status = config.get("quantization_status", "compressed")
    if status != "compressed":
        raise ModelError(f"its quantization_status is {status}, and only compressed weights are read")


def fp4_weight(parts: Parts, codes: str, divides: bool) -> Fp4Weight:
    """Make a stored weight of NVFP4 or MXFP4 parts; NVFP4 is what has E4M3 scales.

    Args:
        parts: with codes, SCALE, and for NVFP4 TENSOR_SCALE.
        codes: the part with the codes.
        divides: block scales are divided by the tensor scale, not multiplied.
    """
    packed = parts.matrix(codes)
    parts.check(packed.dtype == torch.uint8, codes, f"is {packed.dtype}, not uint8".replace("torch.", ""))
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    scale = parts[SCALE]
    is_mx = scale.dtype in (torch.uint8, torch.float8_e8m0fnu) and TENSOR_SCALE not in parts
    block = MXFP4_BLOCK if is_mx else NVFP4_BLOCK
    shape = tuple(scale.shape)
    parts.check(
        shape == (rows, columns // block) and columns % block == 0,
        SCALE,
        f"has shape {shape}, which does not fit a weight of {rows} x {columns} in blocks of {block}",
    )
    if is_mx:
        return Fp4Weight(packed, parts.byte_codes(SCALE, torch.float8_e8m0fnu, E8M0_NAN))
    codes_of_scale = parts.byte_codes(SCALE, torch.float8_e4m3fn, E4M3_NAN)
    tensor_scale = parts.numbers(TENSOR_SCALE).reshape(-1)
    parts.check(len(tensor_scale) == 1, TENSOR_SCALE, f"has {len(tensor_scale)} values, not one")
    parts.check(bool(tensor_scale > 0), TENSOR_SCALE, "is not above zero")
    return Fp4Weight(packed, codes_of_scale, tensor_scale, divides)
