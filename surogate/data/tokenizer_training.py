"""A byte-level BPE tokenizer, trained on a corpus that is read once and never held.

What is not here: reading the corpus (sources.py) and writing the folder (cli/tokenizer.py). The one idea: the alphabet
is all 256 bytes, so no text is unknown and every text comes back byte for byte, however small the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surogate.config.parts import DatasetSpec
from surogate.data.files import TextFile
from surogate.data.sources import SourceRow, open_source
from surogate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
"""Stands between documents: the end of one, and where generation from nothing starts."""
PAD = "<|padding|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
"""ChatML, as SmolLM2 and Qwen use it, without a system prompt of its own."""

NUM_BYTES = 256
MIN_PAIR_COUNT = 2
"""A pair seen once says nothing about the next text."""
PIECE_LEN = 2**16
"""Characters handed over at a time: the library queues 256 of these."""
SAMPLE_LEN = 2**20
SAMPLE_OF_A_DOCUMENT = 2**13
"""Characters kept to measure compression: in all, and of one document."""


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """A tokenizer and what it was trained on.

    Attributes:
        tokenizer: ready to be saved.
        num_documents: rows read.
        num_bytes: of their text, in UTF-8.
        bytes_per_token: compression on the beginnings of the documents.
    """

    tokenizer: PreTrainedTokenizerFast
    num_documents: int
    num_bytes: int
    bytes_per_token: float


def train_tokenizer(
    specs: Sequence[DatasetSpec], vocab_size: int, *, chat: bool = False, show_progress: bool = False
) -> TrainedTokenizer:
    """Train a tokenizer on the text columns of data sets. The same data gives the same tokenizer.

    Memory grows with the number of distinct words, not with the corpus.

    Args:
        specs: where the text lies.
        vocab_size: number of tokens, special ones included; fewer where the corpus has no more pairs to merge.
        chat: add the tokens and the template of ChatML.
        show_progress: draw the library's progress bar.

    Raises:
        ConfigError: vocab_size leaves no room for all bytes.
        DataError: there is no text, or a row's is not text.
    """
    from tokenizers import pre_tokenizers, trainers

    special_tokens = [END, PAD, *(CHAT_TOKENS if chat else ())]
    smallest = NUM_BYTES + len(special_tokens)
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but the {NUM_BYTES} bytes and {len(special_tokens)} special tokens alone are "
            f"{smallest}. Set it to {smallest} or more; 1024 suits a few MB of text, 32000 a large corpus."
        )
    corpus = _Corpus(specs)
    bpe = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    bpe.train_from_iterator(corpus.pieces(), trainer)
    if not corpus.num_bytes:
        raise DataError("the data holds no text to train a tokenizer on.")
    bytes_per_token = len(corpus.sample.encode()) / len(bpe.encode(corpus.sample).ids)
    return TrainedTokenizer(_wrapped(bpe, chat), corpus.num_documents, corpus.num_bytes, bytes_per_token)


def _untrained() -> Tokenizer:
    """Return the parts that need no training: words as in GPT-2, digits one by one as in SmolLM2 and Llama 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _wrapped(bpe: Tokenizer, chat: bool) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS) if chat else [],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class _Corpus:
    """The text of data sets, counted and sampled as it goes by."""

    def __init__(self, specs: Sequence[DatasetSpec]) -> None:
        self._specs = specs
        self.num_documents = 0
        self.num_bytes = 0
        self._sample: list[str] = []

    @property
    def sample(self) -> str:
        """The beginnings of the first documents."""
        return "".join(self._sample)

    def pieces(self) -> Iterator[str]:
        """Yield all text in pieces of about PIECE_LEN, none of which tears a word."""
        left = SAMPLE_LEN
        for spec in self._specs:
            for row in open_source(spec).rows():
                self.num_documents += 1
                left_of_row = min(left, SAMPLE_OF_A_DOCUMENT)
                for piece in _pieces_of(row, spec.text_field):
                    self.num_bytes += len(piece.encode())
                    if left_of_row > 0:
                        self._sample.append(piece[:left_of_row])
                        left -= min(len(piece), left_of_row)
                        left_of_row -= len(piece)
                    yield piece


def _pieces_of(row: SourceRow, text_field: str) -> Iterator[str]:
    if text_field not in row.values:
        raise DataError(
            f"{row.origin}: there is no column {text_field!r}; the row has {', '.join(row.values) or 'none'}. "
            "Name the column of the text with --text_field."
        )
    text = row.values[text_field]
    if not isinstance(text, str | TextFile):
        raise DataError(f"{row.origin}: {text_field} must be text, got {type(text).__name__}.")
    for block in text.blocks() if isinstance(text, TextFile) else [text]:
        start = 0
        while start < len(block):
            end = block.find(" ", start + PIECE_LEN)  # a space opens a word: see ByteLevel
            end = len(block) if end == -1 else end
            yield block[start:end]
            start = end
