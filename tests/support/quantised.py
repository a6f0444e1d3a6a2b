"""Tiny checkpoints in the formats of others, written with the code of the formats' owners."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.quant_scheme import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from support.families import family_config
from support.tiny import save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

Tensors = dict[str, Tensor]
Write = Callable[[Tensor], Tensors]
"""A weight -> its tensors by what comes after the layer's name."""

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "dtype": "bfloat16", "num_key_value_heads": 4}
"""Blocks of 64 lie within rows (bitsandbytes' CPU kernel needs that) and tiles of 128 are whole (transformers does)."""


def of_bitsandbytes(
    kind: str = "nf4", nested: bool = False, block_size: int = 64, storage: torch.dtype = torch.uint8
) -> Write:
    def write(weight: Tensor) -> Tensors:
        codes, state = bnb.quantize_4bit(weight, None, None, block_size, nested, kind, storage)
        packed = {f".weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {".weight": codes, **packed}

    return write


def of_transformers_fp8(tile: tuple[int, int] | None = (128, 128), scale_fmt: str = "float") -> Write:
    config = SimpleNamespace(weight_block_size=tile, scale_fmt=scale_fmt)
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=config))

    def write(weight: Tensor) -> Tensors:
        return {name.removeprefix("x"): tensor for name, tensor in quantize._quantize_one("x.weight", weight).items()}

    return write


def of_compressed_tensors(preset: str, **weight_args: Any) -> Write:
    scheme = compressed_scheme(preset, **weight_args)
    compressor = BaseCompressor.get_value_from_registry(compressed_format(preset))

    def write(weight: Tensor) -> Tensors:
        args = scheme.weights
        low, high = (_by_group(weight, args, function) for function in (torch.amin, torch.amax))
        state: Tensors = {"weight": weight}
        if args.strategy == "tensor_group":
            state["weight_global_scale"] = generate_gparam(low.amin().reshape(1), high.amax().reshape(1))
        scale, _ = calculate_qparams(low, high, args, state.get("weight_global_scale"))
        state["weight_scale"] = scale
        return {f".{name}": tensor for name, tensor in compressor.compress(state, scheme).items()}

    return write


def compressed_scheme(preset: str, **weight_args: Any) -> QuantizationScheme:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if weight_args:
        scheme.weights = QuantizationArgs(**{**scheme.weights.model_dump(), **weight_args})
    scheme.input_activations = None
    return scheme


def compressed_format(preset: str) -> str:
    return {"NVFP4A16": "nvfp4-pack-quantized", "MXFP4A16": "mxfp4-pack-quantized"}.get(preset, "float-quantized")


def compressed_config(preset: str, **weight_args: Any) -> dict[str, Any]:
    group = compressed_scheme(preset, **weight_args).model_dump(mode="json")
    return {
        "quant_method": "compressed-tensors",
        "format": compressed_format(preset),
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _by_group(weight: Tensor, args: QuantizationArgs, function: Callable[..., Tensor]) -> Tensor:
    """Smallest or largest values of what shares a scale, in the shape of the scales."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return function(weight).reshape(1)
    if args.strategy == "channel":
        return function(weight, dim=1, keepdim=True)
    tile = args.block_structure or (1, args.group_size)
    tiles = weight.reshape(rows // tile[0], tile[0], columns // tile[1], tile[1])
    return function(tiles, dim=(1, 3))


def save_quantised(
    folder: Path, write: Write, config: dict[str, Any] | None, *, modules: str = "_proj", **changes: Any
) -> Path:
    """Write a tiny Llama whose layers are stored by `write`.

    Args:
        folder: where.
        write: makes the tensors of a weight.
        config: its quantization_config; None leaves it out.
        modules: part of the names of the layers to store.
        changes: of the model's configuration.
    """
    save_tiny_model(folder, **{**SHAPE, **changes})
    return store_again(folder, write, config, modules)


def store_again(folder: Path, write: Write, config: dict[str, Any] | None, modules: str = "_proj") -> Path:
    """Replace the weights of a saved model by stored ones."""
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        tensor = tensor.to(torch.bfloat16)
        if modules in name and name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}{ending}": part.contiguous() for ending, part in write(tensor).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values |= {"dtype": "bfloat16"} | ({"quantization_config": config} if config else {})
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def change(folder: Path, edit: Callable[[Tensors], None]) -> Path:
    """Edit the tensors of a saved model in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def save_gpt_oss(folder: Path) -> Path:
    """Write a tiny gpt-oss whose experts are random MXFP4 blocks, laid out as the published checkpoints are."""
    torch.manual_seed(0)
    config = family_config("GptOss")
    config.intermediate_size = 64
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    store_again(folder, lambda weight: {".weight": weight}, {"quant_method": "mxfp4"})

    def pack(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            experts, inputs, outputs = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.randint(118, 124, blocks.shape[:-1], dtype=torch.uint8)

    return change(folder, pack)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CHANNEL = {"strategy": "channel"}
BLOCK = {"strategy": "block", "block_structure": [128, 128]}
