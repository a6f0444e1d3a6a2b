"""bitsandbytes' 4-bit checkpoints: NF4 and FP4, plain and double quantised, whatever dtype the codes are packed into.

Source: bitsandbytes/functional.py QuantState.as_dict and from_dict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from surogate.errors import ModelError
from surogate.kernels.reference import NESTED_BLOCK
from surogate.quant.checkpoints.reading import CODES, Parts
from surogate.quant.nf4 import Nf4Weight

STATE_ENDING = ".weight.quant_state.bitsandbytes__"


@dataclass(frozen=True)
class BitsAndBytes:
    """See reading.Method."""

    name: ClassVar[str] = "bitsandbytes"
    endings: ClassVar[Mapping[str, tuple[str, str]]] = {
        f"{STATE_ENDING}nf4": (".weight", "state"),
        f"{STATE_ENDING}fp4": (".weight", "state"),
        ".weight.absmax": (".weight", "absmax"),
        ".weight.quant_map": (".weight", "levels"),
        ".weight.nested_absmax": (".weight", "nested_absmax"),
        ".weight.nested_quant_map": (".weight", "nested_levels"),
    }

    @classmethod
    def of(cls, config: dict[str, Any]) -> BitsAndBytes:
        """Read a quantization_config.

        Raises:
            ModelError: it is of 8 bits.
        """
        if config.get("load_in_8bit"):
            raise ModelError("bitsandbytes in 8 bits (LLM.int8) cannot be trained on; its 4-bit formats can")
        return cls()

    def store(self, parts: Parts) -> Nf4Weight:
        """See reading.Method."""
        state = _state(parts)
        shape, block_size = (state["shape"][0], state["shape"][1]), state["blocksize"]
        codes = parts[CODES].contiguous().view(torch.uint8).reshape(-1, 1)
        absmax = parts["absmax"].reshape(-1)
        nested = None
        num = shape[0] * shape[1]
        num_blocks = -(-num // block_size)
        if "nested_absmax" in parts or absmax.dtype == torch.uint8:
            nested = _nested(parts, state, num_blocks)
        else:
            absmax = parts.numbers("absmax").reshape(-1)
        parts.check(len(codes) == -(-num // 2), CODES, f"has {len(codes)} bytes for a weight of {shape}")
        parts.check(len(absmax) == num_blocks, "absmax", f"has {len(absmax)} scales for {num_blocks} blocks")
        levels = parts.numbers("levels").reshape(-1)
        parts.check(len(levels) == 16, "levels", f"has {len(levels)} levels, not 16")
        return Nf4Weight(shape, codes, absmax, levels, block_size, nested)


def _state(parts: Parts) -> dict[str, Any]:
    """Return what bitsandbytes packs as JSON: shape, block size, and more of double quantisation."""
    packed = parts["state"]
    try:
        state = json.loads(bytes(packed.tolist()).decode("utf-8"))
        whole = [*state["shape"], state["blocksize"]]
        fits = len(state["shape"]) == 2 and all(isinstance(number, int) and number > 0 for number in whole)
    except (ValueError, KeyError, TypeError):
        fits = False
    parts.check(fits, "state", "does not describe a quantised matrix")
    result: dict[str, Any] = state
    return result


def _nested(parts: Parts, state: dict[str, Any], num_blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    block = state.get("nested_blocksize")
    parts.check(block == NESTED_BLOCK, "state", f"has nested blocks of {block}; bitsandbytes reads {NESTED_BLOCK}")
    absmax, levels = parts.numbers("nested_absmax").reshape(-1), parts.numbers("nested_levels").reshape(-1)
    parts.check(len(absmax) == -(-num_blocks // NESTED_BLOCK), "nested_absmax", f"has {len(absmax)} scales")
    parts.check(len(levels) == 256, "nested_levels", f"has {len(levels)} levels, not 256")
    mean = state.get("nested_offset")
    parts.check(isinstance(mean, float | int) and math.isfinite(mean), "state", "has no nested_offset")
    offset = torch.tensor(mean, dtype=torch.float32)
    return absmax, levels, offset
