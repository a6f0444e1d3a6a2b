"""Taking apart an adapter that started from a factorisation of its base (PiSSA, OLoRA), as `lora.save_adapter` wrote.

What is written is W + B A - B0 A0 = W + [B, -B0] [A; A0], one adapter of twice the rank for the untouched base. What
was quantised under it is W - B0 A0, so both halves are needed again where that is to be rebuilt.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from surogate.errors import ModelError

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def take_apart(folder: Path, into: Path) -> tuple[Path, Path]:
    """Write the halves of an adapter as two adapters, which are to be merged in this order.

    Args:
        folder: as written by `lora.save_adapter` after a start from a factorisation.
        into: where the two folders go.

    Returns:
        The folder of what the start took out of the base, and that of what trained.

    Raises:
        ModelError: it cannot be taken apart.
    """
    config: dict[str, Any] = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise ModelError(
            f"{folder}: DoRA's magnitudes belong to both halves of an adapter that started from a factorisation, so "
            "what trained cannot be rebuilt from it. Serve base and adapter apart."
        )
    rank = config["r"] // 2
    narrower = math.sqrt(2) if config.get("use_rslora") else 2
    config |= {"r": rank, "lora_alpha": config["lora_alpha"] / narrower}
    tensors = load_file(folder / _FILES[1])
    halves = {"start": slice(rank, None), "trained": slice(None, rank)}
    for name, half in halves.items():
        (into / name).mkdir(parents=True)
        (into / name / _FILES[0]).write_text(json.dumps(config), encoding="utf-8")
        save_file({key: _half(key, value, half) for key, value in tensors.items()}, into / name / _FILES[1])
    return into / "start", into / "trained"


def _half(name: str, value: Tensor, half: slice) -> Tensor:
    if "lora_A" in name:
        return value[half].contiguous()
    return value[:, half].contiguous() if "lora_B" in name else value
