"""A run that is stopped, killed, damaged or short of disk, and what continues from it."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from surogate.batches import StepBatch
from surogate.callbacks import MetricsWriter, StepCheckpoints
from surogate.errors import CheckpointError
from surogate.run_folder import damage

EPOCH_LENGTHS = (3, 2, 4, 3, 3)
"""Steps of each epoch; they differ, as those of packed and shuffled data do."""


pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13


class TinyLoader:
    """Loader without a length, driven by its ledger as the real one is: it goes on to the end of an epoch."""

    def __init__(self, data: TinyData) -> None:
        self.data = data

    def __iter__(self) -> Any:
        epoch, position = self.data.ledger["epoch"], self.data.ledger["position"]
        if position == EPOCH_LENGTHS[epoch % len(EPOCH_LENGTHS)]:
            epoch, position = epoch + 1, 0
        for k in range(position, EPOCH_LENGTHS[epoch % len(EPOCH_LENGTHS)]):
            ledger = {"epoch": epoch, "position": k + 1}
            yield StepBatch(micro_batches=(), ledger=ledger, packing_efficiency=0.75, row_ids=((epoch, k),))


class TinyData(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = {"epoch": 0, "position": 0}

    def train_dataloader(self) -> Any:
        return TinyLoader(self)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([1, 2], batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:
            self.ledger = batch.ledger
        return batch

    def state_dict(self) -> dict[str, Any]:
        return dict(self.ledger)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ledger = dict(state_dict)


class TinyModule(pl.LightningModule):
    """Its weights depend on every row, on dropout and on the schedule; so do its metrics."""

    def __init__(self, num_weights: int = 64) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.full((num_weights,), 0.5))
        self.rows: list[tuple[int, int]] = []
        self.step_metrics: dict[str, Any] = {}

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        ((epoch, k),) = batch.row_ids
        self.rows.append((epoch, k))
        assert epoch == self.trainer.current_epoch
        torch.manual_seed(self.global_step)
        target = 0.1 * epoch - 0.03 * k
        loss = (nn.functional.dropout(self.weight, 0.5) - target).square().mean()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()
        scalars = {"loss_tokens": 10.0 + k, "tokens": 40.0, "accuracy": 0.5, "grad_norm": 1.0, "skipped": 0.0}
        self.step_metrics = {name: torch.tensor(value) for name, value in scalars.items()}
        self.step_metrics |= {"loss": loss.detach(), "learning_rate": schedule.get_last_lr()[0]}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.weight.square().mean(), logger=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))]


def run(
    folder: Path, validates: bool = False, module: TinyModule | None = None, seed: int = 7, **options: Any
) -> TinyModule:
    """Do what the command line does: continue where the folder says so, up to a goal."""
    goal = {key: options.pop(key) for key in ("max_steps", "max_epochs", "val_check_interval") if key in options}
    if goal.get("max_steps", -1) > 0:
        goal.setdefault("max_epochs", -1)
    machine = {key: options.pop(key) for key in ("devices", "strategy") if key in options}
    if "val_check_interval" in goal:
        goal["check_val_every_n_epoch"] = None
    pl.seed_everything(seed, verbose=False)
    checkpoints = StepCheckpoints(str(folder), **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validates else 0,
        callbacks=[MetricsWriter(str(folder)), checkpoints],
        **{"devices": 1, **machine, **goal},
    )
    module = module or TinyModule()
    trainer.fit(module, datamodule=TinyData(), ckpt_path=checkpoints.resume_path(), weights_only=True)
    return module


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def records(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


class StopAfter(pl.Callback):
    """Stand-in for a crash between two steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise ConnectionError("crash")


def crash_after(folder: Path, step: int, **options: Any) -> None:
    module = TinyModule()
    module.configure_callbacks = lambda: [StopAfter(step)]  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        run(folder, module=module, **options)


