"""Where the time of a GRPO step goes, strictly on-policy and one step ahead.

    python benchmarks/grpo_step.py --steps 8

Runs `surogate grpo` with configs/grpo/arithmetic, without evaluation, and prints means over the steps after the first:
seconds of generation, reward, update, weight exchange and waiting, the step, its ratio to the longer of generation and
update, and the share of the step that is none of generate, score, train and sync. On a CPU engine and trainer share the
cores, so running ahead cannot be expected to save time there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import yaml

CONFIGS = Path("configs/grpo/arithmetic")
PARTS = ("generate", "score", "train", "sync")


def main() -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("output/grpo-step"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    print("| max_async_level | generate | score | train | sync | wait | step | step / longer of two | elsewhere |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for level in options.levels:
        folder = options.output_dir / f"level-{level}"
        paths = {"train": CONFIGS / "train.yaml", "infer": CONFIGS / "infer.yaml", "orch": without_evaluation(options)}
        files = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        overrides = {
            "train.output_dir": folder,
            "train.resume_from_checkpoint": "false",
            "train.max_async_level": level,
            "orch.max_steps": options.steps,
        }
        changes = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        subprocess.run([sys.executable, "-m", "surogate", "grpo", *files, *changes], check=True)
        print(_row(level, folder / "metrics.jsonl"), flush=True)
    return 0


def without_evaluation(options: argparse.Namespace) -> Path:
    """Write orch.yaml without its evaluation, and return where."""
    values = yaml.safe_load((CONFIGS / "orch.yaml").read_text(encoding="utf-8"))
    path: Path = options.output_dir / "orch.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if key != "eval"}), encoding="utf-8")
    return path


def _row(level: int, metrics: Path) -> str:
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "speed/step_seconds" in record][1:]
    mean = {
        name: fmean(step[f"speed/{name}_seconds"] for step in steps) for name in (*PARTS, "wait_for_rollouts", "step")
    }
    # What overlaps is not elsewhere: one step ahead, only what the trainer itself does and waits for is in its step.
    inside = mean["train"] + mean["sync"] + (mean["wait_for_rollouts"] if level else mean["generate"] + mean["score"])
    values = [*(mean[name] for name in PARTS), mean["wait_for_rollouts"], mean["step"]]
    ratio = mean["step"] / max(mean["generate"], mean["train"])
    shown = " | ".join(f"{value:.2f} s" for value in values)
    return f"| {level} | {shown} | {ratio:.2f} | {max(0.0, 1 - inside / mean['step']):.1%} |"


if __name__ == "__main__":
    sys.exit(main())
