"""What the shared module does around the step: schedules after a resume, checkpoints that hold only what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.tiny import Recorder, fit, quiet_trainer, random_rows, save_tiny_model, step_batch
from torch.utils.data import DataLoader

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import CheckpointError, ModelError
from surogate.models.load import load_model
from surogate.models.weights import is_deferred
from surogate.modes import SftModule
from surogate.modes.model_checks import check_positions
from surogate.precision import RecipePrecision

BATCHES = [step_batch([[random_rows(3, seed)]]) for seed in range(8)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def module_of(folder: Path, rank: int = 4, **optim: Any) -> SftModule:
    spec = OptimSpec(**{"name": "adamw", "learning_rate": 0.01, **optim})
    return SftModule(ModelSpec(source=str(folder)), LoraSpec(rank=rank, dropout=0.0), spec)


class SaveAtEnd(Recorder):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.save_checkpoint(self.path)


def resume(module: SftModule, path: Path, max_steps: int) -> list[dict[str, float]]:
    recorder = Recorder()
    trainer = quiet_trainer(recorder, max_steps=max_steps, max_epochs=-1)
    trainer.fit(module, DataLoader(BATCHES[:4], batch_size=None), ckpt_path=str(path), weights_only=True)
    return recorder.steps


def test_a_resume_follows_the_present_schedule_from_its_first_step(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    fit(module_of(model_folder), BATCHES[:4], recorder=SaveAtEnd(path), max_steps=4)
    steps = resume(module_of(model_folder, learning_rate=0.02), path, max_steps=8)
    assert [step["learning_rate"] for step in steps] == pytest.approx([0.02 * (8 - s) / 8 for s in range(4, 8)])


def test_a_checkpoint_holds_the_adapter_and_not_the_base(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    fit(module_of(model_folder), BATCHES[:1], recorder=SaveAtEnd(path))
    checkpoint = torch.load(path, weights_only=True)
    assert len(checkpoint["state_dict"]) == 2 * 7 * 2
    assert all("lora_" in name for name in checkpoint["state_dict"])


def test_a_checkpoint_of_another_base_or_adapter_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    fit(module_of(model_folder), BATCHES[:1], recorder=SaveAtEnd(path))
    other = save_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="changed since"):
        resume(module_of(other), path, max_steps=2)


class DeferringPrecision(RecipePrecision):
    defers_loading = True

    def convert_module(self, module: Any) -> Any:
        self.deferred = sum(is_deferred(p) for p in module.parameters())
        return super().convert_module(module)


def test_a_precision_plugin_that_defers_gets_a_meta_model_and_the_losses_stay_the_same(model_folder: Path) -> None:
    expected = fit(module_of(model_folder), BATCHES[:2])
    plugin, recorder = DeferringPrecision(), Recorder()
    trainer = quiet_trainer(recorder, plugins=[plugin])
    trainer.fit(module_of(model_folder), DataLoader(BATCHES[:2], batch_size=None))
    assert plugin.deferred == 20
    assert [s["loss"] for s in recorder.steps] == [s["loss"] for s in expected]


def test_a_row_longer_than_the_models_positions_is_refused(model_folder: Path) -> None:
    """The tiny model knows 256 positions."""
    module = module_of(model_folder)
    module.model = load_model(module.model_spec)
    check_positions(module.model, "tiny", 256)
    with pytest.raises(ModelError, match=r"257 tokens.*256 positions"):
        check_positions(module.model, "tiny", 257)
