"""StepCheckpoints: when a checkpoint is saved, which one a run continues from, and whether it is finished.

How a checkpoint becomes a whole folder on disk lives in run_folder.py; what a module or data module puts into it is its
own `state_dict`.

The one idea: **every checkpoint is taken right after a step**, the last one too. From there Lightning restarts exactly,
also at the end of an epoch, provided that the train loader keeps its own position (data/ledger.py). Once the loop has
ended Lightning counts an epoch that max_steps cut short as a complete one, and a run whose goal is raised later would
go on from a wrong place.
"""

from __future__ import annotations

import pickle
import re
import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from surogate.callbacks.environment import installed_version
from surogate.disk_space import check_room, not_written
from surogate.errors import CheckpointError
from surogate.modes.first_rank import on_first_rank
from surogate.modes.sharding import is_sharded
from surogate.run_folder import MANIFEST, TRAINER_STATE, CheckpointStore, RunFolder, check_same_run, damage, read_json


class StepCheckpoints(pl.Callback):
    """Save every n steps and at the end; keep the newest few; continue from the newest whole one.

    Args:
        folder: output_dir of the run.
        every_n_steps: optimizer steps between checkpoints; 0 = only at the end.
        keep_last: how many stay.
        resume: true = continue from the newest whole checkpoint; a path = from that one (a step folder, a folder of
            them, a run's folder or a .ckpt file); false = start afresh, and move aside what is there.
        checkpoint_dir: folder that holds `checkpoints/`, where it is not `folder`.
        identity: what makes this run itself (model, data, seed...). Another run's folder or checkpoint is refused.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 50,
        keep_last: int = 5,
        resume: bool | str = True,
        checkpoint_dir: str | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.run_folder = RunFolder(folder, checkpoint_dir)
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.resume = resume
        self.identity = identity or {}
        self._saved_step = 0
        self._starts_afresh = False
        self._lock = ExitStack()

    # ---- before the run

    def finished(self, max_steps: int = -1, max_epochs: int | None = None) -> bool:
        """Tell whether the run in the folder already reached this goal (see RunFolder.is_finished)."""
        return self.resume is not False and self.run_folder.is_finished(max_steps, max_epochs)

    def resume_path(self) -> str | None:
        """Return the file to continue from, for `trainer.fit(ckpt_path=...)`; None = start afresh.

        Raises:
            CheckpointError: the folder or the checkpoint is another run's; the named checkpoint is missing, damaged or
                would leave newer ones behind; or no checkpoint is whole.
        """
        self.run_folder.check_own_checkpoints()
        store = self.run_folder.checkpoints
        if self.resume is False:
            self._starts_afresh = True  # in setup, where the ranks can wait for each other
            return None
        self.run_folder.check_same_run(self.identity)
        if isinstance(self.resume, str):
            return str(self._named_checkpoint(Path(self.resume)))
        if not store.steps():
            return None
        if newest := store.latest_valid():
            check_same_run(newest, self.identity)
            return str(newest / TRAINER_STATE)
        raise CheckpointError(
            f"No checkpoint in {store.path} is whole: {damage(store.folder(store.steps()[0]))}. "
            "Choose another output_dir, or remove that folder to start afresh."
        )

    def _named_checkpoint(self, path: Path) -> Path:
        state = _locate(path)
        manifest = read_json(state.parent / MANIFEST)
        if manifest and (problem := damage(state.parent)):
            raise CheckpointError(
                f"resume_from_checkpoint: {path} is damaged: {problem}. "
                "Name another checkpoint, or set it to true to continue from the newest whole one."
            )
        if not is_sharded(state) and not zipfile.is_zipfile(state):
            raise CheckpointError(f"resume_from_checkpoint: {state} is truncated or not a checkpoint of Lightning.")
        check_same_run(state.parent, self.identity)
        newest = self.run_folder.latest_valid_checkpoint()
        if newest and read_json(newest / MANIFEST)["step"] > manifest.get("step", 0):
            raise CheckpointError(
                f"resume_from_checkpoint names {path}, but this run already has the newer {newest}. "
                "Set it to true to continue from there, choose another output_dir, or remove the newer checkpoints."
            )
        return state

    # ---- Lightning's hooks

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = TensorFileIO()
        if stage == "fit":
            self._take_folder(trainer)

    def _take_folder(self, trainer: pl.Trainer) -> None:
        """Make the folder this run's, once every rank has found that it may be."""
        on_first_rank(trainer, lambda: self._lock.enter_context(self.run_folder.lock()))
        self.run_folder.check_own_checkpoints()
        if not self._starts_afresh:
            self.run_folder.check_same_run(self.identity)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            if self._starts_afresh:
                self.run_folder.set_aside()
            self.run_folder.record_run(self.identity)
        trainer.strategy.barrier()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer):
            self.save_now(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only for a run that something stopped after on_train_batch_end; all others have been saved there.
        self._save(trainer, trainer.current_epoch - 1 + trainer.is_last_batch)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Lightning comes here only after a run that met no error, and after every callback's on_fit_end: what is
        # marked as finished has been exported too.
        manifest = read_json(self.run_folder.checkpoints.folder(trainer.global_step) / MANIFEST)
        if stage == "fit" and manifest and trainer.is_global_zero:
            self.run_folder.mark_finished(manifest["step"], manifest["epochs"])
        self._lock.close()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._lock.close()

    # ---- saving

    def save_now(self, trainer: pl.Trainer) -> None:
        """Save the step that was just done, unless it has been saved; on every rank, and before an epoch is counted.

        Raises:
            CheckpointError: it could not be written.
        """
        self._save(trainer, trainer.current_epoch + trainer.is_last_batch)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        on_interval = self.every_n_steps > 0 and step % self.every_n_steps == 0
        ends_run = step == trainer.max_steps or trainer.should_stop
        ends_last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        return on_interval or ends_run or ends_last_epoch

    def _save(self, trainer: pl.Trainer, epochs: int) -> None:
        """Write a checkpoint; called on every rank, and every rank learns whether it worked."""
        step, store = trainer.global_step, self.run_folder.checkpoints
        if step == self._saved_step:
            return
        problem = None
        try:
            if trainer.is_global_zero:
                store.discard_drafts()
            trainer.save_checkpoint(store.draft(step) / TRAINER_STATE)
        except OSError as error:
            problem = self._explain(error, step)
            trainer.strategy.barrier()  # the others are waiting at the end of save_checkpoint
            if trainer.is_global_zero:
                store.discard_drafts()
        if trainer.is_global_zero and not problem:
            facts = {
                "epochs": epochs,
                "output_dir": self.run_folder.identifying_path(),
                "identity": self.identity,
                "world_size": trainer.world_size,
                "surogate_version": installed_version("surogate"),
            }
            try:
                store.commit(step, facts)
                store.rotate(step, self.keep_last)
            except OSError as error:
                problem = self._explain(error, step)
                store.discard_drafts()
        if problem := trainer.strategy.broadcast(problem):
            raise CheckpointError(problem)
        self._saved_step = step

    def _explain(self, error: OSError, step: int) -> str:
        store = self.run_folder.checkpoints
        existing = store.path if store.path.is_dir() else Path.cwd()
        free = shutil.disk_usage(existing).free
        kept = store.steps()
        left = f"The newest checkpoint is that of step {kept[0]}" if kept else "There is no earlier checkpoint"
        return (
            f"The checkpoint of step {step} could not be written to {store.path}: {error.strerror or error}. "
            f"{free / 2**20:,.1f} MiB are free on that disk. {left}. "
            "Make room, lower save_total_limit or choose another checkpoint_dir; the same command then continues."
        )


class TensorFileIO(TorchCheckpointIO):
    """Checkpoint files of tensors and plain values, so that reading one never runs code.

    Lightning's own class builds the file in memory and then writes it to the system's temporary folder.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        size = sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
        check_room(Path(path), size)
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise not_written(error, size) from error

    @override
    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        if is_sharded(Path(path)):
            raise CheckpointError(
                f"{path} was saved with zero_level 2 or 3. Set it to one of these to continue this run, or start "
                "another output_dir."
            )
        try:
            state: dict[str, Any] = super().load_checkpoint(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"There is no checkpoint at {path}.") from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be read as tensors and plain values (anything else is never loaded): {error}"
            ) from error
        return state


def _locate(path: Path) -> Path:
    """Find the trainer state that a user's path means: a file, a step folder, a folder of them, or a run's folder."""
    if path.is_file() or is_sharded(path):
        return path
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    path = path.resolve()  # `latest` is a link
    is_step = re.fullmatch(r"step_\d+", path.name) or (path / MANIFEST).exists()
    folder = path if is_step else CheckpointStore(path).latest_valid()
    if folder and (folder / TRAINER_STATE).exists():
        return folder / TRAINER_STATE
    siblings = CheckpointStore(path.parent).steps()
    there = f" That folder has the steps {', '.join(map(str, sorted(siblings)))}." if siblings else ""
    raise CheckpointError(f"resume_from_checkpoint: there is no whole checkpoint at {path}.{there}")
