"""Quantised checkpoints that are unknown, incomplete or broken: each is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import (
    BLOCK,
    BNB,
    FP8,
    Tensors,
    Write,
    change,
    compressed_config,
    of_bitsandbytes,
    of_compressed_tensors,
    of_transformers_fp8,
    save_gpt_oss,
    save_quantised,
)
from support.tiny import save_tiny_model

from surogate.config.parts import ModelSpec
from surogate.errors import ModelError
from surogate.models.load import load_model

UP = "model.layers.1.mlp.up_proj.weight"
CT = "compressed-tensors"
MODELOPT_NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
INT4 = {"weights": {"num_bits": 4, "type": "int"}}
INT8 = {"weights": {"num_bits": 8, "type": "int"}}


def load(folder: Path) -> None:
    load_model(ModelSpec(source=str(folder)))


def refuse(folder: Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as error:
        load(folder)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def describe(folder: Path, config: Any) -> Path:
    """A plain model that says it is quantised."""
    save_tiny_model(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": config}))
    return folder


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quantised by gptq; supported are bitsandbytes .*qlora_bnb"),
        ({"quant_method": "awq"}, r"quantised by awq; supported are"),
        ({"bits": 4}, r"quantised by an unnamed method"),
        ({"load_in_8bit": True}, r"bitsandbytes in 8 bits \(LLM.int8\)"),
        ({**FP8, "weight_block_size": [128]}, r"weight_block_size is \[128\], and not a pair"),
        ({"quant_method": CT, "config_groups": {"a": INT4}}, r"weights of 4 bits and type int"),
        ({"quant_method": CT, "config_groups": {"a": INT8}}, r"weights of 8 bits and type int"),
        ({"quant_method": CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, r"it is sparse"),
        ({"quant_method": CT, "transform_config": {"config_groups": {"u": {}}}}, r"its weights are rotated"),
        ({"quant_method": CT, "quantization_status": "frozen"}, r"quantization_status is frozen"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, r"quant_algo is NVFP4_AWQ; .*W4A16_NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "INT4_AWQ"}, r"quant_algo is INT4_AWQ"),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W4A8_AWQ"}},
            },
            r"quant_algo is W4A8_AWQ",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_read_is_named_with_what_can(config: Any, sentence: str, tmp_path: Path) -> None:
    refuse(describe(tmp_path, config), sentence)


def without(name: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        del tensors[name]

    return edit


def with_value(name: str, value: float, dtype: torch.dtype | None = None) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensor = tensors[name].clone()
        tensor.view(dtype or tensor.dtype).view(-1)[0] = value
        tensors[name] = tensor

    return edit


def replaced(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: make(tensors[name]).contiguous()})


def in_state(old: bytes, new: bytes) -> Callable[[Tensors], None]:
    """Replace a piece of bitsandbytes' JSON."""
    return replaced(STATE, lambda t: torch.tensor(list(bytes(t.tolist()).replace(old, new)), dtype=torch.uint8))


NF4, NESTED = of_bitsandbytes(), of_bitsandbytes(nested=True)
STATE = f"{UP}.quant_state.bitsandbytes__nf4"
NVFP4, MXFP4, TILED = of_compressed_tensors("NVFP4A16"), of_compressed_tensors("MXFP4A16"), of_transformers_fp8()
NVFP4_CONFIG, MXFP4_CONFIG = compressed_config("NVFP4A16"), compressed_config("MXFP4A16")
CT_TILED, CT_TILED_CONFIG = of_compressed_tensors("FP8", **BLOCK), compressed_config("FP8", **BLOCK)


