"""RolloutRecords: what the policy wrote and what it got for it, as files that a person can read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.errors import CheckpointError
from surogate.rl.types import Rollout
from surogate.run_folder import RunFolder


class RolloutRecords(pl.Callback):
    """Write rollouts/step_N.jsonl for each step and evaluations/step_N.jsonl for each evaluation, a line a rollout.

    Args:
        folder: output_dir of the run.
        every_n_steps: optimizer steps between two files of rollouts.
        table_rows: rollouts of a step that a logger with tables gets.
    """

    def __init__(self, folder: str, every_n_steps: int = 1, table_rows: int = 8) -> None:
        run_folder = RunFolder(folder)
        self._rollouts_dir, self._evaluations_dir = run_folder.rollouts_dir, run_folder.evaluations_dir
        self._every_n_steps, self._table_rows = every_n_steps, table_rows

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            for folder in (self._rollouts_dir, self._evaluations_dir):
                _forget_after(folder, trainer.global_step)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write_evaluations(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        if step % self._every_n_steps == 0:
            rows = _rows(trainer, batch.batch.rollouts)
            _write(self._rollouts_dir / f"step_{step:06}.jsonl", rows)
            self._log_table(trainer, rows[: self._table_rows])
        self._write_evaluations(trainer, pl_module)

    def _write_evaluations(self, trainer: pl.Trainer, module: Any) -> None:
        for result in module.evaluations:
            _write(self._evaluations_dir / f"step_{result.version:06}.jsonl", _rows(trainer, result.rollouts))
        module.evaluations.clear()  # this callback stands behind those that only look at them

    def _log_table(self, trainer: pl.Trainer, rows: list[dict[str, Any]]) -> None:
        columns = ["example", "prompt", "completion", "reward", "advantage"]
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                data = [[str(row[column]) for column in columns] for row in rows]
                logger.log_table("rollouts", columns=columns, data=data, step=trainer.global_step)


def _rows(trainer: Any, rollouts: list[Rollout]) -> list[dict[str, Any]]:
    tokenizer = trainer.datamodule.tokenizer
    prompts = {rollout.example_id: tokenizer.decode(rollout.prompt_ids) for rollout in rollouts}
    return [_row(rollout, prompts[rollout.example_id]) for rollout in rollouts]


def _row(rollout: Rollout, prompt: str) -> dict[str, Any]:
    return {
        "example": rollout.example_id,
        "prompt": prompt,
        "completion": rollout.text,
        "reward": rollout.reward,
        "advantage": rollout.advantage,
        "trains": rollout.trains,
        "tokens": rollout.num_sampled,
        "truncated": rollout.is_truncated,
        "version": rollout.oldest_version,
        **rollout.metrics,
    }


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text("".join(map(_to_line, rows)), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}. Make room, or give access; the same command then "
            "continues from the newest checkpoint."
        ) from error


def _to_line(row: dict[str, Any]) -> str:
    """Write a row as one line, also for readers that take every line separator of Unicode for one."""
    text = json.dumps(row, ensure_ascii=False)
    for separator in ("\x85", "\u2028", "\u2029"):
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text + "\n"


def _forget_after(folder: Path, step: int) -> None:
    """Remove the files of steps that are done again."""
    for path in folder.glob("step_*.jsonl"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
