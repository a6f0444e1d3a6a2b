"""Adapters: which layers, which dtype, and PEFT's own format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models import lora
from surogate.models.load import load_model

ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", tie_word_embeddings=False)


@pytest.fixture
def base(folder: Path) -> nn.Module:
    return load_model(ModelSpec(source=str(folder)))


def test_all_means_every_linear_layer_but_the_head(base: nn.Module) -> None:
    assert lora.target_names(base, ["all"]) == ALL


def test_a_target_that_matches_nothing_lists_what_there_is(base: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"no linear layer is named query.*q_proj"):
        lora.target_names(base, ["q_proj", "query"])


def test_a_longer_name_and_a_regular_expression_choose_among_layers(base: nn.Module) -> None:
    first = "model.layers.0.self_attn.q_proj"
    assert lora.target_names(base, ["layers.0.self_attn.q_proj"]) == ["layers.0.self_attn.q_proj"]
    assert lora.target_names(base, ["layers.[0].*.q_proj", r"\d.mlp.(up|down)_proj"]) == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.up_proj",
        first,
        "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.up_proj",
    ]
    for asked in (["layers.0.self_attn.q_proj"], ["layers.[0].*.q_proj"]):
        model = lora.inject(load_model(ModelSpec(source=base.name_or_path)), LoraSpec(target_modules=asked), "base")  # type: ignore[arg-type]
        assert {n.partition(".lora_")[0] for n, p in model.named_parameters() if p.requires_grad} == {
            f"base_model.model.{first}"
        }
    with pytest.raises(ModelError, match=r"layers\.7.*written out, model\.layers\.0\."):
        lora.target_names(base, ["layers.7.self_attn.q_proj"])
    with pytest.raises(ModelError, match="neither a name nor a regular expression"):
        lora.target_names(base, ["*.q_proj"])
    with pytest.raises(ModelError, match=r"no linear layer is named q\.\*k"):
        lora.target_names(base, ["q.*k"])


@pytest.mark.parametrize(
    "spec, match",
    [
        (LoraSpec(rank=3, init_lora_weights="orthogonal"), "orthogonal: .*rank to be even"),
        (LoraSpec(rank=40, init_lora_weights="mica"), "mica: "),
        (LoraSpec(rank=40, init_lora_weights="pissa"), "pissa finds only .* directions in .* lora_rank is 40"),
        (LoraSpec(rank=40, init_lora_weights="olora"), "olora finds only"),
        (LoraSpec(rank=40, init_lora_weights="pissa_niter_4"), "pissa_niter_4 finds only"),
    ],
)
def test_a_rank_that_an_initialisation_cannot_have_is_refused(base: nn.Module, spec: LoraSpec, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        lora.inject(base, spec, "base")


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "mica"])
def test_how_an_adapter_started_is_not_written(base: nn.Module, tmp_path: Path, init: str) -> None:
    model = lora.inject(base, LoraSpec(rank=4, init_lora_weights=init), "base")
    lora.save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    assert model.peft_config["default"].init_lora_weights == init


def test_only_the_adapter_trains_and_in_the_asked_dtype(base: nn.Module) -> None:
    for name, dtype in lora.ADAPTER_DTYPES.items():
        model = lora.inject(load_model(ModelSpec(source=base.name_or_path)), LoraSpec(dtype=name), "base")  # type: ignore[arg-type]
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * 7 * 2 and all("lora_" in n and p.dtype == dtype for n, p in trained.items())


def test_a_saved_adapter_loads_in_peft_and_gives_the_same_logits(base: nn.Module, folder: Path, tmp_path: Path) -> None:
    model = lora.inject(base, LoraSpec(rank=4, use_rslora=True), str(folder)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    lora.save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, theirs(ids).logits)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert sorted(config["target_modules"]) == ALL


@pytest.mark.parametrize("mode", ["merge", "trainable"])
def test_an_adapter_can_start_on_top_of_another(base: nn.Module, folder: Path, tmp_path: Path, mode: str) -> None:
    first = lora.inject(base, LoraSpec(rank=4), str(folder)).eval()
    for name, parameter in first.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    lora.save_adapter(first, tmp_path / "first")
    spec = LoraSpec(rank=4, adapter_path=str(tmp_path / "first"), adapter_init_mode=mode)  # type: ignore[arg-type]
    second = lora.inject(load_model(ModelSpec(source=str(folder))), spec, str(folder)).eval()
    ids = torch.arange(10)[None]
    torch.testing.assert_close(first(ids).logits, second(ids).logits, atol=1e-4, rtol=1e-4)
    assert any(p.requires_grad for p in second.parameters())
    zero = [bool((p == 0).all()) for n, p in second.named_parameters() if "lora_B" in n]
    assert all(zero) if mode == "merge" else not any(zero)


def test_an_adapter_of_another_architecture_is_refused(base: nn.Module, tmp_path: Path) -> None:
    other = load_model(ModelSpec(source=str(save_tiny_model(tmp_path / "other", hidden_size=16))))
    lora.save_adapter(lora.inject(other, LoraSpec(rank=4), "other"), tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit"):
        lora.load_adapter(base, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        lora.load_adapter(base, tmp_path)


def test_an_adapter_trained_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    for name, words in (("mine", ["a", "b"]), ("same", ["a", "b"]), ("other", ["b", "a"])):
        save_word_tokenizer(tmp_path / name, words)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mine")
    lora.check_tokenizer(tmp_path / "same", tokenizer)
    lora.check_tokenizer(tmp_path, tokenizer)  # a folder without a tokenizer says nothing
    with pytest.raises(ModelError, match="another tokenizer"):
        lora.check_tokenizer(tmp_path / "other", tokenizer)


def test_what_vllm_cannot_serve_is_said() -> None:
    assert lora.vllm_limits(LoraSpec()) == []
    assert len(lora.vllm_limits(LoraSpec(use_dora=True, modules_to_save=["embed_tokens"]))) == 2
