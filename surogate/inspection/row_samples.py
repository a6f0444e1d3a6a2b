"""A few rows as a person reads them: text cut at the tokens, with what is supervised and what is special.

What is not here: colours (cli/inspect.py, page.py). The one idea: a row's text is not to be trusted. It may
hold escape sequences, characters that reverse the reading direction, or half of one; visible_text.py shows them as
signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from surogate.batches import TokenRow
from surogate.data.row_store import RowStore
from surogate.inspection.token_scan import TokenKinds
from surogate.visible_text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_SHOWN_TOKENS = 600
"""Longer rows are shown without their middle."""

_MAX_TOKENS_PER_CHARACTER = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """The shortest run of tokens that makes whole characters.

    Attributes:
        text: safe to show, line ends included.
        position: of its first token in the row.
        token_ids: empty where it stands for tokens that are left out.
        supervised: its last token is a target.
        special: it is a special token.
    """

    text: str
    position: int
    token_ids: tuple[int, ...] = ()
    supervised: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class RowSample:
    """One row to look at.

    Attributes:
        source: its data set.
        origin: where it stands.
        row: its number in the store.
        num_tokens: of the whole row.
        num_loss_tokens: supervised ones.
        pieces: in order.
    """

    source: str
    origin: str
    row: int
    num_tokens: int
    num_loss_tokens: int
    pieces: tuple[Piece, ...]


def sample_rows(
    source: str, store: RowStore, count: int, tokenizer: PreTrainedTokenizerFast, kinds: TokenKinds
) -> list[RowSample]:
    """Take rows that are spread evenly over a store, the first among them."""
    chosen = np.linspace(0, len(store), min(count, len(store)), endpoint=False).astype(int)
    return [_sample(source, store, row, tokenizer, kinds) for row in chosen.tolist()]


def _sample(
    source: str, store: RowStore, index: int, tokenizer: PreTrainedTokenizerFast, kinds: TokenKinds
) -> RowSample:
    row = store[index]
    parts = [range(len(row))]
    if len(row) > MAX_SHOWN_TOKENS:
        head = MAX_SHOWN_TOKENS * 2 // 3
        parts = [range(head), range(len(row) - (MAX_SHOWN_TOKENS - head), len(row))]
    pieces = list(_pieces(row, parts[0], tokenizer, kinds))
    for before, part in pairwise(parts):
        pieces.append(Piece(f"\n… {part.start - before.stop:,} tokens …\n", before.stop))
        pieces += _pieces(row, part, tokenizer, kinds)
    return RowSample(source, store.origin(index), index, len(row), int(store.num_loss_tokens[index]), tuple(pieces))


def _pieces(row: TokenRow, part: range, tokenizer: PreTrainedTokenizerFast, kinds: TokenKinds) -> Iterator[Piece]:
    """Cut a part of a row where characters end.

    A token's text depends on the one before it (a leading space may be dropped), so each piece is what decoding gains
    by it.
    """
    ids: list[int] = row.input_ids.tolist()
    before, first = part.start, part.start
    for end in range(part.start + 1, part.stop + 1):
        known = _decode(ids[before:first], tokenizer, kinds)
        text = _decode(ids[before:end], tokenizer, kinds)[len(known) :]
        is_whole = not text.endswith("\ufffd") or end - first >= _MAX_TOKENS_PER_CHARACTER or end == part.stop
        if not is_whole:
            continue
        last = ids[end - 1]
        is_special = bool(kinds.is_special[min(last, kinds.size)])
        text = visible(text) if last < kinds.size else f"⟨no token {last}⟩"
        supervised = bool(row.loss_mask[end - 1]) and end > 1
        yield Piece(text, first, tuple(ids[first:end]), supervised, is_special)
        before, first = first, end


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast, kinds: TokenKinds) -> str:
    return str(tokenizer.decode([token_id for token_id in ids if token_id < kinds.size]))
