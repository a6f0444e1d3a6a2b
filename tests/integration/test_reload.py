"""What a run exports gives the trainer's own logits, on the untouched base, by PEFT and by `surogate chat`'s loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from transformers import AutoModelForCausalLM

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.models import dtypes
from surogate.models.inference import FoundModel, load_for_inference
from surogate.modes import SftModule

LOGIT_TOLERANCE = 2e-4
BATCHES = [step_batch([[random_rows(4, seed)]]) for seed in range(4)]

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by random factors": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "head trained whole": {"modules_to_save": ["lm_head"]},
    "embedding trained whole": {"modules_to_save": ["embed_tokens"]},
    "some layers": {"target_modules": ["q_proj", "down_proj"]},
}


def train(folder: Path, spec: ModelSpec, lora: dict[str, Any]) -> SftModule:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=0.02)
    module = SftModule(spec, LoraSpec(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, **lora}), optim)
    losses = [step["loss"] for step in fit(module, BATCHES)]
    assert losses[-1] != losses[0]
    return module


def logits(model: Any) -> torch.Tensor:
    model.eval()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits.float()


@pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_an_exported_adapter_gives_the_trainers_logits(tmp_path: Path, lora: dict[str, Any]) -> None:
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=False)
    module = train(folder, ModelSpec(source=str(folder)), lora)
    module.save_adapter(tmp_path / "adapter")
    expected = logits(module.model)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    ours = load_for_inference(FoundModel(base=str(folder), adapters=(tmp_path / "adapter",), tokenizer=""))
    for model in (theirs, ours):
        torch.testing.assert_close(logits(model), expected, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_scaled_positions_are_trained_and_answered_with_alike(tmp_path: Path, spelling: str) -> None:
    folder = save_tiny_model(tmp_path / "model")
    scaling = {spelling: "linear", "factor": 4.0}
    module = train(folder, ModelSpec(source=str(folder), rope_scaling=scaling), {})
    module.save_adapter(tmp_path / "adapter")
    expected = logits(module.model)
    found = FoundModel(base=str(folder), adapters=(tmp_path / "adapter",), tokenizer="")
    assert not torch.allclose(logits(load_for_inference(found)), expected, atol=1e-2)
    found = FoundModel(
        base=str(folder), adapters=(tmp_path / "adapter",), tokenizer="", model_keys={"rope_scaling": scaling}
    )
    torch.testing.assert_close(logits(load_for_inference(found)), expected, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "saved"), [("bfloat16", []), ("float16", []), ("bfloat16", ["lm_head"]), ("bfloat16", ["embed_tokens"])]
)
def test_a_16_bit_base_trains_with_float32_adapters(
    tmp_path: Path, dtype: Any, saved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "has_native_bf16", lambda device: True)
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=False)
    module = train(folder, ModelSpec(source=str(folder), dtype=dtype), {"modules_to_save": saved})
    base = getattr(torch, dtype)
    for name, parameter in module.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else base), name
        assert torch.isfinite(parameter).all()


def test_whole_modules_in_float16_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "has_native_bf16", lambda device: True)
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=False)
    with pytest.raises(ModelError, match="float16"):
        train(folder, ModelSpec(source=str(folder), dtype="float16"), {"modules_to_save": ["lm_head"]})
