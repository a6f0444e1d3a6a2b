"""gpt-oss's checkpoints (`quant_method: mxfp4`): experts in MXFP4, everything else plain.

A projection of all experts is two tensors, `X_blocks` uint8 (E, N, I / 32, 16) and `X_scales` uint8 (E, N, I / 32).
The model's parameter X is their transpose, (E, I, N). Source: transformers/integrations/mxfp4.py
_convert_moe_packed_tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from surogate.kernels.reference import MXFP4_BLOCK
from surogate.quant.checkpoints.compressed import E8M0_NAN
from surogate.quant.checkpoints.e4m3 import SCALE
from surogate.quant.checkpoints.reading import Parts
from surogate.quant.experts import StoredExperts
from surogate.quant.fp4 import Fp4Weight

_BLOCKS = "blocks"


@dataclass(frozen=True)
class GptOssMxfp4:
    """See reading.Method."""

    name: ClassVar[str] = "mxfp4"
    endings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "_blocks": ("", _BLOCKS),
        "_scales": ("", SCALE),
    }

    @classmethod
    def of(cls, config: dict[str, Any]) -> GptOssMxfp4:
        """Read a quantization_config, which says nothing that the tensors don't."""
        return cls()

    def store(self, parts: Parts) -> StoredExperts:
        """See reading.Method."""
        blocks = parts[_BLOCKS]
        scales = parts.byte_codes(SCALE, torch.float8_e8m0fnu, E8M0_NAN)
        is_right = blocks.dtype == torch.uint8 and blocks.dim() == 4 and blocks.shape[-1] == MXFP4_BLOCK // 2
        parts.check(is_right, _BLOCKS, f"is not uint8 (experts, rows, blocks, {MXFP4_BLOCK // 2})")
        parts.check(
            scales.shape == blocks.shape[:-1], SCALE, f"has shape {tuple(scales.shape)}, the blocks {blocks.shape[:-1]}"
        )
        return StoredExperts([Fp4Weight(codes, scale) for codes, scale in zip(blocks.flatten(2), scales, strict=True)])