@pytest.mark.parametrize("validation", [{}, {"validates": True}, {"validates": True, "val_check_interval": 3}])
@pytest.mark.parametrize("goal", [{"max_epochs": 4}, {"max_steps": 11}, {"max_steps": 11, "max_epochs": 4}])
def test_a_run_continued_from_any_step_takes_the_same_steps_bit_for_bit(
    tmp_path: Path, goal: dict[str, int], validation: dict[str, Any]
) -> None:
    whole = run(tmp_path / "whole", every_n_steps=1, keep_last=99, **goal, **validation)
    for step in range(1, len(whole.rows)):
        folder = tmp_path / f"continued_{step}"
        start = tmp_path / "whole" / "checkpoints" / f"step_{step}"
        continued = run(folder, resume=str(start), **goal, **validation)
        assert continued.rows == whole.rows[step:], f"from step {step}"
        assert torch.equal(continued.weight, whole.weight), f"from step {step}"
        for name in ("train/loss", "val/loss"):
            expected = [(at, value) for at, value in records(tmp_path / "whole", name) if at > step]
            assert records(folder, name) == expected, f"{name} from step {step}"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_steps": 4}, {"max_steps": 8}),
        ({"max_steps": 5}, {"max_steps": 8}),
        ({"max_epochs": 2}, {"max_epochs": 3}),
    ],
)
def test_a_finished_run_with_a_raised_goal_equals_one_that_never_stopped(
    tmp_path: Path, first: dict[str, int], then: dict[str, int]
) -> None:
    run(tmp_path / "twice", every_n_steps=0, **first)
    continued = run(tmp_path / "twice", every_n_steps=0, **then)
    whole = run(tmp_path / "whole", every_n_steps=0, **then)
    assert torch.equal(continued.weight, whole.weight)
    assert records(tmp_path / "twice") == records(tmp_path / "whole")


def test_a_run_is_finished_for_its_goal_and_for_lower_ones_only(tmp_path: Path) -> None:
    run(tmp_path, every_n_steps=2, max_epochs=2)
    checkpoints = StepCheckpoints(str(tmp_path))
    assert checkpoints.finished()
    assert checkpoints.finished(max_epochs=2) and checkpoints.finished(max_epochs=1)
    assert not checkpoints.finished(max_epochs=3)
    assert checkpoints.finished(max_steps=5) and not checkpoints.finished(max_steps=6)


def test_a_run_stopped_in_the_middle_of_an_epoch_has_not_finished_that_epoch(tmp_path: Path) -> None:
    run(tmp_path, max_steps=4)
    assert not StepCheckpoints(str(tmp_path)).finished(max_epochs=2)


def test_a_run_killed_after_its_last_step_is_finished_by_the_next_start(tmp_path: Path) -> None:
    for goal in ({"max_epochs": 2}, {"max_steps": 6}):
        run(tmp_path, every_n_steps=2, **goal)
        (tmp_path / "finished.json").unlink()
        assert run(tmp_path, every_n_steps=2, **goal).rows == []
        assert StepCheckpoints(str(tmp_path)).finished(**goal)


def test_a_crashed_run_is_not_finished_and_its_metrics_have_no_step_twice(tmp_path: Path) -> None:
    crash_after(tmp_path, 8, every_n_steps=3, max_epochs=4)
    assert not StepCheckpoints(str(tmp_path)).finished()
    assert [step for step, _ in records(tmp_path)] == list(range(1, 9))
    run(tmp_path, every_n_steps=3, max_epochs=4)
    assert [step for step, _ in records(tmp_path)] == list(range(1, 13))
    whole = tmp_path / "whole"
    run(whole, every_n_steps=3, max_epochs=4)
    assert records(tmp_path) == records(whole)


def test_the_newest_checkpoints_stay_and_latest_points_to_the_last(tmp_path: Path) -> None:
    run(tmp_path, every_n_steps=2, keep_last=2, max_steps=7)
    assert steps_in(tmp_path) == ["latest", "step_6", "step_7"]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "step_7"


def test_a_checkpoint_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    state = torch.load(tmp_path / "checkpoints" / "step_2" / "trainer.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "TinyData"} <= state.keys()
    assert isinstance(state["state_dict"]["weight"], Tensor)
    assert "hyper_parameters" not in state


def test_a_pickle_in_place_of_a_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "was_run",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="tensors and plain values"):
        run(tmp_path / "run", resume=str(tmp_path / "evil.ckpt"), max_steps=2)
    assert not (tmp_path / "was_run").exists()


def damaged_run(folder: Path) -> Path:
    """A run of 8 steps whose newest checkpoint has lost its second half."""
    crash_after(folder, 8, every_n_steps=3, max_epochs=4)
    state = folder / "checkpoints" / "step_6" / "trainer.ckpt"
    os.truncate(state, state.stat().st_size // 2)
    return state


def test_after_a_truncated_checkpoint_the_one_before_it_is_used_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged_run(tmp_path)
    module = run(tmp_path, every_n_steps=3, max_epochs=4)
    assert module.rows[0] == (1, 0)  # the fourth step
    assert "step_6 is damaged (trainer.ckpt has" in caplog.text
    assert StepCheckpoints(str(tmp_path)).resume_path() == str(tmp_path / "checkpoints" / "step_12" / "trainer.ckpt")
    assert records(tmp_path) == records(_whole(tmp_path))


def _whole(folder: Path) -> Path:
    run(folder / "whole", every_n_steps=3, max_epochs=4)
    return folder / "whole"


def test_a_truncated_checkpoint_that_was_named_is_refused(tmp_path: Path) -> None:
    state = damaged_run(tmp_path)
    for named in (state, state.parent):
        with pytest.raises(CheckpointError, match=r"is damaged: trainer.ckpt has"):
            StepCheckpoints(str(tmp_path), resume=str(named)).resume_path()


_save = torch.save


def save_until_the_disk_is_full(checkpoint: dict[str, Any], file: Any) -> None:
    """Stand-in for torch.save on a disk that is full from step 4 on."""
    if checkpoint["global_step"] >= 4:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _save(checkpoint, file)


def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_the_disk_is_full)
        with pytest.raises(
            CheckpointError, match=r"step 4 could .*No space left.*MiB are needed.*MiB are free.*step 2"
        ):
            run(tmp_path, every_n_steps=2, max_steps=6)
    assert steps_in(tmp_path) == ["latest", "step_2"]
    assert run(tmp_path, every_n_steps=2, max_steps=6).rows[0] == (0, 2)


