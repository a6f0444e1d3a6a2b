"""Full fine-tuning against a plain transformers + torch loop: losses, weights, and the folder that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from support.word_tokenizer import save_word_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from surogate.batches import TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.models import dtypes
from surogate.modes import SftModule

LOSS_TOLERANCE = 1e-4
"""Losses of ten steps against a plain loop, float32."""
BF16_LOSS_TOLERANCE = 3e-3
"""The same in bfloat16, where the two compute attention and the head's loss in other roundings."""
LOGIT_TOLERANCE = 1e-6
"""Of a saved model against the one that trained: the same weights in the same code."""

ROWS = random_rows(16)
STEPS = [ROWS[:8], ROWS[8:]] * 5
PACKED = [step_batch([[s[:3], s[3:4]], [s[4:6], s[6:8]]]) for s in STEPS]
ALONE = [step_batch([[[row]] for row in rows]) for rows in STEPS]
OPTIM = OptimSpec(name="adamw", learning_rate=5e-3, schedule="cosine", weight_decay=0.1, max_grad_norm=0.5)


def sft_module(folder: Path, optim: OptimSpec = OPTIM, **model: Any) -> SftModule:
    return SftModule(ModelSpec(source=str(folder), **model), LoraSpec(enabled=False), optim)


def plain_losses(model: Any, *, learning_rate: float = OPTIM.learning_rate, masters: bool = False) -> list[float]:
    """Train with nothing but transformers and torch, a row at a time; `masters` keeps copies in float32."""
    trained = [p for p in model.parameters() if p.requires_grad]
    updated = [nn.Parameter(p.detach().float()) for p in trained] if masters else trained
    groups = [
        {"params": [p for p in updated if p.ndim >= 2], "weight_decay": OPTIM.weight_decay},
        {"params": [p for p in updated if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, len(STEPS))
    losses = []
    for rows in STEPS:
        optimizer.zero_grad()
        losses.append(sum(backward(model, row, sum(supervised(r) for r in rows), trained, updated) for row in rows))
        nn.utils.clip_grad_norm_(updated, OPTIM.max_grad_norm)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for parameter, copy in zip(trained, updated, strict=True):
                parameter.copy_(copy)
    return losses


def supervised(row: TokenRow) -> int:
    return int(row.loss_mask[1:].sum())


def backward(model: Any, row: TokenRow, tokens: int, trained: list[Any], updated: list[Any]) -> float:
    """Add the gradients of one row to those of the weights that the optimizer updates; return its share of the loss."""
    ids = torch.tensor(row.input_ids, dtype=torch.int64)[None]
    labels = torch.where(torch.tensor(row.loss_mask)[None], ids, -100)
    loss = model(input_ids=ids, labels=labels, num_items_in_batch=tokens).loss
    loss.backward()
    for parameter, copy in zip(trained, updated, strict=True):
        if parameter is not copy:
            copy.grad = parameter.grad.float() + (0 if copy.grad is None else copy.grad)
            parameter.grad = None
    return float(loss.detach())


def logits(model: Any) -> Tensor:
    model.eval()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


def check_saved(module: SftModule, folder: Path) -> None:
    """Save, load with transformers alone, and compare weights and logits with the trainer's."""
    tokenizer = AutoTokenizer.from_pretrained(save_word_tokenizer(folder / "tokenizer", []))
    module.save_model(folder / "saved", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "saved", dtype="auto")
    trained = module.model.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[name]), name
    torch.testing.assert_close(logits(loaded), logits(module.model), atol=LOGIT_TOLERANCE, rtol=0.0)


CASES = {
    "a tied head": (True, []),
    "an untied head": (False, []),
    "frozen embeddings": (False, ["embed_tokens"]),
    "frozen embeddings that are the head": (True, ["embed_tokens"]),
    "a frozen head": (False, ["lm_head"]),
    "a frozen layer": (False, ["layers.0"]),
}


@pytest.mark.parametrize(("tied", "frozen"), CASES.values(), ids=CASES.keys())
def test_ten_steps_give_the_losses_of_a_plain_loop_and_the_saved_folder_the_trainers_logits(
    tmp_path: Path, tied: bool, frozen: list[str]
) -> None:
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    places = {"embed_tokens": plain.model.embed_tokens, "lm_head": plain.lm_head, "layers.0": plain.model.layers[0]}
    for name in frozen:
        places[name].requires_grad_(False)
    start = {name: parameter.clone() for name, parameter in plain.named_parameters()}
    expected = plain_losses(plain)
    module = sft_module(folder, freeze_modules=frozen)
    assert [step["loss"] for step in fit(module, PACKED)] == pytest.approx(expected, abs=LOSS_TOLERANCE)
    assert expected[8] < expected[0] - 1000 * LOSS_TOLERANCE
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter, start[name]) == any(part in name for part in frozen), name
    check_saved(module, tmp_path)


def test_float32_masters_keep_the_small_steps_that_bfloat16_weights_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "has_native_bf16", lambda device: True)
    folder = save_tiny_model(tmp_path / "model")

    def plain(masters: bool) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return plain_losses(model, learning_rate=2e-4, masters=masters)

    expected, without = plain(masters=True), plain(masters=False)
    optim = OptimSpec(**{**vars(OPTIM), "learning_rate": 2e-4, "master_dtype": "float32"})
    module = sft_module(folder, optim, dtype="bfloat16")
    assert [step["loss"] for step in fit(module, ALONE)] == pytest.approx(expected, abs=BF16_LOSS_TOLERANCE)
    assert abs(without[-1] - expected[-1]) > 10 * BF16_LOSS_TOLERANCE
    assert {parameter.dtype for parameter in module.model.parameters()} == {torch.bfloat16}
    check_saved(module, tmp_path)
