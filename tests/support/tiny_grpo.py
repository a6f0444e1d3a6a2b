"""A GRPO run that takes seconds: a model of 95 thousand parameters that is rewarded for lower-case letters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from support.byte_model import save_byte_model

REWARD = """
def letters(completions, **columns):
    return [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]
"""
NUM_PROMPTS = 48


def write_files(
    folder: Path,
    train: dict[str, Any] | None = None,
    orch: dict[str, Any] | None = None,
    infer: dict[str, Any] | None = None,
) -> list[str]:
    """Write model, reward, prompts and the three files; return the options that name them.

    Args:
        folder: gets all of them; model, reward and prompts stay where they are there already.
        train, orch, infer: keys on top of those of the usual run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        save_byte_model(folder / "model")
        (folder / "rewards.py").write_text(REWARD)
        rows = [json.dumps({"prompt": f"{number:02} says:"}) for number in range(NUM_PROMPTS)]
        (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    environment = {
        "id": f"{folder / 'rewards.py'}:letters",
        "name": "letters",
        "args": {"path": str(folder / "prompts.jsonl"), "prompt": "plain"},
    }
    files: dict[str, dict[str, Any]] = {
        "train": {
            "model": str(folder / "model"),
            "output_dir": str(folder / "run"),
            "sequence_len": 256,
            "lora_rank": 8,
            "lora_alpha": 16,
            "optimizer": "adamw",
            "learning_rate": 3e-2,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "recompute": False,
            "max_async_level": 0,
            "save_steps": 2,
            **(train or {}),
        },
        "infer": {"max_num_seqs": 64, "kv_cache_gib": 0.0625, **(infer or {})},
        "orch": {
            "env": [environment],
            "batch_size": 64,
            "rollouts_per_example": 16,
            "seq_len": 64,
            "max_steps": 8,
            "sampling": {"max_tokens": 24},
            **(orch or {}),
        },
    }
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return [part for name in files for part in (f"--{name}", str(folder / f"{name}.yaml"))]


def command(*arguments: str) -> list[str]:
    """The command line of surogate in this interpreter."""
    return [sys.executable, "-m", "surogate", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run surogate to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps, evaluations left out, under the names that the step itself gives them."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "rl/reward/mean" in line]
    return [{_step_name(name): value for name, value in step.items()} for step in steps]


def _step_name(name: str) -> str:
    """What a step calls a number of metrics.jsonl."""
    if name.startswith("speed/") and name.endswith("_seconds"):
        return f"time/{name.removeprefix('speed/').removesuffix('_seconds')}"
    return name.removeprefix("rl/")


def trained_examples(run_dir: Path) -> list[str]:
    """The examples of all groups that a run has trained on, step by step."""
    names: list[str] = []
    for path in sorted((run_dir / "rollouts").glob("step_*.jsonl")):
        rows = [json.loads(line)["example"] for line in path.read_text().splitlines()]
        names += sorted(set(rows))
    return names
