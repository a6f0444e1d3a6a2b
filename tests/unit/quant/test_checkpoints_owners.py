"""Checkpoints that the owners of the formats wrote are read as their own loaders read them, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from support.quantised import (
    BLOCK,
    BNB,
    CHANNEL,
    FP8,
    Write,
    compressed_config,
    of_bitsandbytes,
    of_compressed_tensors,
    of_transformers_fp8,
    save_quantised,
)
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from surogate.config.parts import ModelSpec
from surogate.models.load import load_model

AS_STORED = torch.device("meta")
"""Leaves the weights in their own dtype on a CPU that has no bfloat16."""


def ours(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(ModelSpec(source=str(folder)), AS_STORED).state_dict()


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"nested": True},
        {"kind": "fp4"},
        {"kind": "fp4", "nested": True, "block_size": 128},
        {"storage": torch.bfloat16},
        {"storage": torch.float32, "nested": True},
    ],
    ids=str,
)
def test_bitsandbytes_4_bit(kwargs: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    config = {**BNB, "bnb_4bit_quant_type": kwargs.get("kind", "nf4")}
    config["bnb_4bit_quant_storage"] = str(kwargs.get("storage", torch.uint8)).removeprefix("torch.")
    folder = save_quantised(tmp_path, of_bitsandbytes(**kwargs), config, tie_word_embeddings=tied)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    expected = {}
    for name, tensor in theirs.state_dict().items():
        layer = theirs.get_submodule(name.rpartition(".")[0]) if name.endswith("_proj.weight") else None
        if ".weight." not in name:
            expected[name] = tensor if layer is None else bnb.dequantize_4bit(tensor, layer.weight.quant_state)
    assert_same(ours(folder), expected)


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("tile", [(128, 128), (64, 32), None], ids=str)
def test_transformers_fine_grained_fp8(tile: tuple[int, int] | None, scale_fmt: str, tmp_path: Path) -> None:
    config = {**FP8, "weight_block_size": tile, "scale_fmt": scale_fmt}
    folder = save_quantised(tmp_path, of_transformers_fp8(tile, scale_fmt), config, tie_word_embeddings=False)
    assert_same(ours(folder), AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # that is how to ask for the weights themselves
@pytest.mark.parametrize(
    ("preset", "args"),
    [
        ("NVFP4A16", {}),
        ("MXFP4A16", {}),
        ("FP8", {}),
        ("FP8", CHANNEL),
        ("FP8", BLOCK),
        ("FP8", {"strategy": "group", "group_size": 32}),
    ],
    ids=str,
)
def test_compressed_tensors(preset: str, args: dict[str, Any], tmp_path: Path) -> None:
    write, config = of_compressed_tensors(preset, **args), compressed_config(preset, **args)
    folder = save_quantised(tmp_path, write, config, tie_word_embeddings=False)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    wanted = ours(folder)
    assert_same(wanted, {name: tensor for name, tensor in theirs.state_dict().items() if name in wanted})


@pytest.mark.parametrize(
    ("write", "config"),
    [
        (of_bitsandbytes(nested=True), BNB),
        (of_transformers_fp8(), FP8),
        (of_compressed_tensors("NVFP4A16"), compressed_config("NVFP4A16")),
    ],
    ids=["bnb", "fp8", "nvfp4"],
)
def test_a_quantised_head_is_read_too(write: Write, config: dict[str, Any], tmp_path: Path) -> None:
    config = {**config, "llm_int8_skip_modules": []}
    shape = {"tie_word_embeddings": False, "vocab_size": 128}
    plain = save_quantised(tmp_path / "plain", lambda weight: {".weight": weight}, None, **shape)
    folder = save_quantised(tmp_path / "stored", write, config, modules="lm_head", **shape)
    got, original = ours(folder), ours(plain)
    assert all(torch.equal(got[name], original[name]) != (name == "lm_head.weight") for name in original)
    torch.testing.assert_close(got["lm_head.weight"], original["lm_head.weight"], atol=0.2, rtol=0)
