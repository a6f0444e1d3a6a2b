"""Runs that a signal stops: where they stop, what they leave, and that the same command ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.descendants import command_line, descendants
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

NUM_STEPS = 24
MANY_STEPS = 2000
"""More than are done before a signal arrives."""
DEADLINE_SECONDS = 240

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its tokenizer and a data set."""
    folder = tmp_path_factory.mktemp("preemption")
    save_tiny_model(folder / "model", vocab_size=160)
    save_word_tokenizer(folder / "model", [f"w{i}" for i in range(140)])
    rng = random.Random(0)
    keys = ("instruction", "output")
    rows = [{key: " ".join(f"w{rng.randrange(140)}" for _ in range(9)) for key in keys} for _ in range(50)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[40:]))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The output of a run that nothing stopped."""
    process = start(folder, "whole")
    printed, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, printed
    return folder / "whole"


def start(folder: Path, name: str, **changes: Any) -> subprocess.Popen[str]:
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "output_dir": str(folder / name),
        "datasets": [{"path": str(folder / "train.jsonl")}],
        "validation_datasets": [{"path": str(folder / "held-out.jsonl")}],
        "eval_steps": 6,
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": NUM_STEPS,
        "save_steps": 0,
        "optimizer": "adamw",
        "lora_dropout": 0.1,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "sft", str(path)]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def records(output: Path) -> list[dict[str, Any]]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(is_so: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)


def curves(output: Path) -> list[tuple[int, str, float]]:
    """Every loss of training and validation, in order."""
    names = ("train/loss", "train/grad_norm", "val/loss")
    return [(record["step"], name, record[name]) for record in records(output) for name in names if name in record]


def assert_same_run(got: Path, expected: Path) -> None:
    assert sorted(curves(got)) == sorted(curves(expected))
    adapters = [load_file(output / "adapter/adapter_model.safetensors") for output in (got, expected)]
    assert all(torch.equal(adapters[0][name], tensor) for name, tensor in adapters[1].items())


def test_a_signal_ends_a_run_after_its_step_and_the_same_command_goes_on(folder: Path, whole: Path) -> None:
    name = "stopped"
    process = start(folder, name)
    wait_until(lambda: len(records(folder / name)) > 3, process)
    process.send_signal(signal.SIGTERM)
    assert_stopped(process, folder / name, signal.SIGTERM)
    process = start(folder, name)
    printed, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, printed
    assert_same_run(folder / name, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_agree_to_stop_where_only_one_of_them_gets_the_signal(folder: Path, rank: int) -> None:
    name = f"one-of-two-{rank}"
    process = start(folder, name, gpus=2, max_steps=MANY_STEPS)
    wait_until(lambda: len(records(folder / name)) > 1, process)
    (other,) = [pid for pid in descendants(process.pid) if "sft" in command_line(pid)]
    os.kill([process.pid, other][rank], signal.SIGUSR1)
    assert_stopped(process, folder / name, signal.SIGUSR1)


def assert_stopped(process: subprocess.Popen[str], output: Path, number: signal.Signals) -> None:
    """The run has ended by the signal, with a checkpoint of its last step and no results."""
    printed, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 128 + number, printed
    (checkpoint,) = (output / "checkpoints").glob("step_*")
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    assert stopped_at < MANY_STEPS and f"Stopped after step {stopped_at}." in printed
    assert printed.splitlines()[-1] == f"stopped by {number.name}"
    assert not (output / "adapter").exists() and not (output / "finished.json").exists()
