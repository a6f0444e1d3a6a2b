"""Plain text to rows of tokens: documents of any length, each followed by EOS, nothing dropped.

What is not here: reading documents (sources.py, formats.py) and storing rows (row_writer.py).

The one idea: **a text may be cut where its two sides, tokenised apart, give the tokens that they give together.** So a
long document is tokenised piece by piece, in parallel and in bounded memory, and its tokens are those of the whole.
Rows are then laid end to end over the tokens; `TokenRow.next_token` ties each to the next, so that every token but the
first of its document is predicted once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from surogate.batches import TokenRow
from surogate.data.chat import adds_bos
from surogate.data.encoding import Counts, LengthLimit
from surogate.data.files import TextFile
from surogate.data.row_writer import RowWriter
from surogate.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PIECE_LEN = 1 << 15
"""Characters after which a document is cut; small enough that one long document keeps all cores busy."""
_BATCH_LEN = 1 << 21
"""Characters that are tokenised at once; they take about 30 times their size in memory."""
_BLOCK_LEN = 1 << 20
"""Characters of a long string that are looked at together."""
_WINDOW_LEN = 300
"""Characters on each side of a cut that are tokenised to see whether it changes anything."""
_MAX_CANDIDATES = 5
"""Places of a kind that are tried before a piece grows by another _PIECE_LEN."""

_LINE_START = re.compile(r"(?<=\n)(?=\S)")
_WORD_END = re.compile(r"(?<=\S)(?= )")


@dataclass(slots=True)
class Document:
    """A document on its way to rows.

    Attributes:
        origin: where it stands.
        rows: being cut from its tokens.
        digest: hash of the text so far.
    """

    origin: str
    rows: RowCutter
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document's text that can be tokenised apart from the others."""

    document: Document
    text: str
    is_first: bool
    is_last: bool


class TextTokenizer:
    """Tokenises text in batches, in parallel on all cores.

    Args:
        tokenizer: fast; it must have an EOS token.

    Raises:
        DataError: it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer of '{tokenizer.name_or_path}' has no eos_token, which must end every document; "
                "set eos_token in its tokenizer_config.json"
            )
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()  # a state that calls leave behind
        self._backend.no_truncation()
        self.eos = np.array([tokenizer.eos_token_id], dtype=np.int32)
        self.bos = np.array([tokenizer.bos_token_id] if adds_bos(tokenizer) else [], dtype=np.int32)
        first, second = "a line\n", "another"
        together, *apart = self._ids([first + second, first, second])
        # Some tokenizers put a space in front of every text. A piece behind a cut is then tokenised with the line end
        # before it, whose tokens are taken off again.
        self._context = "" if together == apart[0] + apart[1] else "\n"
        self._context_ids = self._ids([self._context])[0]

    def encode(self, pieces: list[Piece]) -> list[np.ndarray]:
        """Tokenise pieces, without BOS and EOS."""
        skipped = len(self._context_ids)
        ids = self._ids([piece.text if piece.is_first else self._context + piece.text for piece in pieces])
        return [
            np.array(found if piece.is_first else found[skipped:], dtype=np.int32)
            for piece, found in zip(pieces, ids, strict=True)
        ]

    def pieces(self, blocks: Iterable[str]) -> Iterator[str]:
        """Cut the text of a document where that changes no token; joined, the pieces are the text."""
        held, begin = "", _PIECE_LEN
        for block in blocks:
            held += block
            while (end := min(begin + _PIECE_LEN, len(held) - _WINDOW_LEN)) > begin:
                cut = self._find_cut(held, begin, end)
                if cut is None:
                    begin = end
                else:
                    yield held[:cut]
                    held, begin = held[cut:], _PIECE_LEN
        if held:
            yield held

    def _find_cut(self, text: str, begin: int, end: int) -> int | None:
        for pattern in (_LINE_START,) if self._context else (_LINE_START, _WORD_END):
            for found in islice(pattern.finditer(text, begin, end), _MAX_CANDIDATES):
                if self._may_cut(text, found.start()):
                    return found.start()
        return None

    def _may_cut(self, text: str, cut: int) -> bool:
        left, right = text[max(cut - _WINDOW_LEN, 0) : cut], text[cut : cut + _WINDOW_LEN]
        together, first, second = self._ids([left + right, left, self._context + right])
        skipped = len(self._context_ids)
        return second[:skipped] == self._context_ids and together == first + second[skipped:]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # Without offsets, which nothing here needs: two thirds of the time of the tokenizer's own call.
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


class RowCutter:
    """Cuts the tokens of a document into rows as they come.

    Args:
        limit: split lays rows of max_length end to end; the other strategies give one row or none.
        start: tokens that the document begins with.
    """

    def __init__(self, limit: LengthLimit, start: np.ndarray) -> None:
        self._limit = limit
        self._held = start
        self.num_tokens = len(start)

    def add(self, ids: np.ndarray) -> Iterator[TokenRow]:
        """Take further tokens; yield the rows that are complete and not the document's last."""
        self.num_tokens += len(ids)
        held, size = np.concatenate([self._held, ids]), self._limit.max_length
        if self._limit.strategy != "split":
            self._held = held[-size:] if self._limit.strategy == "left" else held[:size]
            return
        start = 0
        while len(held) - start > size:
            yield _row(held[start : start + size], int(held[start + size]))
            start += size
        self._held = held[start:]

    def finish(self) -> TokenRow | None:
        """Give the last row; None where the document is too long and therefore left out."""
        if self._limit.strategy == "delete" and self.num_tokens > self._limit.max_length:
            self._held = self._held[:0]
            return None
        return _row(self._held, None)

    @property
    def lost_tokens(self) -> int:
        """Tokens of a finished document that no row holds."""
        return 0 if self._limit.strategy == "split" else self.num_tokens - len(self._held)


