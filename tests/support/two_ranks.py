"""Run steps on two gloo ranks and write rank 0's metrics of the last: `two_ranks.py MODEL_FOLDER OUT.json KIND`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from support.tiny import Recorder, quiet_trainer, random_rows, step_batch
from torch.utils.data import DataLoader

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes import SftModule
from surogate.precision import RecipePrecision


def module_of(kind: str, model_folder: str) -> SftModule:
    """The module to train: `adapter`, `weights`, `master weights`, which are float64 here, or `fp8 weights`."""
    optim = OptimSpec(name="adamw", learning_rate=5e-3, schedule="constant", weight_decay=0.0)
    if kind == "master weights":
        optim = replace(optim, master_dtype="float64")  # type: ignore[arg-type]  # wider than any that a user may set
    model = ModelSpec(source=model_folder, recompute=kind == "adapter")
    return SftModule(model, LoraSpec(rank=4, alpha=8.0, dropout=0.0, enabled=kind == "adapter"), optim)


def main(model_folder: str, out: str, kind: str) -> None:
    torch.set_num_threads(1)
    rows = random_rows(8, seed=1)
    shares = [step_batch([[rows[:2]], [rows[2:7]]]), step_batch([[rows[7:]], []])]
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.manual_seed(0)
    module = module_of(kind, model_folder)
    recorder = Recorder()
    plugin = RecipePrecision("fp8_hybrid", {"emulate": True}) if kind == "fp8 weights" else RecipePrecision()
    num_steps = 3 if kind == "fp8 weights" else 1  # of which the second is the first with scales from a history
    trainer = quiet_trainer(recorder, devices=2, strategy="ddp", use_distributed_sampler=False, plugins=[plugin])
    trainer.fit(module, DataLoader([shares[rank]] * num_steps, batch_size=None))
    if trainer.is_global_zero:
        Path(out).write_text(json.dumps(recorder.steps[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
