"""WandbRun on W&B itself, offline: which rows it is told, under which id."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from support import wandb_file

from surogate.callbacks.wandb_run import WandbRun
from surogate.errors import ConfigError


def begun(folder: Path) -> WandbRun:
    logger = WandbRun(str(folder), name="n", mode="offline")
    assert logger.experiment is not None
    return logger


def log(logger: WandbRun, steps: range, name: str = "train/loss") -> None:
    for step in steps:
        logger.log_metrics({name: float(step)}, step=step)


def rows(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(row["_step"], row[name]) for row in wandb_file.history(folder) if name in row]


def test_what_belongs_to_a_step_is_one_row(tmp_path: Path):
    logger = begun(tmp_path)
    log(logger, range(1, 4))
    logger.log_metrics({"val/loss": 9.0}, step=3)
    log(logger, range(4, 5))
    logger.finalize("success")
    assert rows(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert rows(tmp_path, "val/loss") == [(3, 9.0)]


def test_a_run_that_goes_back_tells_only_what_is_new_under_the_same_id(tmp_path: Path):
    for steps in (range(1, 6), range(4, 9), range(9, 11)):
        logger = begun(tmp_path)
        log(logger, steps)
        logger.finalize("failed" if steps.stop < 11 else "success")
    assert rows(tmp_path) == [(step, float(step)) for step in range(1, 11)]
    assert len(wandb_file.files(tmp_path)) == 3 and len(set(wandb_file.run_ids(tmp_path))) == 1


def test_what_a_killed_run_had_told_is_told_again_since_nobody_knows(tmp_path: Path):
    logger = begun(tmp_path)
    log(logger, range(1, 4))
    logger.finalize("success")
    logger = begun(tmp_path)
    log(logger, range(4, 7))
    logger.experiment.finish()  # and no word in wandb.json
    logger = begun(tmp_path)
    log(logger, range(3, 8))
    logger.finalize("success")
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7]


def test_a_late_validation_stands_in_the_next_row(tmp_path: Path):
    logger = begun(tmp_path)
    log(logger, range(1, 4))
    logger.finalize("failed")
    logger = begun(tmp_path)
    logger.log_metrics({"val/loss": 9.0}, step=3)
    log(logger, range(4, 5))
    logger.finalize("success")
    assert rows(tmp_path, "val/loss") == [(4, 9.0)] and rows(tmp_path)[-1] == (4, 4.0)


def test_a_run_that_starts_anew_is_another_one(tmp_path: Path):
    for _ in range(2):
        logger = WandbRun(str(tmp_path), mode="offline")
        logger.start_anew()
        log(logger, range(1, 3))
        logger.finalize("success")
    assert len(set(wandb_file.run_ids(tmp_path))) == 2
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 1, 2]


def test_no_secret_of_the_command_line_reaches_w_and_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["surogate", "sft", "c.yaml", "--hub_token", "hf_secret", "--seed", "7"])
    logger = begun(tmp_path)
    log(logger, range(1, 3))
    logger.finalize("success")
    (file,) = wandb_file.files(tmp_path)
    assert b"hf_secret" not in file.read_bytes() and b"c.yaml" in file.read_bytes()
    assert sys.argv[4] == "hf_secret"


def test_where_w_and_b_refuses_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"refuses the run: No API key configured\. Use .*wandb_mode: offline"):
        _ = WandbRun(str(tmp_path)).experiment
    assert not (tmp_path / "wandb.json").exists()


def test_a_disabled_run_writes_nothing(tmp_path: Path):
    logger: Any = WandbRun(str(tmp_path), mode="disabled")
    log(logger, range(1, 3))
    logger.finalize("success")
    assert not wandb_file.files(tmp_path)
