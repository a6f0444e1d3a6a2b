"""What storing the base in fewer bits costs: held-out loss of the quickstart's run in each format, in three seeds.

    python benchmarks/qlora_study.py [--seeds 0 1 2] [--formats bf16 nf4 fp8 nvfp4]

Each run is `surogate sft configs/sft/quickstart.yaml` in a process of its own, with one key more. The quickstart's
weights come from a Q4_1 file, so here every format quantises weights that have been quantised before. A run that is
there is not run again. Prints a table, and the mean curves as the picture for docs/guides/qlora.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from surogate.locations import resolve
from surogate.quickstart import factbook

CONFIG = Path("configs/sft/quickstart.yaml")
OUTPUT = Path("output/qlora-study")
KEYS = {"bf16": None, "nf4": "qlora_bnb", "fp8": "qlora_fp8", "nvfp4": "qlora_fp4"}
NUM_HELD_OUT_COUNTRIES = 60
CURVE_WINDOW = 4
"""Steps that a point of the picture is the mean of."""


def write_data(seed: int) -> Path:
    """Write the quickstart's two data sets of a seed."""
    folder = OUTPUT / f"data-{seed}"
    questions = factbook.read_questions(Path(resolve(factbook.LOCATION)))
    training, held_out = factbook.split_by_country(questions, NUM_HELD_OUT_COUNTRIES, seed)
    folder.mkdir(parents=True, exist_ok=True)
    factbook.write_jsonl(folder / "train.jsonl", training)
    factbook.write_jsonl(folder / "held_out.jsonl", held_out)
    return folder


def run(format_name: str, seed: int) -> Path:
    """Train, or find the run finished; return its metrics."""
    data, folder = write_data(seed), OUTPUT / f"{format_name}-{seed}"
    values = {
        "output_dir": folder,
        "train_seed": seed,
        "logging_steps": 1,
        "datasets.0.path": data / "train.jsonl",
        "validation_datasets.0.path": data / "held_out.jsonl",
    }
    if key := KEYS[format_name]:
        values[key] = "true"
    overrides = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "surogate", "sft", str(CONFIG), *overrides], check=True)
    return folder / "metrics.jsonl"


def read(metrics: Path, key: str) -> list[float]:
    """Return all values of a metric, in order."""
    return [row[key] for row in map(json.loads, metrics.read_text().splitlines()) if key in row]


def picture(curves: dict[str, list[float]]) -> str:
    """Draw curves as a Mermaid chart."""
    points = [
        {name: mean(curve[i : i + CURVE_WINDOW]) for name, curve in curves.items()}
        for i in range(0, len(next(iter(curves.values()))) - CURVE_WINDOW + 1, CURVE_WINDOW)
    ]
    highest = max(max(point.values()) for point in points)
    steps = ", ".join(str(CURVE_WINDOW * (i + 1)) for i in range(len(points)))
    lines = [f"    line [{', '.join(f'{point[name]:.3f}' for point in points)}]" for name in curves]
    head = ["xychart-beta", f"    x-axis step [{steps}]", f'    y-axis "training loss" 0 --> {highest:.1f}']
    return "\n".join([*head, *lines])


def main() -> None:
    """Run what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--formats", nargs="+", default=list(KEYS), choices=list(KEYS))
    options = parser.parse_args()
    files = {(name, seed): run(name, seed) for seed in options.seeds for name in options.formats}
    held_out = {case: read(file, "val/loss")[-1] for case, file in files.items()}
    for name in options.formats:
        losses = [held_out[name, seed] for seed in options.seeds]
        against = [held_out[name, seed] - held_out[options.formats[0], seed] for seed in options.seeds]
        shown = " | ".join(f"{loss:.4f}" for loss in losses)
        print(f"| {name} | {shown} | {mean(losses):.4f} | {mean(against):+.4f} |")
    curves = {
        name: [
            mean(losses) for losses in zip(*(read(files[name, s], "train/loss") for s in options.seeds), strict=True)
        ]
        for name in options.formats
    }
    print(picture(curves))


if __name__ == "__main__":
    main()
