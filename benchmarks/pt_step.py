"""Tokens per second of pretraining steps against a plain transformers + torch loop, in one process, as a ratio.

    python benchmarks/pt_step.py [--model configs/pt/llama-0.9m] [--rows 16] [--sequence_len 256] [--steps 40]

Both sides train the same random weights on the same speeches (tests/data), cut into full rows, with AdamW in float32
(bfloat16 on a GPU), clipping and a schedule. Ours is the whole of `surogate pt` around a step: Lightning's trainer, the
loader, packing, metrics. The plain loop has its batches ready as tensors and does nothing but train. The sides take
turns; the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from surogate.batches import TokenRow
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.data.ledger import Walk, WalkSpec
from surogate.data.row_store import RowStore
from surogate.data.step_batches import Share, StepBatchDataset, StepBatchLoader, StepPlanSampler
from surogate.models.load import load_model
from surogate.modes import PtModule
from surogate.precision import RecipePrecision

REPOSITORY = Path(__file__).parents[1]
WARM_UP_STEPS = 5


def rows_of(arguments: argparse.Namespace, vocab_size: int) -> list[TokenRow]:
    """Full rows: bytes of the committed speeches as tokens, repeated as often as needed."""
    text = b"".join(path.read_bytes() for path in sorted((REPOSITORY / "tests/data").glob("sotu-*.txt")))
    count = arguments.rows * (arguments.steps + WARM_UP_STEPS)
    spread = np.frombuffer(text, np.uint8).astype(np.int32) * 7919 % vocab_size
    tokens = np.resize(spread, count * arguments.sequence_len)
    return [TokenRow(row, np.ones(len(row), bool)) for row in np.split(tokens, count)]


def ours(spec: ModelSpec, rows: list[TokenRow], arguments: argparse.Namespace) -> float:
    """Seconds of the steps after the warm-up, by Lightning's trainer on our loader."""
    store = RowStore.build(rows)
    walk_spec = WalkSpec(sequence_len=arguments.sequence_len, packing=True, seed=0, weights=None)
    walk = Walk([store.lengths], {"rows": store.fingerprint}, walk_spec)
    plans = StepPlanSampler(walk, lambda: walk.start(0, arguments.rows), Share(1, 0, arguments.rows))
    clock = Clock(arguments.steps)
    trainer = pl.Trainer(
        max_steps=arguments.steps + WARM_UP_STEPS,
        plugins=[RecipePrecision()],
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PtModule(spec, LoraSpec(enabled=False), OptimSpec(name="adamw"))
    trainer.fit(module, StepBatchLoader(StepBatchDataset([store], 0), plans, num_workers=0))
    return clock.seconds


class Clock(pl.Callback):
    """Measures from the end of the warm-up to the end."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == WARM_UP_STEPS:
            self.started = now()
        elif trainer.global_step == WARM_UP_STEPS + self.steps:
            self.seconds = now() - self.started


def plain(spec: ModelSpec, rows: list[TokenRow], arguments: argparse.Namespace) -> float:
    """The same by transformers and torch alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_model(spec, device).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=arguments.steps + WARM_UP_STEPS)
    started = 0.0
    for number, ids in enumerate(batches(rows, arguments.rows, device)):
        if number == WARM_UP_STEPS:
            started = now()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return now() - started


def batches(rows: list[TokenRow], size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Stack rows in their order."""
    ids = torch.from_numpy(np.stack([row.input_ids for row in rows])).long()
    return (batch.to(device) for batch in ids.split(size))


def now() -> float:
    """Return the time once the device has done what it was handed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "configs/pt/llama-0.9m"))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--sequence_len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    spec = ModelSpec(source=arguments.model, from_scratch=True, dtype=dtype, recompute=False)  # type: ignore[arg-type]
    rows = rows_of(arguments, json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"])
    sides = {"surogate": ours, "transformers_torch": plain}
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(arguments.repeats):
        for name, side in sides.items():
            best[name] = min(best[name], side(spec, rows, arguments))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)
    tokens = arguments.rows * arguments.sequence_len * arguments.steps
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lightning")},
        "model": Path(arguments.model).name,
        "dtype": dtype,
        "tokens_per_step": arguments.rows * arguments.sequence_len,
        "tokens_per_second": {name: round(tokens / seconds) for name, seconds in best.items()},
        "ratio": round(best["transformers_torch"] / best["surogate"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
