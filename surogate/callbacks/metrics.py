"""MetricsWriter: the numbers of a run, in metrics.jsonl, metrics.csv and Lightning's loggers.

What is not here: names and meanings (surogate/metrics). The one idea: metrics.jsonl is the record; metrics.csv is the
same as a table. A run that continues from step N first drops what is later than N, so that no step stands there twice.
"""

from __future__ import annotations

import csv
import os
import resource
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from surogate.callbacks.window import StepSummary, WindowCallback, validation_metrics
from surogate.metrics.records import Record, read_records, to_line
from surogate.run_folder import RunFolder


class MetricsWriter(WindowCallback):
    """Write one record every n optimizer steps and one per validation.

    Args:
        folder: output_dir of the run.
        every_n_steps: optimizer steps in a record; its loss and accuracy are means over all their supervised tokens.
    """

    def __init__(self, folder: str, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        run_folder = RunFolder(folder)
        self._jsonl, self._csv = run_folder.metrics_jsonl, run_folder.metrics_csv
        self._columns: list[str] = []

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget_after(-1, trainer)  # another start may have got this far and no further

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget_after(trainer.global_step, trainer)

    def _forget_after(self, step: int, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._jsonl.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_records(self._jsonl) if record["step"] <= step]
        draft = self._jsonl.with_name(f"{self._jsonl.name}.tmp")
        draft.write_text("".join(map(to_line, kept)), encoding="utf-8")
        os.replace(draft, self._jsonl)
        self._write_table(kept)

    @override
    def on_window(self, trainer: pl.Trainer, summary: StepSummary) -> None:
        metrics = {
            "train/loss": summary.loss,
            "train/perplexity": summary.perplexity,
            "train/accuracy": summary.accuracy,
            "train/grad_norm": summary.grad_norm,
            "train/learning_rate": summary.learning_rate,
            "health/skipped_steps": summary.skipped_steps,
            "speed/tokens_per_second": summary.tokens_per_second,
            "speed/supervised_tokens_per_second": summary.supervised_tokens_per_second,
            "speed/step_seconds": summary.step_seconds,
            "data/packing_efficiency": summary.packing_efficiency,
            "memory/peak_gib": peak_memory_gib(),
        }
        data: Any = getattr(trainer, "datamodule", None)
        self.record(trainer, metrics | (data.realised_mix() if hasattr(data, "realised_mix") else {}))

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            self.record(trainer, validation_metrics(trainer))

    def record(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        if not metrics:
            return
        record = {"step": trainer.global_step, "epoch": trainer.current_epoch, **metrics}
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(to_line(record))
        if record.keys() <= set(self._columns):
            with self._csv.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(record)
        else:  # a column that was not there before, such as the first validation's
            self._write_table(read_records(self._jsonl))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _write_table(self, records: list[Record]) -> None:
        self._columns = list(dict.fromkeys(name for record in records for name in record))
        draft = self._csv.with_name(f"{self._csv.name}.tmp")
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(records)
        os.replace(draft, self._csv)


def peak_memory_gib() -> float:
    """Return the most memory held so far: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
