"""Supervised fine-tuning: cross entropy on the tokens that the data marks as targets."""

from __future__ import annotations

from typing import Literal

from typing_extensions import override

from surogate.batches import MicroBatch
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.losses.nll import linear_nll, module_nll, piece_len
from surogate.models.hidden import Head, forward_supervised
from surogate.modes.base import CausalLMModule, MicroSums


class SftModule(CausalLMModule):
    """Supervised fine-tuning of a causal language model.

    Args:
        model: which weights.
        lora: the adapter on top of them.
        optim: optimizer, schedule, clipping.
        lmhead_chunks: pieces in which the supervised tokens go through the LM head; `auto` bounds the memory of logits.
    """

    def __init__(
        self,
        model: ModelSpec = ModelSpec(),  # noqa: B008  frozen
        lora: LoraSpec = LoraSpec(),  # noqa: B008
        optim: OptimSpec = OptimSpec(),  # noqa: B008
        lmhead_chunks: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(model, lora, optim)
        self.lmhead_chunks = lmhead_chunks

    @override
    def micro_loss(self, micro_batch: MicroBatch) -> MicroSums:
        hidden_ND, labels_N = forward_supervised(self.model, micro_batch)
        head = Head.of(self.model)
        if head.linear is not None:
            shape = head.shape_logits if head.shapes else None
            return MicroSums(*linear_nll(hidden_ND, head.linear, labels_N, shape, self.lmhead_chunks))
        step = piece_len(len(labels_N), head.vocab_size, self.lmhead_chunks, hidden_ND.device.type)
        return MicroSums(*module_nll(hidden_ND, head.logits, labels_N, step))
