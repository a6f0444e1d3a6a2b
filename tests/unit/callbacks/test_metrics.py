from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from surogate.callbacks.metrics import MetricsWriter, read_records


class Log:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append((step, metrics))


def trainer(step: int = 0, **changes: Any) -> Any:
    values = {
        "is_global_zero": True,
        "global_step": step,
        "current_epoch": 0,
        "loggers": [],
        "sanity_checking": False,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "callback_metrics": {"val/a/loss": torch.tensor(0.5), "learning": torch.tensor(1.0)},
    }
    return SimpleNamespace(**{**values, **changes})


def train(writer: MetricsWriter, steps: range, loss: float = 2.0, **changes: Any) -> None:
    for step in steps:
        scalars = {"loss": loss + step, "loss_tokens": 10, "tokens": 40, "accuracy": 0.5, "grad_norm": 1.0}
        scalars["skipped"] = 0
        metrics: dict[str, Any] = {name: torch.tensor(value) for name, value in scalars.items()}
        module: Any = SimpleNamespace(step_metrics={**metrics, "learning_rate": 1e-4})
        batch = SimpleNamespace(packing_efficiency=0.9)
        writer.on_train_batch_start(trainer(step - 1, **changes), module, batch, 0)
        writer.on_train_batch_end(trainer(step, **changes), module, None, batch, 0)


def started(folder: Path, every_n_steps: int = 1, step: int = 0) -> MetricsWriter:
    writer = MetricsWriter(str(folder), every_n_steps)
    writer.on_train_start(trainer(step), None)  # type: ignore[arg-type]
    return writer


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_record_has_every_number_the_manual_names(tmp_path: Path) -> None:
    train(started(tmp_path), range(1, 2))
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert list(record) == [
        "step",
        "epoch",
        "train/loss",
        "train/perplexity",
        "train/accuracy",
        "train/grad_norm",
        "train/learning_rate",
        "health/skipped_steps",
        "speed/tokens_per_second",
        "speed/supervised_tokens_per_second",
        "speed/step_seconds",
        "data/packing_efficiency",
        "memory/peak_gib",
    ]
    assert record["train/loss"] == 3.0 and record["data/packing_efficiency"] == 0.9
    assert 0.01 < record["memory/peak_gib"] < 1000


def test_the_table_gains_columns_when_the_first_validation_comes(tmp_path: Path) -> None:
    writer = started(tmp_path)
    train(writer, range(1, 3))
    writer.on_validation_end(trainer(2), None)  # type: ignore[arg-type]
    train(writer, range(3, 4))
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "2", "3"]
    assert [row["val/a/loss"] for row in rows] == ["", "", "0.5", ""]
    assert [row["train/loss"] for row in rows] == ["3.0", "4.0", "", "5.0"]
    assert "learning" not in rows[0], "only what the validation logged under val/ is a validation metric"


def test_after_a_resume_no_step_stands_there_twice(tmp_path: Path) -> None:
    train(started(tmp_path), range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # killed while writing
    train(started(tmp_path, step=3), range(4, 6), loss=100.0)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["train/loss"]) for record in records] == [
        (1, 3.0),
        (2, 4.0),
        (3, 5.0),
        (4, 104.0),
        (5, 105.0),
    ]
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3", "4", "5"]


def test_a_fresh_start_forgets_the_numbers_of_a_run_that_saved_nothing(tmp_path: Path) -> None:
    train(started(tmp_path), range(1, 6))
    started(tmp_path)
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_window_of_steps_is_one_record_and_the_rest_comes_at_the_end(tmp_path: Path) -> None:
    writer = started(tmp_path, every_n_steps=2)
    train(writer, range(1, 6))
    writer.on_train_end(trainer(5), None)  # type: ignore[arg-type]
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["train/loss"]) for record in records] == [(2, 3.5), (4, 5.5), (5, 7.0)]


def test_loggers_get_the_same_numbers_at_the_same_step(tmp_path: Path) -> None:
    log = Log()
    writer = started(tmp_path)
    train(writer, range(1, 3), loggers=[log])
    writer.on_validation_end(trainer(2, loggers=[log]), None)  # type: ignore[arg-type]
    assert [step for step, _ in log.seen] == [1, 2, 2]
    assert log.seen[1][1]["train/loss"] == 4.0 and log.seen[2][1] == {"val/a/loss": 0.5}


def test_a_diverged_run_still_writes_json_that_any_reader_accepts(tmp_path: Path) -> None:
    train(started(tmp_path), range(1, 2), loss=math.nan)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record["train/loss"] is None


@pytest.mark.parametrize(
    "changes",
    [{"is_global_zero": False}, {"state": SimpleNamespace(fn=TrainerFn.VALIDATING)}],
)
def test_only_a_validation_within_training_on_the_first_rank_is_recorded(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    writer = started(tmp_path)
    writer.on_validation_end(trainer(1, **changes), None)  # type: ignore[arg-type]
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_damaged_line_is_dropped_by_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": "x"}\n{"loss": 2}\n')
    started(tmp_path, step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
