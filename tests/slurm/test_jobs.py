"""`surogate submit` on a real cluster of two nodes: the run itself, a signal in the middle of it, and a lost node.

The jobs train an adapter with one process a node. Beside them stand the same run under torchrun, which nothing
disturbs, and one in a single process with the same global batch.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slurm.cluster import Cluster, wait_until
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

NUM_STEPS = 40
DEADLINE_SECONDS = 200
FIRST_STEP_TOLERANCE = 1e-6
LATER_TOLERANCE = 1e-4
"""Relative, of the losses of one process: at step 1, and over the first 20."""

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its tokenizer and 60 rows."""
    folder = tmp_path_factory.mktemp("jobs")
    save_tiny_model(folder / "model", vocab_size=160)
    save_word_tokenizer(folder / "model", [f"w{i}" for i in range(140)])
    rng = random.Random(0)

    def words() -> str:
        return " ".join(f"w{rng.randrange(140)}" for _ in range(rng.randint(4, 12)))

    rows = [{"instruction": words(), "output": words()} for _ in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The output of two ranks that torchrun started and nothing disturbed, with dropout."""
    return under_torchrun(folder, "undisturbed", lora_dropout=0.1)


def config(folder: Path, name: str, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "output_dir": str(folder / name),
        "datasets": [{"path": str(folder / "rows.jsonl")}],
        "validation_split_ratio": 0.0,
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "max_steps": NUM_STEPS,
        "save_steps": 5,
        "learning_rate": 0.01,
        "lora_dropout": 0.0,
        "optimizer": "adamw",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))
    return path


def environ(base: dict[str, str]) -> dict[str, str]:
    return {**base, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environ(dict(os.environ)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def under_torchrun(folder: Path, name: str, **changes: Any) -> Path:
    path = config(folder, name, **changes)
    run("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "surogate", "sft", str(path))
    return folder / name


def submit(cluster: Cluster, path: Path) -> str:
    """Submit a run on both nodes and return the job's number."""
    command = [sys.executable, "-m", "surogate", "submit", str(path), "--nodes", "2", "--gpus-per-node", "0"]
    done = subprocess.run(command, env=environ(cluster.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.match(r"Job (\d+): sft-model, 2 nodes with 1 process each", done.stdout)
    assert found, done.stdout
    return found[1]


def log_of(output: Path) -> str:
    return "\n".join(path.read_text() for path in output.glob("slurm/*/*.log"))


def wait_for_end(cluster: Cluster, job: str, output: Path) -> None:
    def is_over() -> bool:
        state = cluster.state(job)
        assert state not in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), log_of(output)
        return state == "COMPLETED"

    wait_until(is_over, DEADLINE_SECONDS, lambda: log_of(output), every=0.5)


def wait_for_steps(output: Path, count: int) -> None:
    wait_until(lambda: len(losses(output)) >= count, DEADLINE_SECONDS, lambda: log_of(output), every=0.02)
    assert len(losses(output)) < NUM_STEPS, "the run was over before it was disturbed"


def losses(output: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {r["step"]: (r["train/loss"], r["train/grad_norm"]) for r in records if "train/loss" in r}


def assert_same_bits(got: Path, expected: Path) -> None:
    assert losses(got) == losses(expected) and len(losses(got)) == NUM_STEPS
    first, second = (load_file(path / "adapter/adapter_model.safetensors") for path in (got, expected))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_job_on_two_nodes_trains_as_torchrun_does_and_as_one_process_would(cluster: Cluster, folder: Path) -> None:
    job = submit(cluster, config(folder, "job"))
    wait_for_end(cluster, job, folder / "job")
    assert_same_bits(folder / "job", under_torchrun(folder, "torchrun"))
    run("surogate", "sft", str(config(folder, "alone", gradient_accumulation_steps=8)))
    got, expected = losses(folder / "job"), losses(folder / "alone")
    assert got[1][0] == pytest.approx(expected[1][0], rel=FIRST_STEP_TOLERANCE)
    for step in range(1, 21):
        assert got[step][0] == pytest.approx(expected[step][0], rel=LATER_TOLERANCE), f"step {step}"


def test_a_job_that_is_signalled_saves_requeues_once_and_ends_as_if_nothing_had_been(
    cluster: Cluster, folder: Path, undisturbed: Path
) -> None:
    output = folder / "signalled"
    job = submit(cluster, config(folder, "signalled", lora_dropout=0.1, save_steps=0))
    wait_for_steps(output, 8)
    cluster.ask("scancel", "--signal=USR1", job)
    wait_for_end(cluster, job, output)
    assert cluster.restarts(job) == 1
    assert "Stopped after step" in log_of(output) and "Continuing the run" in log_of(output)
    assert_same_bits(output, undisturbed)


@pytest.mark.parametrize("node", ["n2"])
def test_a_job_that_loses_a_node_is_requeued_and_resumes(
    cluster: Cluster, folder: Path, undisturbed: Path, node: str
) -> None:
    output = folder / f"lost-{node}"
    job = submit(cluster, config(folder, f"lost-{node}", lora_dropout=0.1))
    wait_for_steps(output, 8)
    cluster.kill_node(node)
    wait_until(lambda: cluster.state(job) == "PENDING", DEADLINE_SECONDS, lambda: log_of(output), every=0.5)
    cluster.start_node(node)
    wait_for_end(cluster, job, output)
    assert cluster.restarts(job) == 1
    assert "Continuing the run" in log_of(output)
    assert_same_bits(output, undisturbed)
