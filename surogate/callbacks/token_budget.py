"""TokenBudget: as many epochs as make a compute-optimal number of tokens.

The one idea: for a given amount of compute a model trained from the start is best with about 20 tokens for each of its
parameters (Hoffmann et al., "Training Compute-Optimal Large Language Models", arXiv:2203.15556, table 3).
"""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

_say, _warn = rank_zero_only(log.info), rank_zero_only(log.warning)

TOKENS_PER_PARAMETER = 20

EPOCHS_OF_USE = 4
"""Passes over the same tokens that are worth almost as much as new ones (Muennighoff et al., arXiv:2305.16264)."""


class TokenBudget(pl.Callback):
    """Set the number of epochs; whoever starts the run asks for it before the training begins."""

    def set_epochs(self, trainer: pl.Trainer, num_parameters: int, data: Any) -> None:
        """Replace the trainer's number of epochs.

        Args:
            trainer: before fit; its max_epochs is what the configuration says.
            num_parameters: of the model.
            data: the data module, set up.
        """
        tokens = sum(part["tokens"] * part["passes_per_epoch"] for part in data.data_summary()["train"])
        budget = TOKENS_PER_PARAMETER * num_parameters
        epochs = max(1, math.ceil(budget / tokens))
        _say(
            "epoch_adjustment: %s tokens (%d for each of %s parameters) are %d epochs of %s tokens; num_epochs was %s.",
            *(f"{budget:,}", TOKENS_PER_PARAMETER, f"{num_parameters:,}", epochs, f"{tokens:,.0f}", trainer.max_epochs),
        )
        if epochs > EPOCHS_OF_USE:
            _warn(
                "epoch_adjustment: %d epochs are many. After about %d passes over the same tokens a model gains little "
                "and learns them by heart; add data, or set num_epochs yourself.",
                *(epochs, EPOCHS_OF_USE),
            )
        trainer.fit_loop.max_epochs = epochs
