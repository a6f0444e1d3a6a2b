"""A stopped run takes the very steps that an uninterrupted one would have taken: losses and weights, bit for bit.

Through the command line, on two mixed and shuffled data sets, with packing, accumulation, dropout and an epoch's end
on the way.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

NUM_STEPS = 28
DEADLINE_SECONDS = 240
FIRST_STEP_TOLERANCE = 1e-5
LATER_TOLERANCE = 1e-3
"""Absolute, of losses after a resume on another number of ranks: at its first step, and 20 steps and more later."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its tokenizer and two data sets of 45 and 30 conversations."""
    folder = tmp_path_factory.mktemp("resume")
    save_tiny_model(folder / "model", vocab_size=160)
    save_word_tokenizer(folder / "model", [f"w{i}" for i in range(140)])
    rng = random.Random(0)
    for name, count in (("a", 45), ("b", 30)):
        rows = [
            {
                "instruction": " ".join(f"w{rng.randrange(140)}" for _ in range(rng.randint(1, 12))),
                "output": " ".join(f"w{rng.randrange(140)}" for _ in range(rng.randint(1, 12))),
            }
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(folder: Path, output: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "output_dir": str(output),
        "datasets": [{"path": str(folder / f"{name}.jsonl")} for name in ("a", "b")],
        "validation_split_ratio": 0.1,
        "eval_steps": 5,
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "max_steps": NUM_STEPS,
        "save_steps": 1,
        "save_total_limit": 3,
        "learning_rate": 0.01,
        "lora_dropout": 0.1,
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(values))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "sft", str(path)]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def run(path: Path) -> str:
    process = start(path)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    return output


def run_and_kill(path: Path, output: Path, after_steps: int, rng: random.Random) -> str:
    """SIGKILL all ranks at a random moment of the step that follows `after_steps`; return what they printed."""
    process = start(path)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(losses(output)) < after_steps:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(rng.random() * 0.15)
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    assert len(losses(output)) < NUM_STEPS, "the run was over before it was killed"
    return printed


def first_step(printed: str) -> int:
    """The first step that a resumed run took."""
    found = re.search(r"Continuing the run in\s.*?\sfrom\s+step_(\d+)", printed, re.DOTALL)
    assert found, printed
    return int(found[1]) + 1


def losses(output: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {r["step"]: (r["train/loss"], r["train/grad_norm"]) for r in records if "train/loss" in r}


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_a_run_killed_twice_at_random_moments_ends_bit_for_bit_like_one_that_was_not(folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    run(config(folder, whole))
    rng = random.Random(time.time_ns())
    path = config(folder, killed)
    for after in (3, 9):  # an epoch has 5 steps or so: once inside the first, once later
        run_and_kill(path, killed, after, rng)
    assert "Continuing" in run(path)
    assert losses(killed) == losses(whole) and len(losses(whole)) == NUM_STEPS
    expected, got = adapter(whole), adapter(killed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert "finished" in run(path)


def test_two_ranks_then_one_then_two_see_the_same_batches_and_stay_close(folder: Path) -> None:
    whole, moved = folder / "one-rank", folder / "moved"
    same = {"lora_dropout": 0.0, "optimizer": "adamw"}
    run(config(folder, whole, **same))
    rng = random.Random(time.time_ns())
    changes = {**same, "gradient_accumulation_steps": 2}
    run_and_kill(config(folder, moved, **changes, gpus=2), moved, 3, rng)
    on_one = first_step(run_and_kill(config(folder, moved, **changes, gpus=1), moved, 8, rng))
    on_two = first_step(run(config(folder, moved, **changes, gpus=2)))
    assert on_one < on_two and NUM_STEPS - on_one >= 20
    expected, got = losses(whole), losses(moved)
    assert got.keys() == expected.keys()
    for step, (loss, _) in expected.items():
        tolerance = FIRST_STEP_TOLERANCE if step in (1, on_one, on_two) else LATER_TOLERANCE
        assert got[step][0] == pytest.approx(loss, abs=tolerance), f"step {step}, resumed at {on_one} and {on_two}"
