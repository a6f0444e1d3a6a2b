"""ModelOpt's checkpoints (NVIDIA TensorRT Model Optimizer): FP8 by tensor or row, and NVFP4.

transformers cannot load them. Source: modelopt 0.47, torch/export/{quant_utils,convert_hf_config}.py and
torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from surogate.errors import ModelError
from surogate.quant.checkpoints.compressed import TENSOR_SCALE, fp4_weight
from surogate.quant.checkpoints.e4m3 import SCALE, fp8_weight
from surogate.quant.checkpoints.reading import CODES, UNUSED, Parts
from surogate.quant.fp4 import Fp4Weight
from surogate.quant.fp8 import Fp8Weight

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4")
_PRE_SCALE = "pre_quant_scale"


@dataclass(frozen=True)
class ModelOpt:
    """See reading.Method."""

    name: ClassVar[str] = "modelopt"
    endings: ClassVar[Mapping[str, tuple[str, str]]] = {
        ".weight_scale": (".weight", SCALE),
        ".weight_scale_2": (".weight", TENSOR_SCALE),
        ".pre_quant_scale": (".weight", _PRE_SCALE),
        ".input_scale": (".weight", UNUSED),
    }

    @classmethod
    def of(cls, config: dict[str, Any]) -> ModelOpt | None:
        """Read a quantization_config, or the `quantization` of a hf_quant_config.json.

        Returns:
            None where only the cache of keys and values is quantised, of which training has none.

        Raises:
            ModelError: it uses another algorithm.
        """
        algorithm = config.get("quant_algo")
        layers = config.get("quantized_layers") or {}
        asked = {str(layer.get("quant_algo")) for layer in layers.values()} if layers else {str(algorithm)}
        if algorithm is None and not layers:
            return None
        if other := sorted(asked - {*_ALGORITHMS, "MIXED_PRECISION"}):
            raise ModelError(
                f"its quant_algo is {other[0]}; those that can be trained on are {', '.join(_ALGORITHMS)}, and "
                "MIXED_PRECISION of them"
            )
        return cls()

    def store(self, parts: Parts) -> Fp8Weight | Fp4Weight:
        """See reading.Method."""
        if _PRE_SCALE in parts:
            raise ModelError(
                f"There is a {parts.name(_PRE_SCALE)}: the checkpoint is quantised with AWQ or SVDQuant, which scale "
                "the activations too, and cannot be trained on. Use the original model."
            )
        if parts[CODES].dtype == torch.uint8:
            return fp4_weight(parts, CODES, divides=False)
        return fp8_weight(parts, ())
