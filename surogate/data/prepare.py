"""From a data set's description to its token store: found in the cache, or built into it, and what there is to say.

What is not here: how rows become tokens (encoding.py, text.py) and how a store is kept (cache.py). The one idea: the
key holds everything that changes a token, and nothing else. Seeds, weights, names, packing and batch sizes are not in
it, so that all runs and all verbs share a store; what a build found is kept with it and said at every start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surogate.config.not_yet import DATASET_FIELDS
from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data.cache import TokenCache
from surogate.data.chat import ChatRenderer, read_template
from surogate.data.encoding import ConversationEncoder, Counts, LengthLimit, write_conversation
from surogate.data.formats import detect_type, document_text
from surogate.data.render_workers import encode_in_order
from surogate.data.row_store import RowStore
from surogate.data.row_writer import RowWriter, write_store
from surogate.data.sources import Source, open_source
from surogate.data.text import TextTokenizer, write_text
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_PROGRESS_LINES = 5.0
_NOT_TOKENS = ("template", "max_length", "truncation_strategy", "max_bad_row_fraction")
"""Fields of ChatSpec that change no token, or stand in the key in another form."""


@dataclass(frozen=True)
class TokenSettings:
    """How the rows of a run become tokens.

    Attributes:
        tokenizer: the model's.
        chat: how conversations are rendered, and the limits of all rows.
        sequence_len: tokens in a pack.
        prefers_text: take rows as plain text where their columns fit both that and a conversation.
    """

    tokenizer: PreTrainedTokenizerFast
    chat: ChatSpec
    sequence_len: int
    prefers_text: bool = False

    @classmethod
    def load(
        cls,
        tokenizer: str,
        chat: ChatSpec,
        sequence_len: int,
        *,
        prefers_text: bool = False,
        trust_remote_code: bool = False,
    ) -> TokenSettings:
        """Load the tokenizer, with the template of the configuration in place of its own.

        Raises:
            DataError: the template cannot be read.
            ModelError: the tokenizer cannot be loaded.
        """
        # Said aloud, or every process that is forked later warns of having forked after tokenising in parallel.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        loaded = load_tokenizer(tokenizer, trust_remote_code)
        if chat.template:  # the one that is saved beside the model must be the one trained on
            loaded.chat_template = read_template(chat.template)
        return cls(loaded, chat, sequence_len, prefers_text)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """A hash of all that decides how text is tokenised."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()  # a state that calls leave behind
        backend.no_truncation()
        specials = [self.tokenizer.special_tokens_map, self.tokenizer.split_special_tokens]
        described = backend.to_str() + json.dumps(specials, sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()


def named(specs: Sequence[DatasetSpec]) -> list[tuple[str, DatasetSpec]]:
    """Give each data set its name, or its file's; a repeated one gets a number, so that metrics stay apart."""
    found: dict[str, DatasetSpec] = {}
    for spec in specs:
        stem = spec.name or spec.path.rstrip("/").rpartition("/")[2].partition(".")[0] or spec.path
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = spec
    return list(found.items())


def prepare(name: str, spec: DatasetSpec, settings: TokenSettings, cache: TokenCache) -> RowStore:
    """Give the token store of a data set, and say what is in it.

    Raises:
        ConfigError: the settings contradict each other.
        DataError: the data, a row or the template cannot be used, too many rows supervise nothing, or none is left.
    """
    started = time.monotonic()
    source = open_source(spec)
    columns = source.columns()
    resolved = detect_type(columns, spec, prefers_text=settings.prefers_text)
    if spec.type == "auto":
        log.info("%s: type %s, from the columns %s", name, resolved.type, ", ".join(columns))
    build = _Build(name, source, columns, resolved, settings)
    store = cache.get(build.key, build.into)
    found = f"tokenised in {time.monotonic() - started:.1f} s" if build.ran else "from the cache"
    log.info("%s; %s", describe(name, store), found)
    for warning in [] if build.ran else store.info["warnings"]:
        log.warning("%s", warning)
    _check(name, store, settings.chat.max_bad_row_fraction)
    return store


class _Build:
    """One data set with its settings: the key that they make, and the build."""

    def __init__(
        self, name: str, source: Source, columns: list[str], spec: DatasetSpec, settings: TokenSettings
    ) -> None:
        self._name = name
        self._source = source
        self._columns = columns
        self._spec = spec
        self._tokenizer = settings.tokenizer
        self._is_text = spec.type == "text"
        self._chat = replace(settings.chat, loss_scale=spec.loss_scale or settings.chat.loss_scale)
        self._limit = LengthLimit.of(settings.chat, settings.sequence_len, spec.type)
        self._counts = Counts()
        self._tokenizer_fingerprint = settings.tokenizer_fingerprint
        self.ran = False

    @property
    def key(self) -> dict[str, Any]:
        """Everything that changes a token."""
        spec = self._spec
        key = {
            "source": self._source.fingerprint,
            **{field: getattr(spec, field) for field in ("type", "samples", "subset", "split")},
            "fields": {field: getattr(spec, field) for field in DATASET_FIELDS[spec.type]},
            "limit": asdict(self._limit),
            "tokenizer": self._tokenizer_fingerprint,
        }
        if self._is_text:
            return key
        chat = {field: value for field, value in asdict(self._chat).items() if field not in _NOT_TOKENS}
        template = read_template(self._chat.template) if self._chat.template else self._tokenizer.chat_template
        return {**key, "chat": chat, "template": template if self._chat.use_chat_template else None}

    def into(self, folder: Path) -> None:
        """Build the store in an empty folder."""
        self.ran = True
        highest_id = max(self._tokenizer.get_vocab().values())
        write_store(folder, np.uint16 if highest_id < 2**16 else np.int32, self._fill)

    def _fill(self, writer: RowWriter) -> dict[str, Any]:
        warnings: dict[str, str] = {}
        if self._is_text:
            documents = ((row.origin, document_text(row, self._spec)) for row in self._source.rows())
            steps = write_text(writer, documents, TextTokenizer(self._tokenizer), self._limit, self._counts)
        else:
            renderer = ChatRenderer(self._tokenizer, self._chat)
            steps, warnings = self._write_conversations(writer, renderer), renderer.warnings
        with closing(steps):
            _say_progress(self._name, steps, writer)
        if replace(self._source).fingerprint != self._source.fingerprint:  # looked at anew
            raise DataError(f"{self._name}: the data changed while it was read. Start again when it is complete.")
        return {
            **asdict(self._counts),
            **asdict(self._limit),
            "type": self._spec.type,
            "columns": self._columns,
            "warnings": list(warnings.values()),
        }

    def _write_conversations(self, writer: RowWriter, renderer: ChatRenderer) -> Generator[int, None, None]:
        encoder = ConversationEncoder(renderer, self._spec)
        with closing(encode_in_order(self._source.rows(), encoder)) as encoded:
            for number, (origin, conversation) in enumerate(encoded, start=1):
                write_conversation(writer, origin, conversation, self._limit, self._counts)
                yield number


def describe(name: str, store: RowStore) -> str:
    """Say in one line what became of the rows of a source."""
    info = store.info
    documents = f"{len(store.document_hashes)} documents, " if info["type"] == "text" else ""
    parts = [f"{name}: {documents}{len(store)} rows, {int(store.lengths.sum())} tokens"]
    kind = "documents" if info["type"] == "text" else "rows"
    if info["too_long"]:
        action = "left out" if info["strategy"] == "delete" else f"cut on the {info['strategy']}"
        parts.append(
            f"{info['too_long']} {kind} longer than max_length {info['max_length']} {action} "
            f"(first: {info['first_too_long']})"
        )
    if info["bad"]:
        parts.append(f"{info['bad']} {kind} that supervise no token left out (first: {info['first_bad']})")
    if info["empty"]:
        parts.append(f"{info['empty']} empty documents left out")
    return "; ".join(parts)


def _check(name: str, store: RowStore, max_bad_row_fraction: float) -> None:
    """Refuse a source that is not worth training on."""
    info: Mapping[str, Any] = store.info
    if info["bad"] > max_bad_row_fraction * info["num_rendered"]:
        raise DataError(
            f"{name}: {info['bad']} of {info['num_rendered']} rows supervise no token, the first is "
            f"{info['first_bad']}; max_bad_row_fraction allows a share of {max_bad_row_fraction:g}. A row needs an "
            "assistant's answer to a prompt, within max_length: check the columns and roles, or raise "
            "max_bad_row_fraction."
        )
    if not len(store):
        raise DataError(f"{name}: no row is left. {describe(name, store)}.")


def _say_progress(name: str, steps: Iterable[int], writer: RowWriter) -> None:
    """Take the steps of a build, and say now and then how far it is."""
    started = last_line = time.monotonic()
    for done in steps:
        now = time.monotonic()
        if now - last_line > _SECONDS_BETWEEN_PROGRESS_LINES:
            last_line = now
            rate = writer.num_tokens / (now - started)
            log.info("%s: %d rows read, %d tokens, %.0f a second", name, done, writer.num_tokens, rate)
