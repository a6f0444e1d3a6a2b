"""Run one step on two gloo ranks and write rank 0's metrics: `two_ranks.py MODEL_FOLDER OUT.json`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from support.tiny import Recorder, quiet_trainer, random_rows, step_batch
from torch.utils.data import DataLoader

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes import SftModule


def main(model_folder: str, out: str) -> None:
    torch.set_num_threads(1)
    rows = random_rows(8, seed=1)
    shares = [step_batch([[rows[:2]], [rows[2:7]]]), step_batch([[rows[7:]], []])]
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.manual_seed(0)
    module = SftModule(
        ModelSpec(source=model_folder, recompute=True),
        LoraSpec(rank=4, alpha=8.0, dropout=0.0),
        OptimSpec(name="adamw", learning_rate=5e-3, schedule="constant", weight_decay=0.0),
    )
    recorder = Recorder()
    trainer = quiet_trainer(recorder, devices=2, strategy="ddp", use_distributed_sampler=False)
    trainer.fit(module, DataLoader([shares[rank]], batch_size=None))
    if trainer.is_global_zero:
        Path(out).write_text(json.dumps(recorder.steps[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
