"""Checkpoints that no loader at hand reads (right): values by the formula of their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import load_file
from support.quantised import BNB, FP8, of_bitsandbytes, save_gpt_oss, save_quantised
from torch import Tensor
from transformers import AutoModelForCausalLM, Mxfp4Config

from surogate.config.parts import ModelSpec
from surogate.models.load import load_model, quantisation_of
from surogate.quant.checkpoints.bnb import BitsAndBytes
from surogate.quant.checkpoints.e4m3 import FineGrainedFp8
from surogate.quant.checkpoints.reading import QuantisedCheckpoint

AS_STORED = torch.device("meta")
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Held:
    """Tensors in memory in place of files."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> set[str]:
        return set(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


@pytest.mark.parametrize("shape", [(192, 128), (128, 200), (576, 1536), (5, 7), (130, 259)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
def test_fp8_tiles_at_the_edges_are_smaller_and_do_not_shift_the_others(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = (torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.5).to(dtype)
    expected = torch.empty(shape)
    for row in range(shape[0]):
        scales = scale[row // 128].float().repeat_interleave(128)[: shape[1]]
        expected[row] = codes[row].float() * scales
    files = Held({"x.weight": codes, "x.weight_scale_inv": scale})
    checkpoint = QuantisedCheckpoint(files, FineGrainedFp8.of(FP8))
    assert checkpoint.names() == {"x.weight"} and torch.equal(checkpoint.read("x.weight"), expected)


@pytest.mark.parametrize("block_size", [64, 128, 4096])
@pytest.mark.parametrize("shape", [(32, 32), (5, 7), (33, 65)], ids=str)
def test_bitsandbytes_blocks_run_across_rows(shape: tuple[int, int], block_size: int, tmp_path: Path) -> None:
    """bitsandbytes' own CPU kernel reads rows that are shorter than a block wrong; its plain torch code does not."""
    torch.manual_seed(0)
    tensors = {f"x{end}": t for end, t in of_bitsandbytes(block_size=block_size)(torch.randn(shape)).items()}
    got = QuantisedCheckpoint(Held(tensors), BitsAndBytes.of(BNB)).read("x.weight")
    absmax, levels = tensors["x.weight.absmax"], tensors["x.weight.quant_map"]
    codes = tensors["x.weight"].reshape(-1)
    assert torch.equal(got, _dequantize_4bit_compute(codes, absmax, levels, block_size, shape, torch.float32))


def modelopt_fp8(per_row: bool) -> Any:
    def write(weight: Tensor) -> dict[str, Tensor]:
        amax = weight.float().abs().amax(dim=1) if per_row else weight.float().abs().amax()
        scale = amax / 448
        codes = (weight.float() / (scale[:, None] if per_row else scale)).to(torch.float8_e4m3fn)
        return {".weight": codes, ".weight_scale": scale, ".input_scale": torch.tensor(0.5)}

    return write


def modelopt_nvfp4(weight: Tensor) -> dict[str, Tensor]:
    """torch/quantization/qtensor/nvfp4_tensor.py, with the codes drawn at random."""
    codes = torch.randint(0, 256, (weight.shape[0], weight.shape[1] // 2), dtype=torch.uint8)
    scale = (torch.rand(weight.shape[0], weight.shape[1] // 16) * 448).to(torch.float8_e4m3fn)
    scale_2 = weight.float().abs().amax() / (6 * 448)
    return {".weight": codes, ".weight_scale": scale, ".weight_scale_2": scale_2, ".input_scale": torch.tensor(0.1)}


def modelopt_value(part: dict[str, Tensor]) -> Tensor:
    weight, scale = part["weight"], part["weight_scale"].float()
    if "weight_scale_2" not in part:
        return weight.float() * (scale[:, None] if scale.dim() else scale)
    nibbles = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(1).long()
    return E2M1[nibbles] * (scale * part["weight_scale_2"]).repeat_interleave(16, dim=1)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("write", "algorithm"),
    [
        (modelopt_fp8(False), "FP8"),
        (modelopt_fp8(True), "FP8_PER_CHANNEL_PER_TOKEN"),
        (modelopt_nvfp4, "NVFP4"),
    ],
    ids=["fp8", "fp8-rows", "nvfp4"],
)
def test_modelopt_with_its_configuration_inside_or_apart(
    write: Any, algorithm: str, apart: bool, tmp_path: Path
) -> None:
    described = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    kept: dict[str, dict[str, Tensor]] = {}

    def write_and_keep(weight: Tensor) -> dict[str, Tensor]:
        parts = write(weight)
        kept[f"{len(kept)}"] = {end.removeprefix("."): tensor for end, tensor in parts.items()}
        return parts

    config = None if apart else {"quant_method": "modelopt", **described}
    folder = save_quantised(tmp_path, write_and_keep, config, tie_word_embeddings=False)
    if apart:
        quantisation = {"producer": {"name": "modelopt"}, "quantization": described}
        (folder / "hf_quant_config.json").write_text(json.dumps(quantisation))
    tensors = load_file(folder / "model.safetensors")
    model = load_model(ModelSpec(source=str(folder)), AS_STORED)
    num_compared = 0
    for name, weight in model.named_parameters():
        layer = name.removesuffix(".weight")
        part = {n.removeprefix(f"{layer}."): t for n, t in tensors.items() if n.startswith(f"{layer}.")}
        expected = modelopt_value(part) if "weight_scale" in part else part["weight"]
        assert torch.equal(weight, expected.to(weight.dtype)), name
        num_compared += "weight_scale" in part
    assert num_compared == len(kept) == 14


def test_a_modelopt_checkpoint_of_which_only_the_cache_is_quantised_is_a_plain_one(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}
    folder = save_quantised(tmp_path, lambda weight: {".weight": weight}, config)
    assert quantisation_of(ModelSpec(source=str(folder))) is None
    model = load_model(ModelSpec(source=str(folder)), AS_STORED)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")


def test_gpt_oss_experts_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save_gpt_oss(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    got, expected = load_model(ModelSpec(source=str(folder)), AS_STORED).state_dict(), theirs.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
