"""One pass over the tokens of a store: turns and their ends, BOS where it should not be, ids that mean nothing.

What is not here: what of it is a problem (findings.py). The one idea: rows are looked at in blocks of millions of
tokens laid end to end, so that a pass over a million rows is a few array operations a block and takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from surogate.data.chat import adds_bos
from surogate.data.row_store import RowStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENS_PER_BLOCK = 2**22


class TokenKinds:
    """Which ids of a tokenizer mean something, as tables over all ids.

    Args:
        tokenizer: of the rows.
        end_token_id: the token that ends an answer, where the template has one.

    Attributes:
        size: ids from here on belong to no token.
        bos: the token that the tokenizer puts in front of a text by itself; None where it puts none.
        unknown: the token that stands for what the vocabulary lacks; None where it means something else too.
        is_end: true for tokens at which generation stops.
        is_special: true for every special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end_token_id: int | None) -> None:
        specials = set(tokenizer.all_special_ids)
        specials |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends = {tokenizer.eos_token_id, end_token_id} - {None}
        self.size = 1 + max(tokenizer.get_vocab().values())
        self.bos: int | None = tokenizer.bos_token_id if adds_bos(tokenizer) else None
        others = ends | {tokenizer.bos_token_id, tokenizer.pad_token_id}
        self.unknown: int | None = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        self.is_end = self._table(ends)
        self.is_special = self._table(specials | ends)

    def _table(self, ids: set[int]) -> np.ndarray:
        table = np.zeros(self.size + 1, dtype=bool)  # the last place stands for all ids beyond
        table[list(ids)] = True
        return table


@dataclass(slots=True)
class TokenScan:
    """What a pass counted.

    Attributes:
        rows: looked at.
        tokens: of these rows.
        turns: unbroken stretches of supervised tokens.
        ended_turns: those that hold a token at which generation stops, or end with any special token.
        ended_rows: rows whose last token is one at which generation stops.
        puts_bos: whether the tokenizer puts a BOS in front of a text by itself; only then are the next three counted.
        rows_with_bos: rows that start with it.
        double_bos: rows that start with two.
        bos_inside: rows with a BOS further on.
        special_inside: rows with a special token between their first and their last.
        unknown: tokens that stand for what the vocabulary lacks.
        beyond: tokens whose id belongs to no token.
        examples: for double_bos, bos_inside, special_inside, beyond and open_turn, the first row that has one.
    """

    rows: int = 0
    tokens: int = 0
    turns: int = 0
    ended_turns: int = 0
    ended_rows: int = 0
    puts_bos: bool = False
    rows_with_bos: int = 0
    double_bos: int = 0
    bos_inside: int = 0
    special_inside: int = 0
    unknown: int = 0
    beyond: int = 0
    examples: dict[str, int] = field(default_factory=dict)


def scan(store: RowStore, kinds: TokenKinds, rows: np.ndarray | None = None) -> TokenScan:
    """Look at every token of some rows, or of all."""
    result = TokenScan(puts_bos=kinds.bos is not None)
    for block in _blocks(store, np.arange(len(store)) if rows is None else rows):
        result.rows += len(block.rows)
        result.tokens += len(block.ids)
        result.unknown += 0 if kinds.unknown is None else int(np.count_nonzero(block.ids == kinds.unknown))
        _scan_ends(block, kinds, result)
        _scan_beginnings(block, kinds, result)
    return result


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows end to end.

    Attributes:
        rows: their numbers.
        ids: (N,) of all their tokens.
        mask: (N,) true where a token is a target.
        starts: place of each row's first token.
    """

    rows: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    starts: np.ndarray

    def row_of(self, places: np.ndarray) -> np.ndarray:
        """Give the row number of each place."""
        found: np.ndarray = self.rows[np.searchsorted(self.starts, places, side="right") - 1]
        return found


def _blocks(store: RowStore, rows: np.ndarray) -> Iterator[_Block]:
    block_of_row = np.cumsum(store.lengths[rows]) // _TOKENS_PER_BLOCK
    for chosen in np.split(rows, np.flatnonzero(np.diff(block_of_row)) + 1):
        held = [store[int(row)] for row in chosen]
        mask = np.concatenate([row.loss_mask for row in held])
        starts = np.cumsum([0, *(len(row) for row in held[:-1])])
        mask[starts] = False  # a first token is nobody's target
        yield _Block(chosen, np.concatenate([row.input_ids for row in held]), mask, starts)


def _scan_ends(block: _Block, kinds: TokenKinds, result: TokenScan) -> None:
    """Count turns and what they end with, special tokens within rows, and ids beyond the tokenizer."""
    known = np.minimum(block.ids, kinds.size)
    beyond = np.flatnonzero(known == kinds.size)
    result.beyond += len(beyond)
    _note_example(result, "beyond", block.row_of(beyond))
    lasts = np.append(block.starts[1:], len(known)) - 1
    result.ended_rows += int(np.count_nonzero(kinds.is_end[known[lasts]]))
    special = kinds.is_special[known]
    special[block.starts] = special[lasts] = False
    inside = np.unique(block.row_of(np.flatnonzero(special)))
    result.special_inside += len(inside)
    _note_example(result, "special_inside", inside)
    # No turn runs from one row into the next, as first tokens are never targets.
    changes = np.flatnonzero(np.diff(block.mask, prepend=False, append=False))
    firsts, ends = changes[::2], changes[1::2]
    stops_before = np.concatenate([[0], np.cumsum(kinds.is_end[known])])
    ended = (stops_before[ends] > stops_before[firsts]) | kinds.is_special[known[ends - 1]]
    result.turns += len(firsts)
    result.ended_turns += int(np.count_nonzero(ended))
    _note_example(result, "open_turn", block.row_of(firsts[~ended]))


def _scan_beginnings(block: _Block, kinds: TokenKinds, result: TokenScan) -> None:
    """Count rows by where their BOS stands."""
    if kinds.bos is None:
        return
    places = np.flatnonzero(block.ids == kinds.bos)
    is_first = np.isin(places, block.starts, assume_unique=True)
    firsts, others = places[is_first], places[~is_first]
    is_second = np.isin(others, firsts + 1, assume_unique=True)
    doubled, inside = block.row_of(others[is_second]), np.unique(block.row_of(others[~is_second]))
    result.rows_with_bos += len(firsts)
    result.double_bos += len(doubled)
    result.bos_inside += len(inside)
    _note_example(result, "double_bos", doubled)
    _note_example(result, "bos_inside", inside)


def _note_example(result: TokenScan, what: str, rows: np.ndarray) -> None:
    if len(rows):
        result.examples.setdefault(what, int(rows[0]))
