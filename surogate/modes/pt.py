"""Pretraining: cross entropy on every token of plain text."""

from __future__ import annotations

from typing import Literal

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes.sft import SftModule


class PtModule(SftModule):
    """Pretraining and continued pretraining of a causal language model.

    The loss is that of supervised fine-tuning: which tokens are targets is the data's business, and of text it is all.
    What differs is the default: the model's own weights train.

    Args:
        model: which weights, or with from_scratch the configuration of random ones.
        lora: an adapter instead, for a cheap adaptation to a domain.
        optim: optimizer, schedule, clipping.
        lmhead_chunks: as in SftModule.
    """

    def __init__(
        self,
        model: ModelSpec = ModelSpec(),  # noqa: B008  frozen
        lora: LoraSpec = LoraSpec(enabled=False),  # noqa: B008
        optim: OptimSpec = OptimSpec(),  # noqa: B008
        lmhead_chunks: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(model, lora, optim, lmhead_chunks)
