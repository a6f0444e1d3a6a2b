"""Signals in the moments between, within and after steps; whole runs that are stopped are in tests/integration."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from surogate.callbacks import FinalValidation, Preemption, StepCheckpoints, preemption
from surogate.errors import Stopped
from surogate.run_folder import RunFolder
from surogate.stop_signals import SIGNALS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # lightning 2.6.6 under torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),  # and need not be here
]


class Model(pl.LightningModule):
    """Records where it was, and lets a signal arrive at a place.

    Args:
        place: (hook, step) -> signal.
    """

    def __init__(self, place: dict[tuple[str, int], signal.Signals] | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.place = place or {}
        self.validated: list[int] = []

    def _reach(self, hook: str) -> None:
        if number := self.place.pop((hook, self.global_step), None):
            os.kill(os.getpid(), number)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._reach("training_step")
        return self.linear(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._reach("validation_step")
        self.validated.append(self.global_step)

    def on_train_start(self) -> None:
        self._reach("on_train_start")

    def on_fit_end(self) -> None:
        self._reach("on_fit_end")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ValidationRecord(pl.Callback):
    """Writes what FinalValidation looks for."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = RunFolder(trainer.default_root_dir).metrics_jsonl
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, "val/loss": 0.0}) + "\n")


def fit(folder: Path, model: Model, max_steps: int = 6) -> None:
    """Train with a validation of three batches every second step, and continue what is in the folder."""
    checkpoints, stopping = StepCheckpoints(str(folder), every_n_steps=0), Preemption()
    trainer = pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ValidationRecord(), FinalValidation(), checkpoints, stopping],
    )
    loaders = DataLoader(torch.ones(100, 1)), DataLoader(torch.ones(3, 1))
    with stopping.listening():
        trainer.fit(model, *loaders, ckpt_path=checkpoints.resume_path(), weights_only=True)


def steps(folder: Path) -> list[int]:
    return RunFolder(folder).checkpoints.steps()


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job whose scontrol notes what it is asked."""
    calls = tmp_path / "scontrol.calls"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_within_a_step_stops_after_it(tmp_path: Path, number):
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, Model({("training_step", 2): number}))
    assert stopped.value.exit_code == 128 + number and steps(tmp_path) == [3]
    assert not RunFolder(tmp_path).finished_json.exists()


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_validation_that_was_cut_short_is_made_up_for(tmp_path: Path, at: int):
    stopped, continued = Model({("validation_step", at): signal.SIGTERM}), Model()
    with pytest.raises(Stopped):
        fit(tmp_path, stopped)
    assert steps(tmp_path) == [at] and stopped.validated.count(at) == 1
    fit(tmp_path, continued)
    assert continued.validated == [step for step in (2, 4, 6) if step >= at for _ in range(3)]
    assert steps(tmp_path)[0] == 6


def test_what_was_validated_is_not_validated_again(tmp_path: Path):
    with pytest.raises(Stopped):
        fit(tmp_path, Model({("training_step", 2): signal.SIGTERM}))
    assert steps(tmp_path) == [3]
    with pytest.raises(Stopped):
        fit(tmp_path, second := Model({("training_step", 4): signal.SIGTERM}))
    assert second.validated == [4, 4, 4]


def test_where_there_is_nothing_to_lose_a_signal_ends_the_run_at_once(tmp_path: Path):
    with pytest.raises(Stopped):
        fit(tmp_path, Model({("on_fit_end", 6): signal.SIGTERM}))
    assert steps(tmp_path) == [6] and not RunFolder(tmp_path).finished_json.exists()
    fit(tmp_path, Model())
    assert RunFolder(tmp_path).finished_json.exists()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGUSR1, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_while_data_are_read_a_signal_ends_the_run_at_once(number, error):
    with pytest.raises(error), Preemption().listening():
        signal.raise_signal(number)
        time.sleep(10)


def test_a_second_interruption_stops_at_once(tmp_path: Path):
    class Impatient(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 1:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().training_step(batch, batch_idx)

    with pytest.raises(SystemExit):  # as Lightning ends on Ctrl-C
        fit(tmp_path, Impatient())
    assert steps(tmp_path) == []


def test_handlers_are_put_back(tmp_path: Path):
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Stopped):
        fit(tmp_path, Model({("training_step", 1): signal.SIGTERM}))
    fit(tmp_path, Model())
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(
    ("hook", "at", "number", "calls"),
    [
        ("training_step", 1, signal.SIGUSR1, ["requeue 77"]),
        ("on_fit_end", 6, signal.SIGUSR1, ["requeue 77"]),
        ("training_step", 1, signal.SIGTERM, []),
        ("training_step", 1, signal.SIGINT, []),
    ],
)
def test_only_sigusr1_requeues_a_job_and_only_once(tmp_path: Path, scontrol: Path, hook, at, number, calls):
    with pytest.raises(Stopped):
        fit(tmp_path / "run", Model({(hook, at): number}))
    assert (scontrol.read_text().splitlines() if scontrol.exists() else []) == calls


def test_a_job_that_is_restarted_again_and_again_without_a_step_is_not_requeued(
    tmp_path: Path, scontrol: Path, monkeypatch, caplog
):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(Stopped) as stopped, Preemption().listening():
        signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.signum == signal.SIGTERM  # for SIGUSR1 the batch script would requeue it
    assert not scontrol.exists() and "Submit it with a longer time limit" in caplog.text
    with pytest.raises(Stopped):
        fit(tmp_path / "run", Model({("training_step", 1): signal.SIGUSR1}))
    assert scontrol.read_text() == "requeue 77\n"


def test_a_job_that_asked_not_to_be_requeued_is_not(tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUROGATE_REQUEUE", "0")
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path / "run", Model({("training_step", 1): signal.SIGUSR1}))
    assert stopped.value.signum == signal.SIGTERM and not scontrol.exists()


@pytest.mark.parametrize(
    "environ", [{"SLURM_PROCID": "1"}, {"SLURM_PROCID": "0", "RANK": "1"}], ids=["srun", "torchrun in srun"]
)
def test_other_processes_of_a_job_do_not_requeue_it(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped):
        fit(tmp_path / "run", Model({("training_step", 1): signal.SIGUSR1}))
    assert not scontrol.exists()


def test_the_approaching_end_of_a_job_is_a_reason_to_stop(tmp_path: Path, scontrol: Path, monkeypatch):
    end = time.time() + preemption.WALL_TIME_MARGIN_SECONDS
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(end) + 3600))
    fit(tmp_path / "in time", Model())
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(end) - 1))
    with pytest.raises(Stopped):
        fit(tmp_path / "late", Model())
    assert steps(tmp_path / "late") == [1] and scontrol.read_text() == "requeue 77\n"
    for seconds in ("0", "60"):
        monkeypatch.setenv("SUROGATE_SIGNAL_SECONDS", seconds)
        fit(tmp_path / seconds, Model())


def test_a_job_that_cannot_be_requeued_says_so(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Stopped):
        fit(tmp_path / "run", Model({("training_step", 1): signal.SIGUSR1}))
    assert "Job 78 could not be requeued" in caplog.text and "Submit it again to continue." in caplog.text
