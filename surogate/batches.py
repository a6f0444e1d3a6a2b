"""The nouns that data and modes share: TokenRow, PackedRow, MicroBatch, StepBatch.

A DataLoader item is a `StepBatch`: the micro-batches of one optimizer step on one rank. What is not here: how rows are
chosen (data/ledger.py) and what a loss does with them (modes/).

The one idea: **labels are shifted here, once.** `labels[t]` is the token that position t must predict, or IGNORE. No
code downstream shifts again, and no document predicts into the next one.

Shape legend: B packed rows in a micro-batch, T tokens of a packed row, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that predicts nothing (torch's cross entropy uses the same value)."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One tokenised sample.

    Attributes:
        input_ids: (T,) int32.
        loss_mask: (T,) bool, true where the token itself is a target. The first token can never be one.
        next_token: the target of the last token, where the row is a piece of a document that goes on in another row.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    next_token: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Documents laid end to end; attention and positions restart at each.

    Attributes:
        input_ids_T: int64.
        labels_T: int64, the next token of the same document where it is a target, else IGNORE.
        position_ids_T: int64, 0, 1, ... within each document.
        document_ends: (D,) int64, exclusive; the last one is T.
    """

    input_ids_T: np.ndarray
    labels_T: np.ndarray
    position_ids_T: np.ndarray
    document_ends: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[TokenRow]) -> PackedRow:
        """Lay rows end to end."""
        ends = np.cumsum([len(row) for row in rows])
        input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
        targets = np.concatenate([row.loss_mask for row in rows])
        labels = np.full(len(input_ids), IGNORE, dtype=np.int64)
        labels[:-1] = np.where(targets[1:], input_ids[1:], IGNORE)
        # The last token of a document has no successor, that of a piece one which lies in another row.
        labels[ends - 1] = [IGNORE if row.next_token is None else row.next_token for row in rows]
        position_ids = np.concatenate([np.arange(len(row)) for row in rows])
        return cls(input_ids, labels, position_ids, ends)

    def __len__(self) -> int:
        return len(self.input_ids_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass sees.

    Rows are padded to the longest with a document of pad tokens of their own, so that real documents never attend to
    padding and padding never counts in the loss.

    Attributes:
        input_ids_BT: int64.
        labels_BT: int64, already shifted; IGNORE where nothing is supervised.
        position_ids_BT: int64, restarts at each document.
        cu_seqlens: (D+1,) int32, boundaries of all documents (padding included) in the flattened B*T tokens.
        loss_positions: (num_loss_tokens,) int64, the flattened positions whose label is not IGNORE; built on the host
            so that no step has to wait for the device to count.
        max_document_len: longest document, in tokens.
        num_tokens: real tokens, padding excluded.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    position_ids_BT: Tensor
    cu_seqlens: Tensor
    loss_positions: Tensor
    max_document_len: int
    num_tokens: int

    @property
    def num_loss_tokens(self) -> int:
        """Supervised tokens."""
        return self.loss_positions.numel()

    @classmethod
    def collate(cls, rows: Sequence[PackedRow], pad_token_id: int, pad_to: int | None = None) -> MicroBatch:
        """Stack packed rows, padded on the right.

        Args:
            rows: may be empty: then the batch is one pad token that supervises nothing, which keeps the ranks of a
                partial step in lockstep.
            pad_token_id: any valid id; padding is told apart by its labels and boundaries, never by its id.
            pad_to: width T; default the longest row.
        """
        width = max([len(row) for row in rows] + [pad_to or 1])
        num_rows = max(len(rows), 1)
        input_ids = np.full((num_rows, width), pad_token_id, dtype=np.int64)
        labels = np.full((num_rows, width), IGNORE, dtype=np.int64)
        position_ids = np.tile(np.arange(width), (num_rows, 1))
        ends: list[int] = [0]
        for i, row in enumerate(rows):
            length = len(row)
            input_ids[i, :length] = row.input_ids_T
            labels[i, :length] = row.labels_T
            position_ids[i, :length] = row.position_ids_T
            position_ids[i, length:] = np.arange(width - length)
            ends.extend((i * width + row.document_ends).tolist())
            if length < width:
                ends.append((i + 1) * width)
        if not rows:
            ends.append(width)
        return cls(
            input_ids_BT=torch.from_numpy(input_ids),
            labels_BT=torch.from_numpy(labels),
            position_ids_BT=torch.from_numpy(position_ids),
            cu_seqlens=torch.tensor(ends, dtype=torch.int32),
            loss_positions=torch.from_numpy(np.flatnonzero(labels != IGNORE)),
            max_document_len=int(np.diff(ends).max()),
            num_tokens=sum(len(row) for row in rows),
        )

    def _map_tensors(self, fn: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: fn(value) for name, value in values.items() if isinstance(value, Tensor)})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every tensor, as `Tensor.to` would; integer tensors keep their dtype."""
        return self._map_tensors(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Pin every tensor (called by the DataLoader)."""
        return self._map_tensors(Tensor.pin_memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The micro-batches of one optimizer step on one rank.

    Attributes:
        micro_batches: the same count on every rank.
        ledger: the position of the run's data *after* this step, as plain values (data/ledger.py); it is what a
            checkpoint stores.
        packing_efficiency: real tokens / (packed rows x sequence_len) of the global batch.
        row_ids: the rows of this rank's micro-batches as (source, row) pairs, for naming a bad row.
    """

    micro_batches: tuple[MicroBatch, ...]
    ledger: dict[str, Any] = field(default_factory=dict)
    packing_efficiency: float = 1.0
    row_ids: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Real tokens on this rank."""
        return sum(micro_batch.num_tokens for micro_batch in self.micro_batches)

    @property
    def num_loss_tokens(self) -> int:
        """Supervised tokens on this rank."""
        return sum(micro_batch.num_loss_tokens for micro_batch in self.micro_batches)

    def to(self, *args: Any, **kwargs: Any) -> StepBatch:
        """Move every micro-batch."""
        return replace(self, micro_batches=tuple(m.to(*args, **kwargs) for m in self.micro_batches))

    def pin_memory(self) -> StepBatch:
        """Pin every micro-batch (called by the DataLoader)."""
        return replace(self, micro_batches=tuple(m.pin_memory() for m in self.micro_batches))
