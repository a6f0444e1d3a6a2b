"""What a model must satisfy before its first step, so that it does not train on a wrong loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models import lora
from surogate.models.hidden import base_model, head_error
from surogate.models.stacks import locate_adapter

HEAD_TOLERANCE = 2e-2
"""Largest relative difference between our head's logits and the model's own; bfloat16 rounding stays under it."""


def check_trained_dtype(model: nn.Module, source: str, master_dtype: str | None) -> None:
    """Refuse weights that train in float16 without a wider copy."""
    is_half = any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad)
    if is_half and master_dtype is None:
        raise ModelError(
            f"The weights of {source} are float16, and the optimizer's steps vanish in it. "
            "Set master_dtype: float32, or model_dtype to bfloat16 or float32."
        )


def check_data(model: nn.Module, source: str, spec: LoraSpec, data: Any) -> None:
    """Refuse a model that does not fit the data.

    Args:
        model: with its adapter.
        source: what messages call it.
        spec: of the adapter.
        data: the data module; None where there is none.
    """
    tokenizer = getattr(data, "tokenizer", None)
    check_tokens(model, source, tokenizer)
    if tokenizer is not None and spec.adapter_path is not None:
        lora.check_tokenizer(locate_adapter(spec.adapter_path), tokenizer)
    check_positions(model, source, getattr(data, "longest_row_len", 0))


def check_tokens(model: nn.Module, source: str, tokenizer: Any) -> None:
    """Refuse a tokenizer with more tokens than the model embeds."""
    vocab_size = base_model(model).get_input_embeddings().num_embeddings
    if tokenizer is not None and len(tokenizer) > vocab_size:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {source} embeds {vocab_size}: they do not belong "
            "together."
        )


def check_positions(model: nn.Module, source: str, longest: int) -> None:
    """Refuse rows that are longer than the positions which the model knows."""
    positions = getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)
    if positions and longest > positions:
        raise ModelError(
            f"The longest row has {longest} tokens, and {source} knows {positions} positions. "
            "Lower max_length (or sequence_len), or set max_model_len together with rope_scaling."
        )


def check_head(model: nn.Module, spec: ModelSpec, device: torch.device) -> None:
    """Refuse a model whose logits are not those that the loss is made of."""
    error = head_error(model, device)
    if error > HEAD_TOLERANCE:
        raise ModelError(
            f"{spec.source} shapes its logits in a way this version does not know (relative difference "
            f"{error:.1e}), so the loss would be wrong."
        )