def _row(ids: np.ndarray, next_token: int | None) -> TokenRow:
    return TokenRow(ids, np.arange(len(ids)) > 0, next_token)


def write_text(
    writer: RowWriter,
    documents: Iterable[tuple[str, str | TextFile]],
    tokenizer: TextTokenizer,
    limit: LengthLimit,
    counts: Counts,
) -> Generator[int, None, None]:
    """Write documents as rows, and count what is left out.

    Args:
        writer: takes the rows.
        documents: origin and text of each.
        tokenizer: of the text.
        limit: of the rows.
        counts: is counted up.

    Yields:
        After each batch, the number of documents so far.
    """
    for batch in _batched(_pieces(documents, tokenizer, limit, counts)):
        for piece, ids in zip(batch, tokenizer.encode(batch), strict=True):
            for row in piece.document.rows.add(ids):
                writer.add(row)
            if piece.is_last:
                _finish(piece.document, tokenizer, writer, counts)
        yield counts.num_rendered


def _finish(document: Document, tokenizer: TextTokenizer, writer: RowWriter, counts: Counts) -> None:
    rows = document.rows
    for row in rows.add(tokenizer.eos):
        writer.add(row)
    last = rows.finish()
    counts.num_rendered += 1
    if rows.lost_tokens:
        counts.note_too_long(document.origin, rows.lost_tokens)
    if rows.num_tokens < 2 or (last is not None and len(last) < 2 and rows.lost_tokens):
        counts.note_bad(document.origin)
    elif last is not None:
        writer.add(last)
    writer.end_document(document.origin, int.from_bytes(document.digest.digest()))


def _pieces(
    documents: Iterable[tuple[str, str | TextFile]], tokenizer: TextTokenizer, limit: LengthLimit, counts: Counts
) -> Iterator[Piece]:
    for origin, text in documents:
        if isinstance(text, str) and not text.strip():
            counts.empty += 1
            continue
        document = Document(origin, RowCutter(limit, tokenizer.bos))
        is_first, before = True, None
        for piece in tokenizer.pieces(_blocks(text)):
            document.digest.update(piece.encode(errors="surrogatepass"))
            if before is not None:
                yield Piece(document, before, is_first, is_last=False)
                is_first = False
            before = piece
        assert before is not None, f"{origin} has no text"
        yield Piece(document, before, is_first, is_last=True)


def _blocks(text: str | TextFile) -> Iterator[str]:
    if isinstance(text, TextFile):
        return text.blocks()
    return (text[start : start + _BLOCK_LEN] for start in range(0, len(text), _BLOCK_LEN))


def _batched(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= _BATCH_LEN:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
