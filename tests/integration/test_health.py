"""Runs that meet bad steps: what is skipped, named, kept, counted, and when a run gives up. In this process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.poisoned_run import WORDS, poisoned
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

from surogate.cli.main import main
from surogate.modes import SftModule

ROW_WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=64)
    return save_word_tokenizer(folder, [*ROW_WORDS, *WORDS])


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SftModule, "micro_loss", poisoned([*ROW_WORDS, *WORDS]))


def config(folder: Path, model: Path, bad: dict[int, str], count: int = 24, **changes: Any) -> Path:
    """A run of a step a row, without shuffling away which row is which: `bad` rows have a word more."""
    rows = [
        {"instruction": f"w{i} w{i + 1} {bad.get(i, '')}".strip(), "output": f"w{i} w{i + 2}"} for i in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": str(model),
        "output_dir": str(folder / "out"),
        "datasets": [{"path": str(folder / "rows.jsonl")}],
        "validation_split_ratio": 0,
        "sequence_len": 64,
        "sample_packing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 0.01,
        "dataloader_num_workers": 0,
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(values))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "out/health").glob("step_*.json"))]


def origins(ranks: Iterable[dict[str, Any]]) -> list[str]:
    return [row["origin"] for rank in ranks for micro in rank["micro_batches"] for row in micro["rows"]]


def test_a_poisoned_row_costs_its_step_and_is_named_by_file_and_line(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, model, {6: "poison", 17: "poison"})
    assert main(["sft", str(path)]) == 0
    printed = capfd.readouterr().err
    steps = kept(tmp_path)
    assert sorted(origins(steps[0]["ranks"]) + origins(steps[1]["ranks"])) == [
        f"{tmp_path}/rows.jsonl:{line}" for line in (18, 7)
    ]
    for step in steps:
        assert f"Step {step['step']} was skipped" in printed and step["loss"] == "nan"
        (rank,) = step["ranks"]
        (micro_batch,) = torch.load(tmp_path / "out/health" / rank["tensors"], weights_only=True)
        assert int(micro_batch["num_tokens"]) == rank["micro_batches"][0]["rows"][0]["tokens"]
    skipped = {record["step"]: record["health/skipped_steps"] for record in records(tmp_path)}
    assert {step for step, count in skipped.items() if count} == {step["step"] for step in steps}
    assert all(
        value.isfinite().all() for value in load_file(tmp_path / "out/adapter/adapter_model.safetensors").values()
    )


def test_a_run_whose_steps_are_all_bad_ends_with_a_sentence(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, model, dict.fromkeys(range(24), "poison"), max_skipped_steps=2)
    assert main(["sft", str(path)]) == 8
    printed = capfd.readouterr().err
    assert "3 steps had a loss or gradient that is not finite" in printed
    assert "max_skipped_steps 2 in a row" in printed and "rows.jsonl:" in printed
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


def run_on_two_ranks(path: Path) -> tuple[int, str]:
    """Return the exit code, and what was printed."""
    script = Path(__file__).parents[1] / "support/poisoned_run.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(path)], env=env, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stderr


def test_two_ranks_name_who_waits_for_whom_and_skip_the_same_step(tmp_path: Path, model: Path) -> None:
    """A row takes one rank's loader long, and then breaks its loss."""
    changes = {"gpus": 2, "gradient_accumulation_steps": 2, "max_skipped_steps": 0, "stall_seconds": 1}
    exit_code, printed = run_on_two_ranks(config(tmp_path, model, {6: "nap poison"}, **changes))
    assert exit_code == 8, printed
    reports = re.findall(r"Nothing has moved for \d+ s at step \d+\. (.*)\n  (.*)\n  (.*)\nWhere each", printed)
    waits = r"rank (\d) waits for rank (\d): fetching the next batch\."
    sleeper, ranks = next((found, ranks) for who, *ranks in reports if (found := re.fullmatch(waits, who)))
    assert {sleeper[1], sleeper[2]} == {"0", "1"}
    assert "fetching the next batch, for" in ranks[int(sleeper[2])]
    assert "waiting for the other ranks' token counts, for" in ranks[int(sleeper[1])]
    assert "poisoned_run.py" in (tmp_path / f"out/health/stacks_rank_{sleeper[2]}.txt").read_text()
    assert "goes on" in printed and not list((tmp_path / "out/health").glob("heartbeat*"))

    (step,) = kept(tmp_path)
    assert [rank["rank"] for rank in step["ranks"]] == [0, 1]
    assert f"Rows of that step: {tmp_path}/rows.jsonl:7;" in printed
    assert len(origins(step["ranks"])) == 4


