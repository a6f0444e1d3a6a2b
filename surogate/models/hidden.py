"""The model's last hidden states, and its head, apart: so that logits never exist for all tokens at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surogate.batches import MicroBatch
from surogate.models.attention import attention_kwargs


def base_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model (or the model itself)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(model: Any) -> Any:
    """Return the part of a causal language model that gives hidden states."""
    base = base_model(model)
    # The text models of multimodal families name the prefix of the whole, so they find themselves instead of a part.
    return base.base_model if base.base_model is not base else base.model


def forward_hidden(model: Any, micro_batch: MicroBatch) -> Tensor:
    """Run the decoder without its head.

    Args:
        model: a transformers causal language model or a PEFT model of one.
        micro_batch: on the model's device.

    Returns:
        Hidden states after the final norm, (B, T, hidden), in the compute dtype.
    """
    output = _decoder(model)(
        input_ids=micro_batch.input_ids_BT,
        position_ids=micro_batch.position_ids_BT,
        use_cache=False,
        **attention_kwargs(micro_batch),
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def forward_supervised(model: Any, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Run the decoder and keep what is supervised: of a chat sample that is often a tenth of the tokens.

    Args:
        model: as for forward_hidden.
        micro_batch: on the model's device.

    Returns:
        Hidden states of the supervised positions, (N, hidden), and their labels, (N,).
    """
    hidden_ND = forward_hidden(model, micro_batch).flatten(0, 1).index_select(0, micro_batch.loss_positions)
    return hidden_ND, micro_batch.labels_BT.flatten().index_select(0, micro_batch.loss_positions)


@dataclass(frozen=True, slots=True)
class Head:
    """The map from hidden states to logits: `softcap(scale * projection(hidden))`.

    Attributes:
        projection: usually the `nn.Linear` of the LM head; an adapted head is a module of PEFT.
        vocab_size: logits of a token.
        scale: multiplies the logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        softcap: Gemma 2's final_logit_softcapping, in logits; None where there is none.
    """

    projection: nn.Module
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """Read the head of a causal language model."""
        base = base_model(model)
        config = base.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(base.get_output_embeddings(), base.get_input_embeddings().num_embeddings, scale, softcap)

    @property
    def shapes(self) -> bool:
        """Whether anything happens to the logits after the projection."""
        return self.scale != 1.0 or self.softcap is not None

    @property
    def linear(self) -> nn.Linear | None:
        """The plain linear layer behind the projection, or None where the projection is more than that."""
        projection: Any = self.projection
        if hasattr(projection, "modules_to_save"):  # PEFT's wrapper around a module that trains whole
            projection = projection.modules_to_save[projection.active_adapter]
        return projection if type(projection) is nn.Linear else None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return (N, vocabulary) logits, in float32."""
        return self.shape_logits(self.projection(hidden_ND).float())

    def shape_logits(self, logits_NV: Tensor) -> Tensor:
        """Apply scale and soft cap to raw logits."""
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


@torch.no_grad()
def head_error(model: Any, device: torch.device) -> float:
    """Measure how far `Head.of(model)` is from the model's own logits, relative to their size.

    A model that shapes its logits in a way unknown here must be refused, not trained on a wrong loss.
    """
    from surogate.batches import PackedRow, TokenRow

    ids = (torch.arange(1, 7) * 7919 % base_model(model).config.get_text_config().vocab_size).numpy().astype("int32")
    was_training = model.training
    model.eval()
    batch = MicroBatch.collate([PackedRow.from_rows([TokenRow(ids, ids > -1)])], pad_token_id=0).to(device)
    ours = Head.of(model).logits(forward_hidden(model, batch)[0])
    theirs = (
        model(
            input_ids=batch.input_ids_BT,
            position_ids=batch.position_ids_BT,
            use_cache=False,
            **attention_kwargs(batch),
        )
        .logits[0]
        .float()
    )
    model.train(was_training)
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
