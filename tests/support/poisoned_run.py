"""Train on rows of which some break the loss: `poisoned_run.py CONFIG.yaml`.

A row that holds the word `poison` makes the loss of its micro-batch NaN; `thorn` multiplies it by 50; a batch with
`nap` takes the loader four seconds longer.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from support.word_tokenizer import COMMON_WORDS

from surogate.cli.main import main
from surogate.data.step_batches import StepBatchDataset
from surogate.modes import SftModule
from surogate.modes.base import MicroSums

WORDS = ("poison", "thorn", "nap")
FACTORS = (float("nan"), 50.0, 1.0)
NAP_SECONDS = 4.0


def micro_loss_of(plain: Any, ids: dict[str, int]) -> Any:
    """Return the loss of a micro-batch as it is with words that break it."""

    def micro_loss(self: Any, micro_batch: Any) -> MicroSums:
        sums = plain(self, micro_batch)
        factor = 1.0
        for word, of_word in zip(WORDS, FACTORS, strict=True):
            if self.model.training and torch.any(micro_batch.input_ids_BT == ids[word]):
                factor *= of_word
        return MicroSums(sums.loss * factor, sums.num_correct)

    return micro_loss


def poisoned(words: list[str]) -> Any:
    """Return SftModule.micro_loss for a word tokenizer over `words`."""
    vocabulary = [*COMMON_WORDS, *words]
    return micro_loss_of(SftModule.micro_loss, {word: vocabulary.index(word) for word in WORDS})


def napping(plain: Any, nap_id: int) -> Any:
    """Return StepBatchDataset.__getitem__ as it is with a row that takes its time."""

    def get(self: Any, plan: Any) -> Any:
        step_batch = plain(self, plan)
        if any(torch.any(micro_batch.input_ids_BT == nap_id) for micro_batch in step_batch.micro_batches):
            time.sleep(NAP_SECONDS)
        return step_batch

    return get


if __name__ == "__main__":
    words = [f"w{i}" for i in range(40)] + list(WORDS)
    SftModule.micro_loss = poisoned(words)  # type: ignore[method-assign]
    StepBatchDataset.__getitem__ = napping(  # type: ignore[method-assign]
        StepBatchDataset.__getitem__, len(COMMON_WORDS) + words.index("nap")
    )
    torch.set_num_threads(1)
    raise SystemExit(main(["sft", sys.argv[1]]))
