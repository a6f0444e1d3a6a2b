"""Small models, batches and trainers that tests share. Everything is seeded and made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from surogate.batches import MicroBatch, PackedRow, StepBatch, TokenRow
from surogate.precision import RecipePrecision

VOCAB = 96


def tiny_config(**changes: Any) -> LlamaConfig:
    """A Llama with grouped-query attention, small enough for a unit test."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**values, **changes})


def save_tiny_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random model as a folder with safetensors."""
    torch.manual_seed(seed)
    LlamaForCausalLM(tiny_config(**changes)).save_pretrained(folder)
    return folder


def random_rows(count: int, seed: int = 0, low: int = 5, high: int = 30) -> list[TokenRow]:
    """Rows of random tokens and lengths whose second half (at least one token) is supervised."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(low, high, count):
        mask = np.arange(length) >= rng.integers(1, length)
        rows.append(TokenRow(rng.integers(0, VOCAB, length).astype(np.int32), mask))
    return rows


def step_batch(micro_rows: Sequence[Sequence[Sequence[TokenRow]]]) -> StepBatch:
    """A step from nested rows: micro-batches of packed rows of rows."""
    micro_batches = [MicroBatch.collate([PackedRow.from_rows(p) for p in packs], 0) for packs in micro_rows]
    return StepBatch(micro_batches=tuple(micro_batches))


class Recorder(pl.Callback):
    """Keeps the step metrics of every step as floats."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.steps.append({key: float(value) for key, value in module.step_metrics.items()})


def quiet_trainer(recorder: pl.Callback, **changes: Any) -> pl.Trainer:
    """A Trainer for one epoch on the CPU that writes and prints nothing."""
    values: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "callbacks": [recorder],
        "plugins": [RecipePrecision()],
    }
    return pl.Trainer(**{**values, **changes})


def fit(
    module: pl.LightningModule, batches: Sequence[StepBatch], recorder: Recorder | None = None, **trainer_args: Any
) -> list[dict[str, float]]:
    """Train one step a batch on the CPU and return the metrics of each."""
    recorder = recorder or Recorder()
    quiet_trainer(recorder, **trainer_args).fit(module, DataLoader(list(batches), batch_size=None))
    return recorder.steps