def test_a_write_cut_off_by_the_system_is_reported_as_the_system_says_it(tmp_path: Path) -> None:
    code = f"""
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run(Path({str(tmp_path)!r}), module=TinyModule(100_000), max_steps=2)
"""
    done = in_a_new_process(code)
    assert "CheckpointError: The checkpoint of step 2 could not be written" in done.stderr
    assert "File too large" in done.stderr
    assert not (tmp_path / "checkpoints" / "step_2.tmp").exists()


def kill_again_and_again(folder: Path, num_kills: int) -> None:
    """Start the same run over and over and kill it around a save; print the newest whole step after each kill."""
    randomness = random.Random(0)
    (folder / "checkpoints").mkdir()
    for _ in range(num_kills):
        before = steps_in(folder)
        if (child := os.fork()) == 0:
            run(folder, module=TinyModule(300_000), every_n_steps=1, keep_last=2, max_steps=99)
            os._exit(0)
        deadline = time.monotonic() + 30
        while steps_in(folder) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(randomness.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = StepCheckpoints(str(folder)).run_folder.latest_valid_checkpoint()
        print("step", newest.name.removeprefix("step_") if newest else 0, steps_in(folder), flush=True)


@pytest.mark.slow
def test_a_run_killed_around_saves_never_loses_a_whole_checkpoint_and_stays_exact(tmp_path: Path) -> None:
    output = in_a_new_process(f"kill_again_and_again(Path({str(tmp_path)!r}), 12)").stdout
    survived = [int(line.split()[1]) for line in output.splitlines() if line.startswith("step ")]
    assert len(survived) == 12
    assert survived == sorted(survived), "a whole checkpoint was lost"
    assert len(set(survived)) > 3, "the kills came too early to show anything"
    goal = survived[-1] + 2
    continued = run(tmp_path, module=TinyModule(300_000), every_n_steps=1, keep_last=2, max_steps=goal)
    whole = run(tmp_path / "whole", module=TinyModule(300_000), every_n_steps=0, max_steps=goal)
    assert torch.equal(continued.weight, whole.weight)
    assert records(tmp_path) == records(tmp_path / "whole")
    assert steps_in(tmp_path) == sorted(["latest", f"step_{goal - 1}", f"step_{goal}"])


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_checkpoints import *"
    command = [sys.executable, "-c", f"{path}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


IDENTITY = {"model": "a", "datasets": [{"path": "x.jsonl"}], "train_seed": 1}


def test_an_output_dir_of_a_different_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path, identity=IDENTITY, max_steps=1)
    other = {**IDENTITY, "datasets": [{"path": "y.jsonl"}], "train_seed": 2}
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, identity=other, max_steps=2)
    assert "datasets.0.path: 'x.jsonl' there, 'y.jsonl' here" in str(caught.value)
    assert "train_seed: 1 there, 2 here" in str(caught.value)
    assert "model" not in str(caught.value)
    with pytest.raises(CheckpointError, match="different run"):
        start = str(tmp_path / "checkpoints" / "step_1")
        run(tmp_path / "elsewhere", identity=other, resume=start, max_steps=2)


def test_a_checkpoint_dir_shared_by_two_runs_does_not_turn_one_into_the_other(tmp_path: Path) -> None:
    disk = str(tmp_path / "disk")
    run(tmp_path / "a", checkpoint_dir=disk, max_steps=2)
    for resume in (True, False, f"{disk}/checkpoints/step_2"):
        with pytest.raises(CheckpointError, match=r"belongs to the run in .*/a"):
            run(tmp_path / "b", checkpoint_dir=disk, resume=resume, max_steps=4)
    assert steps_in(tmp_path / "disk") == ["latest", "step_2"]
    assert run(tmp_path / "a", checkpoint_dir=disk, max_steps=3).rows == [(0, 2)]