@pytest.mark.parametrize(
    ("write", "config", "edit", "sentence"),
    [
        (NF4, BNB, without(STATE), rf"incomplete: {UP} is quantised, but there is no {STATE}\."),
        (NF4, BNB, without(f"{UP}.absmax"), rf"there is no {UP}.absmax"),
        (NF4, BNB, without(UP), rf"incomplete: {UP} is quantised, but there is no {UP}\."),
        (NESTED, BNB, without(f"{UP}.nested_absmax"), rf"there is no {UP}.nested_absmax"),
        (NF4, BNB, with_value(f"{UP}.absmax", torch.nan), rf"broken: {UP}.absmax holds NaN or infinity"),
        (NESTED, BNB, with_value(f"{UP}.nested_absmax", torch.inf), r"nested_absmax holds NaN or infinity"),
        (NF4, BNB, replaced(UP, lambda t: t[:-8]), rf"{UP} has 16376 bytes for a weight of \(256, 128\)"),
        (NF4, BNB, replaced(f"{UP}.absmax", lambda t: t[:-1]), r"has 511 scales for 512 blocks"),
        (NF4, BNB, replaced(f"{UP}.quant_map", lambda t: t[:8]), r"has 8 levels, not 16"),
        (NF4, BNB, with_value(STATE, 0), r"does not describe a quantised matrix"),
        (NF4, BNB, replaced(STATE, lambda t: t[: len(t) // 2]), r"does not describe a quantised matrix"),
        (
            NESTED,
            BNB,
            in_state(b'"nested_blocksize": 256', b'"nested_blocksize": 128'),
            r"has nested blocks of 128; bitsandbytes reads 256",
        ),
        (TILED, FP8, without(f"{UP}_scale_inv"), rf"incomplete: {UP} is quantised, but there is no {UP}_scale_inv"),
        (TILED, FP8, with_value(f"{UP}_scale_inv", torch.nan), r"weight_scale_inv holds NaN or infinity"),
        (TILED, FP8, with_value(UP, 0x7F, torch.uint8), rf"{UP} holds NaN"),
        (TILED, FP8, replaced(f"{UP}_scale_inv", lambda t: t.repeat(2, 2)), r"which is neither one scale, nor"),
        (TILED, FP8, replaced(UP, lambda t: t.to(torch.float8_e5m2)), r"is float8_e5m2, not float8_e4m3fn"),
        (TILED, FP8, replaced(UP, lambda t: t.float()), r"is float32, not float8_e4m3fn"),
        (TILED, FP8, replaced(UP, lambda t: t[:128]), r"has shape|neither one scale"),
        (CT_TILED, CT_TILED_CONFIG, without(f"{UP}_scale"), rf"there is no {UP}_scale"),
        (NVFP4, NVFP4_CONFIG, without(f"{UP}_global_scale"), rf"there is no {UP}_global_scale"),
        (NVFP4, NVFP4_CONFIG, without(f"{UP}_scale"), rf"there is no {UP}_scale"),
        (NVFP4, NVFP4_CONFIG, with_value(f"{UP}_scale", 0x7F, torch.uint8), rf"{UP}_scale holds NaN"),
        (NVFP4, NVFP4_CONFIG, with_value(f"{UP}_global_scale", torch.nan), r"global_scale holds NaN"),
        (NVFP4, NVFP4_CONFIG, with_value(f"{UP}_global_scale", 0.0), r"global_scale is not above zero"),
        (NVFP4, NVFP4_CONFIG, replaced(f"{UP}_scale", lambda t: t[:, :-1]), r"does not fit a weight of 256 x 128"),
        (
            NVFP4,
            NVFP4_CONFIG,
            lambda tensors: tensors.update({f"{UP}_zero_point": torch.ones(1)}),
            r"zero_point is not zero",
        ),
        (MXFP4, MXFP4_CONFIG, with_value(f"{UP}_scale", 255), r"weight_scale holds NaN"),
    ],
)
def test_tensors_that_are_missing_or_broken_are_named(
    write: Write, config: dict[str, Any], edit: Callable[[Tensors], None], sentence: str, tmp_path: Path
) -> None:
    refuse(change(save_quantised(tmp_path, write, config), edit), sentence)


def test_awq_scales_of_modelopt_are_refused_by_name(tmp_path: Path) -> None:
    def write(weight: torch.Tensor) -> Tensors:
        return {
            ".weight": torch.zeros(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8),
            ".weight_scale": torch.ones(weight.shape[0], weight.shape[1] // 16).to(torch.float8_e4m3fn),
            ".weight_scale_2": torch.ones(()),
            ".pre_quant_scale": torch.ones(weight.shape[1]),
        }

    refuse(save_quantised(tmp_path, write, MODELOPT_NVFP4), r"pre_quant_scale: .*quantised with AWQ or SVDQuant")


@pytest.mark.parametrize("keep", [0, 6, 4000])
def test_a_file_that_is_cut_short_is_named(keep: int, tmp_path: Path) -> None:
    file = save_quantised(tmp_path, TILED, FP8) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read, so it is broken or cut short"):
        load(tmp_path)


def test_a_weight_of_another_shape_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = save_quantised(tmp_path, TILED, FP8)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 384}))
    refuse(folder, r"has shape \(256, 128\) in the file, and \(384, 128\) in the model")


def test_a_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = save_quantised(tmp_path, TILED, FP8)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, r"holds no \*.safetensors")


def test_layers_that_do_not_map_one_to_one_are_an_error_and_not_left_to_another_loader(tmp_path: Path) -> None:
    folder = change(save_quantised(tmp_path, TILED, FP8), lambda t: t.update({"renamed": t.pop("model.norm.weight")}))
    refuse(folder, r"is quantised \(fp8\) and holds nothing for 1 of the model's parameters, for example model.norm")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda name: without(f"{name}_scales"), r"there is no .*gate_up_proj_scales"),
        (lambda name: with_value(f"{name}_scales", 255), r"gate_up_proj_scales holds NaN"),
        (lambda name: replaced(f"{name}_scales", lambda t: t[:, :-1]), r"has shape \(4, 127, 1\)"),
        (lambda name: replaced(f"{name}_blocks", lambda t: t[..., :8]), r"is not uint8 \(experts, rows, blocks, 16\)"),
        (
            lambda name: (
                lambda t: t.update({f"{name}{e}": t[f"{name}{e}"][:2].clone() for e in ("_blocks", "_scales")})
            ),
            r"\(2, 32, 128\) in the file, and \(4, 32, 128\)",
        ),
    ],
)
def test_broken_experts_of_gpt_oss_are_named(edit: Any, sentence: str, tmp_path: Path) -> None:
    refuse(change(save_gpt_oss(tmp_path), edit("model.layers.0.mlp.experts.gate_up_proj")), sentence)
