"""TextSamples: what a pretrained model writes when the run is over, beside what it was given to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from typing_extensions import override

from surogate.modes.sharding import ShardedStrategy
from surogate.run_folder import RunFolder

OPENING_LEN = 16
CONTINUATION_LEN = 64


class TextSamples(pl.Callback):
    """Continue the openings of held-out rows, print the texts, and write them to samples.txt.

    Args:
        folder: output_dir of the run.
        num_samples: openings to continue, spread over the rows.
        temperature: of sampling; a small model repeats itself where only the likeliest token is taken.
        seed: of sampling.
    """

    def __init__(self, folder: str, num_samples: int = 3, temperature: float = 0.7, seed: int = 1234) -> None:
        self._path = RunFolder(folder).samples_txt
        self.num_samples, self.temperature, self.seed = num_samples, temperature, seed

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sharded = isinstance(trainer.strategy, ShardedStrategy)  # no rank can continue a text alone
        if not trainer.is_global_zero and not sharded:
            return
        console = Console(stderr=True, highlight=False)
        texts = []
        for opening, continuation in self._samples(trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            if trainer.is_global_zero:
                console.print(f"\n{opening}", markup=False, style="dim", end="")
                console.print(continuation, markup=False)
            texts.append(f"{opening}|{continuation}")
        if trainer.is_global_zero:
            self._path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")

    def _samples(self, data: Any, module: Any) -> Iterator[tuple[str, str]]:
        tokenizer = data.tokenizer
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for ids in self._openings(data):
                new_ids = module.continue_ids(ids, {tokenizer.eos_token_id}, CONTINUATION_LEN, self.temperature)
                # Decoded together: the cut between them may lie within a character.
                opening = tokenizer.decode(ids).rstrip("\ufffd")
                yield opening, tokenizer.decode(ids + new_ids, skip_special_tokens=True)[len(opening) :]

    def _openings(self, data: Any) -> Iterator[list[int]]:
        stores = list((data.validation_stores or data.train_stores).values())
        for number in range(self.num_samples):
            store = stores[number % len(stores)]
            candidates = np.flatnonzero(store.lengths > OPENING_LEN)
            if len(candidates):
                row = int(candidates[(number // len(stores)) * len(candidates) // self.num_samples])
                yield store[row].input_ids[:OPENING_LEN].tolist()
