"""Conversations become rows of tokens, and whatever is left out is counted.

What is not here: rendering and masks (chat.py), storage (row_store.py). The one idea: nothing is lost silently. A row
is kept, shortened, or left out, and each of the last two has a count and a first example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from surogate.batches import TokenRow
from surogate.config.parts import ChatSpec
from surogate.data.formats import Conversation
from surogate.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """What may not be longer, and what happens to it if it is."""

    max_length: int
    strategy: str

    @classmethod
    def of(cls, chat: ChatSpec, sequence_len: int) -> LengthLimit:
        """Read the limit from the settings.

        Raises:
            ConfigError: a row could be longer than a pack, or the strategy is not for conversations.
        """
        max_length = chat.max_length or sequence_len
        if max_length > sequence_len:
            raise ConfigError(
                f"max_length {max_length} is above sequence_len {sequence_len}, so such a row would fit in no pack. "
                "Lower max_length or raise sequence_len."
            )
        if chat.truncation_strategy == "split":
            raise ConfigError("truncation_strategy split is for plain text; conversations take delete, left or right.")
        return cls(max_length, chat.truncation_strategy or "delete")

    def apply(self, row: TokenRow) -> TokenRow | None:
        """Shorten a row; None where it is left out."""
        if len(row) <= self.max_length:
            return row
        if self.strategy == "delete":
            return None
        kept = slice(-self.max_length, None) if self.strategy == "left" else slice(self.max_length)
        return replace(row, input_ids=row.input_ids[kept], loss_mask=row.loss_mask[kept])


@dataclass(slots=True)
class EncodedSource:
    """The tokenised conversations of one source and what happened on the way.

    Attributes:
        name: of the data set.
        limit: that its rows kept to.
        conversations: those that gave at least one row.
        rows: of each of them.
        num_rendered: rows that came out of the renderer.
        too_long: origins of rows longer than max_length.
        bad: origins of rows that supervise no token.
    """

    name: str
    limit: LengthLimit
    conversations: list[Conversation] = field(default_factory=list)
    rows: list[list[TokenRow]] = field(default_factory=list)
    num_rendered: int = 0
    too_long: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def add(self, conversation: Conversation, rendered: Sequence[TokenRow]) -> None:
        """Keep the rows of a conversation that can be trained on, and count the others."""
        self.num_rendered += len(rendered)
        self.too_long += [conversation.origin for row in rendered if len(row) > self.limit.max_length]
        shortened = [row for row in map(self.limit.apply, rendered) if row is not None]
        kept = [row for row in shortened if row.loss_mask[1:].any()]
        self.bad += [conversation.origin] * (len(shortened) - len(kept))
        if kept:
            self.conversations.append(conversation)
            self.rows.append(kept)

    def check(self, max_bad_row_fraction: float) -> None:
        """Refuse a source that is not worth training on.

        Raises:
            DataError: more rows than allowed supervise no token, or no row is left.
        """
        if len(self.bad) > max_bad_row_fraction * self.num_rendered:
            raise DataError(
                f"{self.name}: {len(self.bad)} of {self.num_rendered} rows supervise no token, the first is "
                f"{self.bad[0]}; max_bad_row_fraction allows a share of {max_bad_row_fraction:g}. A row needs an "
                "assistant's answer within max_length: check the columns and roles, or raise max_bad_row_fraction."
            )
        if not self.rows:
            raise DataError(f"{self.name}: no row is left. {self.describe()}.")

    def describe(self) -> str:
        """Say in one line what became of the rows."""
        kept = [row for rows in self.rows for row in rows]
        parts = [f"{self.name}: {len(kept)} rows, {sum(map(len, kept))} tokens"]
        if self.too_long:
            action = "left out" if self.limit.strategy == "delete" else f"cut on the {self.limit.strategy}"
            parts.append(
                f"{len(self.too_long)} rows longer than max_length {self.limit.max_length} {action} "
                f"(first: {self.too_long[0]})"
            )
        if self.bad:
            parts.append(f"{len(self.bad)} rows that supervise no token left out (first: {self.bad[0]})")
        return "; ".join(parts)


def encode_source(
    name: str,
    conversations: Iterable[Conversation],
    encode: Callable[[Conversation], list[TokenRow]],
    limit: LengthLimit,
    max_bad_row_fraction: float,
) -> EncodedSource:
    """Tokenise a source in order.

    Raises:
        DataError: a conversation cannot be rendered (its origin is named), too many rows supervise no token, or no row
            is left.
    """
    source = EncodedSource(name, limit)
    for conversation in conversations:
        try:
            rendered = encode(conversation)
        except DataError as error:
            raise DataError(f"{conversation.origin}: {error}") from error
        source.add(conversation, rendered)
    source.check(max_bad_row_fraction)
    return source


def held_out(conversations: Sequence[Conversation], fraction: float, seed: int) -> np.ndarray:
    """Choose the conversations that are validated on instead of trained on.

    A hash of the content decides, against one threshold for all sources: equal conversations fall on the same side in
    whichever source they stand, and rows added later move no other. Only where a whole source would fall on one side is
    its lowest or highest hash moved to the other.

    Args:
        conversations: of one source.
        fraction: of them, on average; above 0 it takes at least one of two or more.
        seed: eval_seed.

    Returns:
        (len(conversations),) bool; never all of them.
    """
    count = len(conversations)
    if fraction == 0 or count < 2:
        return np.zeros(count, dtype=bool)
    hashes = np.array([_content_hash(conversation, seed) for conversation in conversations], dtype=np.uint64)
    chosen = hashes < np.uint64(int(fraction * 2**64))
    if chosen.all():
        return hashes < hashes.max()
    return chosen if chosen.any() or (hashes == hashes[0]).all() else hashes == hashes.min()


def _content_hash(conversation: Conversation, seed: int) -> int:
    content = json.dumps([seed, conversation.messages, conversation.tools], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())
