"""Which library a `quantization_config` is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surogate.errors import ModelError
from surogate.quant.checkpoints.bnb import BitsAndBytes
from surogate.quant.checkpoints.compressed import CompressedTensors
from surogate.quant.checkpoints.e4m3 import FineGrainedFp8
from surogate.quant.checkpoints.gpt_oss import GptOssMxfp4
from surogate.quant.checkpoints.modelopt import ModelOpt
from surogate.quant.checkpoints.reading import Method

_METHODS: dict[str, Callable[[dict[str, Any]], Method | None]] = {
    "bitsandbytes": BitsAndBytes.of,
    "fp8": FineGrainedFp8.of,
    "compressed-tensors": CompressedTensors.of,
    "modelopt": ModelOpt.of,
    "mxfp4": GptOssMxfp4.of,
}
SUPPORTED = (
    "bitsandbytes (4 bits: nf4, fp4), fp8 (fine-grained), compressed-tensors (FP8, NVFP4, MXFP4), modelopt (FP8, "
    "NVFP4) and mxfp4 (gpt-oss)"
)


def method_of(config: dict[str, Any]) -> Method | None:
    """Find the method of a quantization_config.

    Returns:
        None where the weights are not quantised after all.

    Raises:
        ModelError: it is none of those that can be read; a clause that starts with `it` or `its`.
    """
    name = config.get("quant_method")
    if name is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        name = "bitsandbytes"  # as transformers wrote it in the beginning
    if name not in _METHODS:
        raise ModelError(f"it is quantised by {name or 'an unnamed method'}; supported are {SUPPORTED}")
    return _METHODS[name](config)
