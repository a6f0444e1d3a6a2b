"""Families of models, by what transformers offers: each packs, trains, saves, loads and resumes, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.families import REFUSED, TRAINED, save_family
from support.tiny import Recorder, fit, quiet_trainer, random_rows, step_batch
from support.word_tokenizer import save_word_tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.batches import TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import ModelError
from surogate.modes import SftModule

LOSS_TOLERANCE = 1e-4
"""Absolute, float32."""
GRADIENT_TOLERANCE = 1e-5
"""Norm of the difference of all gradients over their norm."""
LOGIT_TOLERANCE = 1e-4

ROWS = random_rows(4, seed=4, low=12, high=20)
BATCHES = [step_batch([[ROWS[:2]], [ROWS[2:3], ROWS[3:]]]), step_batch([[random_rows(3, seed=5)]])]


@pytest.fixture(scope="module", params=TRAINED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=[True, False], ids=["adapter", "all weights"])
def lora(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def sft_module(folder: Path, lora: bool) -> SftModule:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=0.01, schedule="constant", max_grad_norm=0.0)
    return SftModule(ModelSpec(source=str(folder)), LoraSpec(enabled=lora, rank=4, dropout=0.0), optim)


def step(folder: Path, lora: bool, packs: list[list[TokenRow]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a first step."""
    module = sft_module(folder, lora)
    loss = fit(module, [step_batch([packs])])[0]["loss"]
    return loss, {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}


def own_loss(folder: Path, rows: list[TokenRow]) -> float:
    """The mean over supervised tokens of what transformers calls the loss of each document."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    counts = [int(row.loss_mask[1:].sum()) for row in rows]
    losses = []
    for row in rows:
        ids = torch.tensor(row.input_ids, dtype=torch.int64)[None]
        labels = torch.where(torch.tensor(row.loss_mask)[None], ids, -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def test_packed_documents_give_the_loss_and_gradients_of_documents_alone(folder: Path, lora: bool) -> None:
    packed, gradients = step(folder, lora, [ROWS])
    alone, expected = step(folder, lora, [[row] for row in ROWS])
    assert packed == pytest.approx(alone, abs=LOSS_TOLERANCE)
    assert packed == pytest.approx(own_loss(folder, ROWS), abs=LOSS_TOLERANCE)
    assert gradients.keys() == expected.keys()
    error = torch.nn.utils.get_total_norm([gradients[name] - value for name, value in expected.items()])
    assert error <= GRADIENT_TOLERANCE * torch.nn.utils.get_total_norm(expected.values())


class SaveAfterTwo(Recorder):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, *args)
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def train(module: SftModule, recorder: Recorder, checkpoint: Path | None = None) -> list[float]:
    """Two epochs of two steps, or what a checkpoint leaves of them."""
    loader = DataLoader(BATCHES, batch_size=None)
    trainer = quiet_trainer(recorder, max_epochs=2)
    trainer.fit(module, loader, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    return [metrics["loss"] for metrics in recorder.steps]


def logits(model: Any) -> Tensor:
    model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.arange(2, 26)[None]).logits.float()


def test_a_trained_model_resumes_exactly_and_loads_in_transformers(folder: Path, lora: bool, tmp_path: Path) -> None:
    whole, resumed = sft_module(folder, lora), sft_module(folder, lora)
    losses = train(whole, SaveAfterTwo(tmp_path / "two.ckpt"))
    assert len(losses) == 4 and losses[2] < losses[0]
    assert train(resumed, Recorder(), tmp_path / "two.ckpt") == losses[2:]
    trained = dict(whole.model.named_parameters())
    assert all(torch.equal(trained[name], parameter) for name, parameter in resumed.model.named_parameters())

    if lora:
        whole.save_adapter(tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    else:
        whole.save_model(tmp_path / "model", AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path / "words", [])))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(theirs), logits(whole.model), atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_would_train_on_a_wrong_loss_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path, name)
    with pytest.raises(ModelError, match=r"cannot be kept apart|shapes its logits") as problem:
        fit(sft_module(folder, lora=False), BATCHES)
    assert str(problem.value).count("\n") == 0
