"""The weights that were quantised are found again in their file, or it is said why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.quantised import BNB, of_bitsandbytes, save_quantised
from support.smollm2 import GGUF
from support.tiny import save_tiny_model
from transformers import AutoModelForCausalLM

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models.load import load_model
from surogate.models.originals import OriginalWeights

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


def test_a_weight_is_read_under_its_name_and_in_its_shape(base: Path) -> None:
    originals = OriginalWeights(ModelSpec(source=str(base)), LoraSpec())
    expected = AutoModelForCausalLM.from_pretrained(base).get_parameter(NAME)
    found = originals.read(NAME, (32, 48))
    assert originals.missing is None and found is not None and torch.equal(found, expected)
    assert originals.read(NAME, (48, 32)) is None and originals.read("model.other.weight", (32, 48)) is None


def test_a_gguf_file_is_read_too() -> None:
    spec, name = ModelSpec(source=GGUF), "model.layers.3.self_attn.k_proj.weight"
    expected = load_model(spec).get_parameter(name)
    found = OriginalWeights(spec, LoraSpec()).read(name, (192, 576))
    assert found is not None and torch.equal(found.to(expected.dtype), expected)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_changes_the_base_leaves_no_original(base: Path, init: str) -> None:
    originals = OriginalWeights(ModelSpec(source=str(base)), LoraSpec(init_lora_weights=init))
    assert originals.missing == f"init_lora_weights: {init} changed the base before"
    assert originals.read(NAME, (32, 48)) is None


def test_an_adapter_that_was_merged_before_leaves_no_original_and_one_that_trains_on_does(
    base: Path, tmp_path: Path
) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    spec, path = ModelSpec(source=str(base)), str(tmp_path / "adapter")
    merged = OriginalWeights(spec, LoraSpec(adapter_path=path))
    assert merged.missing == "another adapter was merged into the base before"
    assert OriginalWeights(spec, LoraSpec(adapter_path=path, adapter_init_mode="trainable")).missing is None


def test_a_quantised_checkpoint_has_no_original(tmp_path: Path) -> None:
    save_quantised(tmp_path, of_bitsandbytes(), BNB)
    assert OriginalWeights(ModelSpec(source=str(tmp_path)), LoraSpec()).missing == "the checkpoint is quantised itself"