def test_a_lost_output_dir_does_not_make_its_checkpoints_those_of_a_different_run(tmp_path: Path) -> None:
    disk = str(tmp_path / "disk")
    run(tmp_path / "run", checkpoint_dir=disk, identity=IDENTITY, max_steps=2)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"checkpoints of a different run:\n  train_seed: 1 there, 2 here"):
        run(tmp_path / "run", checkpoint_dir=disk, identity={**IDENTITY, "train_seed": 2}, max_steps=3)
    assert run(tmp_path / "run", checkpoint_dir=disk, identity=IDENTITY, max_steps=3).rows == [(0, 2)]


def test_without_resume_a_run_starts_afresh_and_the_old_one_is_kept_under_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, resume=False, every_n_steps=2, identity=IDENTITY, max_steps=4)
    again = {"resume": False, "identity": {**IDENTITY, "train_seed": 2}}
    assert not StepCheckpoints(str(tmp_path), **again).finished(max_steps=3)
    with caplog.at_level("INFO"):
        assert len(run(tmp_path, **again, max_steps=3).rows) == 3
    assert "Starting afresh" in caplog.text
    assert steps_in(tmp_path) == ["latest", "step_3"]
    assert [step for step, _ in records(tmp_path)] == [1, 2, 3]
    (old,) = tmp_path.glob("checkpoints.before-*")
    assert sorted(path.name for path in old.iterdir()) == ["latest", "step_2", "step_4"]
    assert damage(old / "step_4") is None
    assert len(list(tmp_path.glob("metrics.jsonl.before-*"))) == len(list(tmp_path.glob("run.json.before-*"))) == 1


def test_a_named_file_is_not_moved_away_from_a_run_that_starts_from_it(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    state = tmp_path / "checkpoints" / "step_2" / "trainer.ckpt"
    with pytest.MonkeyPatch.context() as patch:  # as `fit --ckpt_path` does
        patch.setattr(StepCheckpoints, "resume_path", lambda self: str(state))
        assert run(tmp_path, resume=False, max_steps=3).rows == [(0, 2)]
    assert steps_in(tmp_path) == ["latest", "step_2", "step_3"]


def test_a_run_that_died_before_its_first_checkpoint_does_not_block_its_folder(tmp_path: Path) -> None:
    crash_after(tmp_path, 2, every_n_steps=0, identity=IDENTITY, max_steps=4)
    assert len(run(tmp_path, identity={**IDENTITY, "train_seed": 2}, max_steps=3).rows) == 3
    assert '"train_seed": 2' in (tmp_path / "run.json").read_text()


def test_without_resume_an_empty_checkpoints_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert len(run(tmp_path, resume=False, max_steps=2).rows) == 2


def test_a_checkpoint_can_be_named_by_file_step_folder_link_or_run(tmp_path: Path) -> None:
    run(tmp_path / "a", every_n_steps=2, max_steps=4)
    folder = tmp_path / "a" / "checkpoints"
    names = {
        folder / "step_2" / "trainer.ckpt": 2,
        folder / "step_2": 2,
        folder / "latest": 4,
        folder: 4,
        tmp_path / "a": 4,
    }
    for name, step in names.items():
        found = StepCheckpoints(str(tmp_path / "b"), resume=str(name)).resume_path()
        assert found is not None and Path(found).parent.name == f"step_{step}", name
    with pytest.raises(CheckpointError, match=r"no whole checkpoint at .*step_3.* has the steps 2, 4"):
        StepCheckpoints(str(tmp_path / "b"), resume=str(folder / "step_3")).resume_path()


def test_going_back_behind_a_runs_own_newer_checkpoints_is_refused(tmp_path: Path) -> None:
    run(tmp_path, every_n_steps=2, max_steps=4)
    with pytest.raises(CheckpointError, match=r"already has the newer .*step_4"):
        StepCheckpoints(str(tmp_path), resume=str(tmp_path / "checkpoints" / "step_2")).resume_path()


def test_checkpoints_can_lie_on_another_disk_than_the_run(tmp_path: Path) -> None:
    run(tmp_path / "run", checkpoint_dir=str(tmp_path / "disk"), max_steps=2)
    assert steps_in(tmp_path / "disk") == ["latest", "step_2"]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_on_two_ranks_a_full_disk_ends_both_and_the_run_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"  # a file, because Lightning starts the second rank with the same command line
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import *
torch.save = save_until_the_disk_is_full
run(Path({str(tmp_path / "run")!r}), every_n_steps=2, max_steps=6, devices=2, strategy="ddp")
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert done.stderr.count("CheckpointError: The checkpoint of step 4 could not be written") == 2
    assert steps_in(tmp_path / "run") == ["latest", "step_2"]
    assert run(tmp_path / "run", every_n_steps=2, max_steps=6).rows[0] == (0, 2)
