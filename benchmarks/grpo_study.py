"""Does GRPO learn? The quickstart's run in three seeds: strictly on-policy, one step ahead, and over an NF4 base.

    python benchmarks/grpo_study.py --output_dir output/grpo-study

Each run is `surogate quickstart-grpo` with an override or two; a run that is finished is not done again. Printed are,
for each run, the share of right answers to held-out questions before and after with the 95 % interval of the gain, and
the mean reward of each step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from surogate.quickstart import rewards
from surogate.quickstart.score import gain
from surogate.run_folder import RunFolder, read_json

VARIANTS = {
    "on-policy": [],
    "one step ahead": ["--train.max_async_level", "1"],
    "NF4 base": ["--train.qlora_bnb", "true"],
}


def main() -> int:
    """Run what is not finished, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("output/grpo-study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    rows, curves = [], []
    for variant in options.variants:
        for seed in options.seeds:
            run = RunFolder(options.output_dir / f"{variant.replace(' ', '-')}-{seed}")
            command = [sys.executable, "-m", "surogate", "quickstart-grpo", "--seed", str(seed)]
            subprocess.run([*command, "--output_dir", str(run.path), *VARIANTS[variant]], check=True)
            rows.append(_row(variant, seed, run))
            curves.append(_curve(variant, seed, run))
    print("\n| variant | seed | before | after | gain, 95 % interval | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    print("\nMean reward of each step:\n")
    print("\n".join(curves))
    return 0


def _row(variant: str, seed: int, run: RunFolder) -> str:
    before, after = rewards.first_and_last(run)
    right = [[row["reward"] == 1 for row in rows] for rows in (before, after)]
    result = gain(*right, [row["example"] for row in before])
    interval = f"{100 * (result.after - result.before):+.0f} ({100 * result.low:+.0f} to {100 * result.high:+.0f})"
    seconds = read_json(run.path / "quickstart" / "training.json").get("seconds", float("nan"))
    return f"| {variant} | {seed} | {result.before:.0%} | {result.after:.0%} | {interval} | {seconds:.0f} |"


def _curve(variant: str, seed: int, run: RunFolder) -> str:
    lines = map(json.loads, run.metrics_jsonl.read_text(encoding="utf-8").splitlines())
    values = [f"{line['rl/reward/mean']:.2f}" for line in lines if line.get("rl/reward/mean") is not None]
    return f"{variant}, seed {seed}: {' '.join(values)}"


if __name__ == "__main__":
    sys.exit(main())
