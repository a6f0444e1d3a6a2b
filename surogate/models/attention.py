"""Attention that never crosses a document of a packed row, and never builds a T x T mask.

Registered with transformers under the name ATTENTION, so every model that uses its attention interface can run it. On
CUDA in 16 bits it is torch's variable-length flash attention; elsewhere each document is attended on its own, which on
a CPU is also the fastest way. Whether a model may use it is found out by isolation.py.

Shape legend: B rows, T tokens, H query heads, G key-value heads, D head size, N = B*T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surogate.batches import MicroBatch
from surogate.errors import ModelError

ATTENTION = "surogate_documents"

_WINDOWED = {"sliding_attention", "chunked_attention"}
"""Layer types of transformers whose tokens do not see their whole document."""


class UnsupportedAttention(ModelError):
    """The model asks for something these kernels do not compute."""


def document_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention within each document, with transformers' signature.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key: (B, G, T, D).
        value: (B, G, T, D).
        attention_mask: must be None: the documents are given by `cu_seq_lens_q`, (documents + 1,) int32 boundaries in
            the flattened B*T tokens, and `max_length_q`. Also read: scaling, dropout, sliding_window, softcap and
            s_aux, the (H,) sink logits of gpt-oss.

    Returns:
        (B, T, H, D) and no weights.

    Raises:
        UnsupportedAttention: a position bias, a mask, no document boundaries, or a window known to the mask alone.
    """
    boundaries = kwargs.get("cu_seq_lens_q")
    if boundaries is None or attention_mask is not None:
        raise UnsupportedAttention("document attention needs the boundaries of the documents and no mask.")
    if kwargs.get("position_bias") is not None:
        raise UnsupportedAttention("document attention does not compute a position bias.")
    if kwargs.get("sliding_window") is None and _layer_type(module) in _WINDOWED:
        raise UnsupportedAttention("the model tells its window to masks alone, and document attention has none.")
    shape = ScoreShape(
        scale=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        dropout=kwargs.get("dropout", 0.0),
    )
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and shape.is_plain and not shape.dropout:
        return _varlen(query, key, value, boundaries, kwargs["max_length_q"], shape), None
    return _each_document(query, key, value, boundaries, shape), None


def _layer_type(module: Any) -> str | None:
    """Return what the model's configuration calls this layer's attention, where it says so."""
    layer_types = getattr(getattr(module, "config", None), "layer_types", None)
    index = getattr(module, "layer_idx", None)
    return layer_types[index] if layer_types and index is not None else None


@dataclass(frozen=True, slots=True)
class ScoreShape:
    """What happens to the scores of a document between the product of queries and keys and the softmax.

    Attributes:
        scale: multiplies them.
        window: a token sees the last `window` tokens, itself included; None = all.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2).
        sinks: (H,) logits that join the softmax and receive no value (gpt-oss).
        dropout: probability of dropping a weight.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether fused kernels compute it."""
        return self.softcap is None and self.sinks is None


def _varlen(query: Tensor, key: Tensor, value: Tensor, cu: Tensor, max_len: int, shape: ScoreShape) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, size = query.shape
    grouping: dict[str, Any] = {}
    if heads != key.shape[1] and _varlen_groups_heads():
        grouping = {"enable_gqa": True}
    elif heads != key.shape[1]:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    q, k, v = (x.transpose(1, 2).reshape(rows * length, -1, x.shape[-1]) for x in (query, key, value))
    left = -1 if shape.window is None else shape.window - 1  # flash attention does not count the token itself
    out_NHD: Any = varlen_attn(q, k, v, cu, cu, max_len, max_len, scale=shape.scale, window_size=(left, 0), **grouping)
    return out_NHD.view(rows, length, heads, size)


@cache
def _varlen_groups_heads() -> bool:
    """Whether this torch shares key heads among query heads itself; 2.11 wants as many of one as of the other."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def _each_document(query: Tensor, key: Tensor, value: Tensor, cu: Tensor, shape: ScoreShape) -> Tensor:
    outputs = []
    for rows, documents in _rows_cut_alike(cu.tolist(), query.shape[2]):
        parts = []
        for start, end in documents:
            q, k, v = (x[rows, :, start:end] for x in (query, key, value))
            parts.append(_one_document(q, k, v, shape))
        outputs.append(torch.cat(parts, dim=2))
    return torch.cat(outputs).transpose(1, 2).contiguous()


def _one_document(query: Tensor, key: Tensor, value: Tensor, shape: ScoreShape) -> Tensor:
    size = query.shape[2]
    windowed = shape.window is not None and size > shape.window
    mask = _visible(size, shape.window, query.device) if windowed or not shape.is_plain else None
    if not shape.is_plain:
        assert mask is not None
        return _attend_in_steps(query, key, value, mask, shape)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=shape.dropout,
        is_causal=mask is None,
        scale=shape.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _visible(size: int, window: int | None, device: torch.device) -> Tensor:
    """Return (size, size), true where a query (row) sees a key (column)."""
    position = torch.arange(size, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (window or size))


def _attend_in_steps(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shape: ScoreShape) -> Tensor:
    """Attention of one document with what fused kernels lack; softmax in float32, as transformers' eager code does."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * shape.scale
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if shape.sinks is not None:
        sinks = shape.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.float().softmax(-1)[..., : key.shape[2]].to(query.dtype)
    return F.dropout(weights, shape.dropout) @ value


def _rows_cut_alike(boundaries: list[int], length: int) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Yield neighbouring rows with the same documents, and the (start, end) of these within a row.

    In pretraining most rows are a piece of one document, and one call attends all of them.
    """
    documents: list[list[tuple[int, int]]] = [[] for _ in range(boundaries[-1] // length)]
    for start, end in pairwise(boundaries):  # a document never straddles rows
        row = start // length
        documents[row].append((start - row * length, end - row * length))
    first = 0
    for cuts, rows in groupby(documents):
        count = len(list(rows))
        yield slice(first, first + count), cuts
        first += count


def register() -> None:
    """Make ATTENTION known to transformers; without a mask function of its own it is never given a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, document_attention)


def attention_kwargs(micro_batch: MicroBatch) -> dict[str, Any]:
    """Return the document boundaries as the keyword arguments that transformers passes down to attention."""
    return {
        "cu_seq_lens_q": micro_batch.cu_seqlens,
        "cu_seq_lens_k": micro_batch.cu_seqlens,
        "max_length_q": micro_batch.max_document_len,
        "max_length_k": micro_batch.max_document_len,
    }
