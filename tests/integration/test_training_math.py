"""The optimizer step against a plain transformers + PEFT + torch loop, and its invariance to how a batch is cut."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from transformers import AutoModelForCausalLM

from surogate.batches import StepBatch, TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes import SftModule

LOSS_TOLERANCE = 1e-4
"""Losses of ten steps against a plain loop, float32."""
GRADIENT_TOLERANCE = 1e-5
"""Per tensor: norm of the difference over norm of the gradient."""
INVARIANCE_TOLERANCE = 1e-5
"""Relative, loss and gradient norm of one global batch cut in different ways."""

LORA = LoraSpec(rank=4, alpha=8.0, dropout=0.0)
OPTIM = OptimSpec(name="adamw", learning_rate=5e-3, schedule="constant", weight_decay=0.0, max_grad_norm=1.0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def sft_module(folder: Path | str, recompute: bool = False, attn: str = "auto", **lora: Any) -> SftModule:
    torch.manual_seed(0)
    spec = ModelSpec(source=str(folder), recompute=recompute, attn_implementation=attn)  # type: ignore[arg-type]
    return SftModule(spec, LoraSpec(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, **lora}), OPTIM)


def plain_losses(model: Any, steps: list[list[TokenRow]]) -> list[float]:
    """Train with nothing but torch: each row alone, loss and gradient divided by the step's supervised tokens."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=OPTIM.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
    losses = []
    for rows in steps:
        optimizer.zero_grad()
        tokens = sum(int(row.loss_mask[1:].sum()) for row in rows)
        total = 0.0
        for row in rows:
            ids = torch.tensor(row.input_ids, dtype=torch.int64)[None]
            labels = torch.where(torch.tensor(row.loss_mask), ids[0], -100)
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, OPTIM.max_grad_norm)
        optimizer.step()
        losses.append(total)
    return losses


def plain_lora_like(module: SftModule, folder: Path | str, lora: LoraSpec) -> Any:
    """A PEFT model made without our code, with the adapter values of the module."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    model = get_peft_model(base, config)
    ours = {k: v for k, v in module.model.state_dict().items() if "lora_" in k}
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected and not any("lora_" in key for key in missing)
    return model


def test_ten_steps_give_the_losses_of_a_plain_loop(model_folder: Path) -> None:
    rows = random_rows(80)
    steps = [rows[i : i + 8] for i in range(0, 80, 8)]
    batches = [step_batch([[s[:3], s[3:4]], [s[4:6], s[6:8]]]) for s in steps]
    reference = sft_module(model_folder)
    fit(reference, batches[:1], max_steps=0)  # builds the model and trains nothing
    expected = plain_losses(plain_lora_like(reference, model_folder, LORA), steps)
    got = [step["loss"] for step in fit(sft_module(model_folder), batches)]
    assert got == pytest.approx(expected, abs=LOSS_TOLERANCE)
    assert got[-1] != pytest.approx(got[0], abs=10 * LOSS_TOLERANCE)  # it did train


CUTS = {
    "one micro-batch, one pack": [[8]],
    "one micro-batch, four packs": [[2, 2, 2, 2]],
    "padded: a row a pack": [[1] * 8],
    "accumulation of unequal micro-batches": [[1], [2, 3], [2]],
    "a micro-batch a row": [[1]] * 8,
}


def cut(rows: list[TokenRow], shape: list[list[int]]) -> StepBatch:
    take = iter(rows)
    return step_batch([[list(itertools.islice(take, n)) for n in packs] for packs in shape])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attn", ["auto", "sdpa"])
@pytest.mark.parametrize("shape", CUTS.values(), ids=CUTS.keys())
def test_loss_and_gradient_do_not_depend_on_how_a_global_batch_is_cut(
    model_folder: Path, shape: list[list[int]], recompute: bool, attn: str
) -> None:
    rows = random_rows(8, seed=1)
    whole = fit(sft_module(model_folder), [cut(rows, [[8]])])[0]
    got = fit(sft_module(model_folder, recompute, attn), [cut(rows, shape)])[0]
    for key in ("loss", "grad_norm"):
        assert got[key] == pytest.approx(whole[key], rel=INVARIANCE_TOLERANCE)
    assert (got["tokens"], got["loss_tokens"]) == (whole["tokens"], whole["loss_tokens"])


@pytest.mark.parametrize("kind", ["adapter", "weights", "master weights"])
def test_two_ranks_give_the_loss_and_gradient_of_one(model_folder: Path, tmp_path: Path, kind: str) -> None:
    """Ranks hold different numbers of tokens, and one of them an empty micro-batch."""
    out = tmp_path / "metrics.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).parents[1] / "support" / "two_ranks.py"
    subprocess.run([sys.executable, str(script), str(model_folder), str(out), kind], check=True, env=env, timeout=240)
    two = json.loads(out.read_text())
    one = fit(sft_module(model_folder, enabled=kind == "adapter"), [cut(random_rows(8, seed=1), [[8]])])[0]
    for key in ("loss", "grad_norm", "tokens", "loss_tokens"):
        assert two[key] == pytest.approx(one[key], rel=INVARIANCE_TOLERANCE)


def test_a_step_without_supervised_tokens_changes_nothing(model_folder: Path) -> None:
    silent = [TokenRow(row.input_ids, row.loss_mask & False) for row in random_rows(3)]
    module = sft_module(model_folder)
    metrics = fit(module, [step_batch([[silent]])])[0]
    assert metrics["loss"] == 0.0 and metrics["grad_norm"] == 0.0 and metrics["loss_tokens"] == 0


def test_dropout_of_a_step_is_the_same_whenever_it_runs(model_folder: Path) -> None:
    batches = [cut(random_rows(8, seed=s), [[4, 4]]) for s in range(3)]
    first = [s["loss"] for s in fit(sft_module(model_folder, dropout=0.3), batches)]
    torch.manual_seed(99)
    torch.rand(17)
    again = [s["loss"] for s in fit(sft_module(model_folder, dropout=0.3), batches)]
    without = [s["loss"] for s in fit(sft_module(model_folder), batches)]
    assert first == again and first != without
