"""A run of a tiny model that is killed again and again, or whose disk is full; shared by tests and benchmarks.

The one idea: after each blow nothing that is on the disk under its own name may be half written, the same command must
go on, and the end must be that of the run that nobody touched.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

from surogate.run_folder import MANIFEST, RunFolder, damage

DEADLINE_SECONDS = 240
SHARE_OF_EARLY_KILLS = 0.15
"""Of the kills: at any moment of the start, before the first step."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The run that is killed: its configuration, its folder and its length."""

    config: Path
    output: Path
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast an undisturbed run goes."""

    seconds: float
    start_seconds: float
    step_seconds: float


@dataclass(kw_only=True)
class Death:
    """One kill, and what it cost.

    Attributes:
        after_step: the last step that was done.
        kept_step: the newest checkpoint; 0 = none.
        redone_seconds: of training since that checkpoint.
        restart_seconds: that the next start took up to its first step.
    """

    after_step: int
    kept_step: int
    redone_seconds: float
    restart_seconds: float = 0.0

    @property
    def lost_seconds(self) -> float:
        return self.redone_seconds + self.restart_seconds


def save_material(folder: Path, num_rows: int = 80) -> None:
    """Write a tiny model, its tokenizer and its data."""
    save_tiny_model(folder / "model", vocab_size=160)
    save_word_tokenizer(folder / "model", [f"w{i}" for i in range(140)])
    rng = random.Random(0)
    rows = [{key: _words(rng) for key in ("instruction", "output")} for _ in range(num_rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _words(rng: random.Random) -> str:
    return " ".join(f"w{rng.randrange(140)}" for _ in range(rng.randint(1, 12)))


def subject(folder: Path, name: str, num_steps: int, parent: Path | None = None, **changes: Any) -> Subject:
    """Write a configuration.

    Args:
        folder: that has the material.
        name: of the run.
        parent: of its output_dir, where that is another folder.
        changes: to the keys.
    """
    output = (parent or folder) / name
    values = {
        "model": str(folder / "model"),
        "output_dir": str(output),
        "datasets": [{"path": str(folder / "rows.jsonl")}],
        "eval_steps": 50,
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": num_steps,
        "save_steps": 5,
        "save_total_limit": 3,
        "learning_rate": 0.01,
        "lora_dropout": 0.1,
        **changes,
    }
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(values))
    return Subject(config=config, output=output, num_steps=num_steps)


@contextmanager
def started(run: Subject, preexec: Any = None) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a process group of its own, and kill that at the end where it is still there.

    What it prints goes to a file beside the configuration.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "sft", str(run.config)]
    with run.config.with_suffix(".log").open("w") as file:
        process = subprocess.Popen(
            command, env=env, text=True, stdout=file, stderr=file, start_new_session=True, preexec_fn=preexec
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def printed(run: Subject) -> str:
    """What the last start printed."""
    return run.config.with_suffix(".log").read_text()


def run_to_the_end(run: Subject) -> None:
    """Run the command; it must succeed and find nothing damaged."""
    with started(run) as process:
        code = process.wait(timeout=DEADLINE_SECONDS)
    assert code == 0 and "damaged" not in printed(run), printed(run)


def run_undisturbed(run: Subject) -> Pace:
    """Run the command to its end and take its pace."""
    began = time.time()
    with started(run) as process:
        first = _wait_for_first_step(run, process)
        assert process.wait(timeout=DEADLINE_SECONDS) == 0, printed(run)
    ended = time.time()
    last = run.output / "checkpoints" / f"step_{run.num_steps}" / MANIFEST
    step_seconds = (last.stat().st_mtime - first) / run.num_steps
    return Pace(seconds=ended - began, start_seconds=first - began, step_seconds=step_seconds)


def losses(output: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step; a step that stands there twice is refused."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    records = [record for record in records if "train/loss" in record]
    found = {r["step"]: (r["train/loss"], r["train/grad_norm"]) for r in records}
    assert len(found) == len(records), "a step stands twice in metrics.jsonl"
    return found


def _wait_for_first_step(run: Subject, process: subprocess.Popen[str]) -> float:
    """Wait until this start has done a step, or has ended; return the time."""
    deadline = time.time() + DEADLINE_SECONDS
    while process.poll() is None and not re.search(r"^step \d+/", printed(run), re.MULTILINE):
        assert time.time() < deadline, printed(run)
        time.sleep(0.005)
    return time.time()


def kill_again_and_again(run: Subject, num_kills: int, pace: Pace, rng: random.Random) -> Iterator[Death]:
    """Start the command and kill it at a random moment, up to num_kills times; ends early where the run does.

    A death knows what the next start took once the next one has come.
    """
    last: Death | None = None
    for left in range(num_kills, 0, -1):
        kept = newest_step(run.output)
        began, first = time.time(), None
        with started(run) as process:
            if rng.random() < SHARE_OF_EARLY_KILLS:
                time.sleep(rng.uniform(0, pace.start_seconds))
            else:
                first = _wait_for_first_step(run, process)
                steps = rng.uniform(0, 2 * (run.num_steps - kept) / (left + 2))  # not past the end
                time.sleep(steps * pace.step_seconds)
            if process.poll() is not None:
                assert process.returncode == 0, printed(run)
                break
        died = time.time()
        if last:
            last.restart_seconds = (first or died) - began
        last = _examined(run, first or died, died)
        assert "damaged" not in printed(run) and "Traceback" not in printed(run), printed(run)
        yield last


def _examined(run: Subject, first: float, died: float) -> Death:
    check_nothing_is_half_written(run.output)
    kept = newest_step(run.output)
    saved = (run.output / "checkpoints" / f"step_{kept}" / MANIFEST).stat().st_mtime if kept else 0.0
    after = max(losses(run.output), default=0)
    return Death(after_step=after, kept_step=kept, redone_seconds=died - max(saved, first))


def newest_step(output: Path) -> int:
    """The newest checkpoint by name, 0 where there is none."""
    return max(RunFolder(output).checkpoints.steps(), default=0)


def check_nothing_is_half_written(output: Path) -> None:
    """Every checkpoint by name is whole, `latest` is one of them, and every JSON file can be read."""
    store = RunFolder(output).checkpoints
    for step in store.steps():
        assert damage(store.folder(step)) is None, f"step_{step}: {damage(store.folder(step))}"
    latest = store.path / "latest"
    assert not latest.is_symlink() or latest.exists(), "latest leads nowhere"
    for path in output.glob("*.json"):
        json.loads(path.read_text())


def check_same_end(run: Subject, whole: Subject) -> None:
    """The run has the metrics and the weights of the undisturbed one, bit for bit."""
    assert losses(run.output) == losses(whole.output) and len(losses(run.output)) == whole.num_steps
    got, expected = (load_file(r.output / "adapter" / "adapter_model.safetensors") for r in (run, whole))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
