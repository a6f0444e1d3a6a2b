"""What a run reports: the same numbers in metrics.jsonl and in W&B, also after it went back; samples; the page."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import wandb_file
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

from surogate.cli.main import main
from surogate.metrics.catalogue import describe

WORDS = [f"w{i}" for i in range(40)]
NOT_REPEATABLE = ("speed/", "memory/")
"""Groups whose numbers are of the first time in W&B, and of the last in metrics.jsonl, where a step was done twice."""

Values = dict[int, dict[str, Any]]


def config(folder: Path, **changes: Any) -> str:
    """Write a configuration of a run that takes seconds."""
    values = {
        "model": str(folder / "model"),
        "output_dir": str(folder / "out"),
        "datasets": [{"path": str(folder / "rows.jsonl")}],
        "validation_split_ratio": 0.25,
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",  # so that raising max_steps changes nothing before
        "dataloader_num_workers": 0,
        **changes,
    }
    path = folder / f"{Path(values['output_dir']).name}.yaml"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, rows, and a run that went back from its end to step 4 and on to step 9."""
    folder = tmp_path_factory.mktemp("reporting")
    save_word_tokenizer(save_tiny_model(folder / "model", vocab_size=64), WORDS)
    rows = [{"instruction": f"w{i % 37} w{i % 11}", "output": f"w{i % 7} w{i % 5} w{i % 3}"} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reporting = {"report_to": ["wandb"], "wandb_mode": "offline", "wandb_project": "p", "sample_prompts": 2}
    cfg = config(folder, **reporting)
    assert main(["sft", cfg]) == 0
    shutil.rmtree(folder / "out/checkpoints/step_6")
    (folder / "out/finished.json").unlink()
    assert main(["sft", cfg, "--max_steps", "9", "--hub_token", "hf_secret"]) == 0
    return folder


def recorded(run: Path) -> Values:
    """The metrics of each step in metrics.jsonl."""
    values: Values = defaultdict(dict)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["epoch"]
        step = record.pop("step")
        assert not values[step].keys() & record.keys(), "no number stands there twice"
        values[step] |= record
    return values


def in_wandb(run: Path) -> Values:
    """The metrics of each step in W&B, tables left out."""
    values: Values = {}
    for row in wandb_file.history(run):
        metrics = {name: value for name, value in row.items() if name != "_step" and not name.startswith("samples")}
        assert row["_step"] not in values, "no step stands there twice"
        values[row["_step"]] = metrics
    return values


def test_the_history_of_w_and_b_is_metrics_jsonl_also_after_a_resume(folder: Path):
    expected, found = recorded(folder / "out"), in_wandb(folder / "out")
    assert not found.pop(0), "before the first step there is the table of samples alone"
    assert found.keys() == expected.keys() == set(range(1, 10))
    done_twice = {5, 6}
    for step, metrics in expected.items():
        assert found[step].keys() == metrics.keys()
        names = [name for name in metrics if step not in done_twice or not name.startswith(NOT_REPEATABLE)]
        assert {name: found[step][name] for name in names} == {name: metrics[name] for name in names}, step
    assert len(wandb_file.files(folder / "out")) == 2 and len(set(wandb_file.run_ids(folder / "out"))) == 1


def test_w_and_b_knows_what_the_run_was_asked_for_and_where_it_ran(folder: Path):
    known = wandb_file.config(folder / "out")
    assert known["surogate"]["learning_rate"] == 0.01
    assert known["config"]["model"]["class_path"] == "surogate.modes.SftModule"
    assert {"packages", "cpu", "command"} <= known["environment"].keys()
    assert not [file for file in wandb_file.files(folder / "out") if b"hf_secret" in file.read_bytes()]


def test_every_metric_is_in_the_table_of_metrics(folder: Path):
    names = {name for metrics in recorded(folder / "out").values() for name in metrics}
    assert len(names) > 10 and not [name for name in names if describe(name) is None]


def test_held_out_prompts_are_answered_at_the_start_and_at_each_validation(folder: Path):
    rows = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 3, 3, 6, 6, 9, 9]
    assert len({row["prompt"] for row in rows}) == 2
    assert all(row["reference"].startswith("w") and row["prompt"].endswith("<assistant>") for row in rows)


def test_a_run_with_samples_trains_exactly_as_one_without(folder: Path):
    assert main(["sft", config(folder, output_dir=str(folder / "plain"), max_steps=9)]) == 0
    with_samples, without = recorded(folder / "out"), recorded(folder / "plain")
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert {step: metrics.get(name) for step, metrics in with_samples.items()} == {
            step: metrics.get(name) for step, metrics in without.items()
        }


def test_the_page_of_the_run_has_its_curves_and_samples(folder: Path, capsys: Any):
    assert main(["report", str(folder / "out")]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert text.count("<figure") >= 10 and "finished after 9 steps" in text and "before training" in text
