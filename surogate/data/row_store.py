"""All tokenised rows of a source in three flat arrays.

What is not here: making the rows (encoding.py). The one idea: tokens as int32 and the loss mask as bits lie end to end,
so that lengths are a difference of offsets, forked workers share the memory, and a fingerprint is one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from surogate.batches import TokenRow


class RowStore:
    """Rows by number; see `build`.

    Args:
        input_ids: (total,) int32, all rows end to end.
        mask_bits: (ceil(total / 8),) uint8, np.packbits of their loss masks.
        offsets: (rows + 1,) int64, where each row starts.
    """

    def __init__(self, input_ids: np.ndarray, mask_bits: np.ndarray, offsets: np.ndarray) -> None:
        self._input_ids = input_ids
        self._mask_bits = mask_bits
        self._offsets = offsets
        self.lengths: np.ndarray = np.diff(offsets)
        digest = hashlib.sha256()
        for array in (input_ids, mask_bits, offsets):
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()[:16]

    @classmethod
    def build(cls, rows: Iterable[TokenRow]) -> RowStore:
        """Store rows in their order."""
        held = list(rows)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in held], dtype=np.int64)])
        input_ids = np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in held)])
        masks = np.concatenate([np.empty(0, bool), *(row.loss_mask for row in held)])
        return cls(input_ids.astype(np.int32), np.packbits(masks), offsets.astype(np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> TokenRow:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        bits = np.unpackbits(self._mask_bits[start // 8 : -(-end // 8)])
        mask = bits[start % 8 : start % 8 + end - start].astype(bool)
        return TokenRow(self._input_ids[start:end], mask)

    @property
    def num_loss_tokens(self) -> np.ndarray:
        """Supervised tokens of each row; a first token can never be one."""
        return np.array([np.count_nonzero(self[row].loss_mask[1:]) for row in range(len(self))], dtype=np.int64)
