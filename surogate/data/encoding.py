"""Conversations become rows of tokens, and whatever is left out is counted.

What is not here: rendering and masks (chat.py), plain text (text.py), storage (row_writer.py). The one idea: nothing is
lost silently. A row is kept, shortened, or left out, and each of the last two has a count and a first example.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surogate.batches import TokenRow
from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data.formats import to_conversation
from surogate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from surogate.data.chat import ChatRenderer
    from surogate.data.row_writer import RowWriter
    from surogate.data.sources import SourceRow


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """What may not be longer, and what happens to it if it is."""

    max_length: int
    strategy: str

    @classmethod
    def of(cls, chat: ChatSpec, sequence_len: int, type_: str = "conversation") -> LengthLimit:
        """Read the limit from the settings.

        Args:
            chat: max_length and truncation_strategy.
            sequence_len: tokens in a pack.
            type_: of the rows; only text can be split.

        Raises:
            ConfigError: a row could be longer than a pack, or the strategy is not for conversations.
        """
        max_length = chat.max_length or sequence_len
        if max_length > sequence_len:
            raise ConfigError(
                f"max_length {max_length} is above sequence_len {sequence_len}, so such a row would fit in no pack. "
                "Lower max_length or raise sequence_len."
            )
        if chat.truncation_strategy == "split" and type_ != "text":
            raise ConfigError("truncation_strategy split is for plain text; conversations take delete, left or right.")
        return cls(max_length, chat.truncation_strategy or ("split" if type_ == "text" else "delete"))

    def apply(self, row: TokenRow) -> TokenRow | None:
        """Shorten a row; None where it is left out."""
        if len(row) <= self.max_length:
            return row
        if self.strategy == "delete":
            return None
        kept = slice(-self.max_length, None) if self.strategy == "left" else slice(self.max_length)
        return replace(row, input_ids=row.input_ids[kept], loss_mask=row.loss_mask[kept])


@dataclass(slots=True)
class Counts:
    """What happened on the way from rows of a source to rows of tokens.

    Attributes:
        num_rendered: rows that came out of the renderer; of text, documents.
        too_long: rows (documents) longer than max_length, unless they were split.
        first_too_long: origin of the first.
        lost_tokens: tokens that these lost.
        bad: rows that supervise no token, and were left out.
        first_bad: origin of the first.
        empty: documents without text.
    """

    num_rendered: int = 0
    too_long: int = 0
    first_too_long: str = ""
    lost_tokens: int = 0
    bad: int = 0
    first_bad: str = ""
    empty: int = 0

    def note_too_long(self, origin: str, lost_tokens: int) -> None:
        """Count a row that was shortened or left out."""
        self.too_long += 1
        self.first_too_long = self.first_too_long or origin
        self.lost_tokens += lost_tokens

    def note_bad(self, origin: str) -> None:
        """Count a row that supervises nothing."""
        self.bad += 1
        self.first_bad = self.first_bad or origin


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of one conversation, of any length, and the hash of its content."""

    rows: list[TokenRow]
    content_hash: int


class ConversationEncoder:
    """Rows of a source to rows of tokens; what worker processes run.

    Args:
        renderer: of the conversations.
        spec: of the source, with a concrete type.
    """

    def __init__(self, renderer: ChatRenderer, spec: DatasetSpec) -> None:
        self.renderer = renderer
        self._spec = spec

    def encode(self, row: SourceRow) -> Encoded:
        """Read, render and tokenise a row.

        Raises:
            DataError: it cannot be; the message starts with its origin.
        """
        conversation = to_conversation(row, self._spec)
        try:
            rows = self.renderer.encode(conversation.messages, conversation.tools)
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from error
        return Encoded(rows, content_hash([conversation.messages, conversation.tools]))


def content_hash(content: Any) -> int:
    """Hash what a row says, whatever file it stands in."""
    text = json.dumps(content, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def write_conversation(writer: RowWriter, origin: str, encoded: Encoded, limit: LengthLimit, counts: Counts) -> None:
    """Write the rows of a conversation that can be trained on, and count the others."""
    counts.num_rendered += len(encoded.rows)
    for row in encoded.rows:
        shortened = limit.apply(row)
        if len(row) > limit.max_length:
            counts.note_too_long(origin, len(row) - (len(shortened) if shortened else 0))
        if shortened is None:
            continue
        if shortened.loss_mask[1:].any():
            writer.add(shortened)
        else:
            counts.note_bad(origin)
    writer.end_document(origin, encoded.content_hash)