def rates(folder: Path) -> dict[int, float]:
    return {record["step"]: record["train/learning_rate"] for record in records(folder) if "train/loss" in record}


THORNS = dict.fromkeys((8, 30, 31, 47, 60, 61), "thorn")


def test_spikes_are_named_and_lower_the_rate_also_after_a_resume(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The undisturbed run, and one that is stopped between two spikes and goes on, take the same steps."""
    changes = {"auto_lr_reduction": True, "lr_scheduler_type": "constant", "save_steps": 5, "save_total_limit": 50}
    path = config(tmp_path, model, THORNS, count=80, **changes)
    assert main(["sft", str(path)]) == 0
    printed = capfd.readouterr().err
    named = [origin.partition("rows.jsonl:")[2] for step in kept(tmp_path) for origin in origins(step["ranks"])]
    assert named and set(map(int, named)) <= {row + 1 for row in THORNS}
    assert all(f"Step {step['step']}: the loss" in printed for step in kept(tmp_path))
    whole = rates(tmp_path)
    (cut,) = (step for step in range(2, 81) if whole[step] < whole[step - 1])
    assert set(whole.values()) == {0.01, 0.005}
    spikes = sorted(step["step"] for step in kept(tmp_path))
    assert spikes[2] == cut - 1  # the third spike halves the rate of the step behind it

    losses = {record["step"]: record["train/loss"] for record in records(tmp_path)}
    between = next(step for step in range(spikes[1], spikes[2]) if step % 5 == 0)
    for step in range(between + 5, 81, 5):
        os.rename(tmp_path / f"out/checkpoints/step_{step}", tmp_path / f"step_{step}")
    (tmp_path / "out/finished.json").unlink()
    (tmp_path / "out/checkpoints/latest").unlink()
    assert main(["sft", str(path)]) == 0
    assert f"from step_{between}" in " ".join(capfd.readouterr().err.split())
    assert rates(tmp_path) == whole
    assert {record["step"]: record["train/loss"] for record in records(tmp_path)} == losses


def test_a_run_that_stops_early_is_saved_and_does_not_go_on_by_itself(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    validation = {"validation_datasets": [{"path": str(tmp_path / "rows.jsonl")}], "eval_steps": 2}
    changes = {"early_stop": True, "learning_rate": 1e-7, "save_steps": 0, **validation}
    path = config(tmp_path, model, {}, count=40, **changes)
    assert main(["sft", str(path)]) == 0
    assert "The run stops early, at step 13" in capfd.readouterr().err
    assert [folder.name for folder in (tmp_path / "out/checkpoints").glob("step_*")] == ["step_13"]
    assert (tmp_path / "out/adapter").is_dir() and max(record["step"] for record in records(tmp_path)) == 13
    assert main(["sft", str(path)]) == 0
    assert "To go on, set early_stop: false" in capfd.readouterr().err
    assert max(record["step"] for record in records(tmp_path)) == 13
    path.write_text(path.read_text().replace('"early_stop": true', '"early_stop": false'))
    assert main(["sft", str(path)]) == 0
    assert max(record["step"] for record in records(tmp_path)) == 40


def test_epochs_are_adjusted_to_twenty_tokens_a_parameter(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surogate.callbacks.token_budget.TOKENS_PER_PARAMETER", 0.01)
    path = config(tmp_path, model, {}, lora=False, epoch_adjustment=True, optimizer="adamw", save_steps=0)
    assert main(["sft", str(path)]) == 0
    printed = capfd.readouterr().err
    assert "num_epochs was 1" in printed and "epoch_adjustment" in printed
    (line,) = (line for line in printed.splitlines() if "num_epochs was" in line)
    epochs = int(line.partition(" epochs of")[0].split()[-1])
    assert max(record["step"] for record in records(tmp_path)) == 24 * epochs
