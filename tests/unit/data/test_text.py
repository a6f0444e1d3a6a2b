from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from surogate.batches import IGNORE, PackedRow
from surogate.data import text
from surogate.data.encoding import Counts, LengthLimit
from surogate.data.files import LocalFile, TextFile
from surogate.data.row_store import RowStore
from surogate.data.row_writer import COLUMNS, RowWriter
from surogate.data.text import TextTokenizer, write_text
from surogate.errors import DataError

SPEECHES = [path.read_text() for path in sorted((Path(__file__).parents[2] / "data").glob("sotu-*.txt"))]
SHORT_PIECES = 400


@pytest.fixture(scope="module")
def byte_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the speeches."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    core.train_from_iterator(SPEECHES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


@pytest.fixture(scope="module")
def prefixing() -> PreTrainedTokenizerFast:
    """One that puts a space in front of every text and knows no words, as Llama 2's does."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "</s>"], show_progress=False)
    core.train_from_iterator([word for speech in SPEECHES for word in speech.split()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_PIECE_LEN", SHORT_PIECES)
    monkeypatch.setattr(text, "_BATCH_LEN", 5 * SHORT_PIECES)
    monkeypatch.setattr(text, "_BLOCK_LEN", 1000)


def write(
    tokenizer: Any, documents: Sequence[str | TextFile], max_length: int = 64, strategy: str = "split"
) -> tuple[RowStore, Counts]:
    sinks = {name: io.BytesIO() for name in COLUMNS}
    writer, counts = RowWriter(sinks, np.int32), Counts()
    named = [(f"texts:{i}", document) for i, document in enumerate(documents, start=1)]
    for _ in write_text(writer, named, TextTokenizer(tokenizer), LengthLimit(max_length, strategy), counts):
        pass
    manifest = writer.finish({})
    columns = {name: np.frombuffer(sinks[name].getbuffer(), manifest["dtypes"][name]) for name in COLUMNS}
    return RowStore(columns, manifest), counts


def ids_of(store: RowStore) -> list[int]:
    return [int(token) for row in range(len(store)) for token in store[row].input_ids]


def whole(tokenizer: Any, documents: Sequence[str]) -> list[int]:
    """The tokens of documents that are tokenised each at once, with EOS."""
    return [
        token
        for document in documents
        for token in [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]


@pytest.mark.parametrize("name", ["byte_bpe", "smollm2"])
@pytest.mark.parametrize("max_length", [7, 64, 1024])
def test_all_rows_decoded_in_order_are_the_corpus_with_eos_at_document_ends(
    name: str, max_length: int, short_pieces: None, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    documents = [*SPEECHES, "One line.\n", "  leading and trailing space \n\n", "\r\nDas heißt 🙂 naïve\t1234567"]
    store, counts = write(tokenizer, documents, max_length)
    assert tokenizer.decode(ids_of(store)) == "".join(document + tokenizer.eos_token for document in documents)
    assert ids_of(store) == whole(tokenizer, documents)
    assert counts == Counts(num_rendered=len(documents))


def test_a_file_is_read_and_tokenised_block_by_block(byte_bpe: Any, short_pieces: None, tmp_path: Path) -> None:
    path = tmp_path / "speech.txt"
    path.write_text(SPEECHES[0])
    store, _ = write(byte_bpe, [TextFile(LocalFile(path, path.name))])
    assert ids_of(store) == whole(byte_bpe, [SPEECHES[0]])


def test_every_token_but_the_first_of_a_document_is_predicted_once(byte_bpe: Any) -> None:
    store, _ = write(byte_bpe, SPEECHES, max_length=50)
    documents = len(store.document_hashes)
    assert int(store.num_loss_tokens.sum()) == int(store.lengths.sum()) - documents
    packed = PackedRow.from_rows([store[row] for row in range(len(store))])
    firsts = np.flatnonzero(np.diff(store.documents, prepend=-1))
    expected = np.delete(packed.input_ids_T, store.lengths.cumsum()[firsts] - store.lengths[firsts])
    assert packed.labels_T[packed.labels_T != IGNORE].tolist() == expected.tolist()


WORDS = st.sampled_from(
    ["a", "The", "war", "1812", "…", "\n", "\n\n", " ", "  ", "\t", ".", "'s", "🙂", "ß", "\r\n", "-"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, min_size=40, max_size=200))
@pytest.mark.parametrize("name", ["byte_bpe", "smollm2", "prefixing"])
def test_a_cut_changes_no_token(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(text, "_PIECE_LEN", 40)
    monkeypatch.setattr(text, "_WINDOW_LEN", 20)
    tokenizer, document = request.getfixturevalue(name), "".join(words) + "x"
    assert ids_of(write(tokenizer, [document])[0]) == whole(tokenizer, [document])


@pytest.mark.parametrize("name", ["byte_bpe", "prefixing"])
def test_a_long_document_is_cut_into_short_pieces(
    name: str, short_pieces: None, request: pytest.FixtureRequest
) -> None:
    pieces = list(TextTokenizer(request.getfixturevalue(name)).pieces(iter([SPEECHES[0], SPEECHES[1]])))
    assert "".join(pieces) == SPEECHES[0] + SPEECHES[1]
    longest_line = max(map(len, (SPEECHES[0] + SPEECHES[1]).splitlines()))
    assert max(map(len, pieces[:-1])) <= 2 * SHORT_PIECES + (longest_line if name == "prefixing" else 0)


def test_a_place_where_the_tokens_would_change_is_not_cut(byte_bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_PIECE_LEN", 10)
    joined = PreTrainedTokenizerFast(tokenizer_object=byte_bpe.backend_tokenizer, eos_token="<end>")
    joined.add_tokens(["one\ntwo", "five six"])
    document = "zero ...... one\ntwo three four five six seven\n" * 20
    assert ids_of(write(joined, [document])[0]) == whole(joined, [document])
    pieces = list(TextTokenizer(joined).pieces([document]))
    assert len(pieces) > 5 and not any(piece.endswith(("one\n", "five")) for piece in pieces)


def test_blocks_are_not_read_before_they_are_needed(byte_bpe: Any, short_pieces: None) -> None:
    read = 0

    def blocks() -> Iterator[str]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield "A line of some words.\n" * 100

    next(TextTokenizer(byte_bpe).pieces(blocks()))
    assert read == 1


def test_bos_stands_only_where_the_tokenizer_puts_it(llama3: Any, byte_bpe: Any) -> None:
    long = "hello there " * 40
    ids = ids_of(write(llama3, [long, "hello"], max_length=16)[0])
    assert [i for i, token in enumerate(ids) if token == llama3.bos_token_id] == [0, ids.index(llama3.eos_token_id) + 1]
    assert ids_of(write(byte_bpe, ["hello"])[0]) == whole(byte_bpe, ["hello"])


def test_a_last_piece_of_one_token_is_no_bad_row(byte_bpe: Any) -> None:
    ids = whole(byte_bpe, [SPEECHES[0][:100]])
    store, counts = write(byte_bpe, [SPEECHES[0][:100]], max_length=len(ids) - 1)
    assert [len(store[row]) for row in range(len(store))] == [len(ids) - 1, 1]
    assert store[0].next_token == byte_bpe.eos_token_id and store[1].next_token is None
    assert (store.num_loss_tokens.tolist(), counts.bad) == ([len(ids) - 1, 0], 0)


@pytest.mark.parametrize(
    ("strategy", "kept"), [("delete", None), ("left", slice(-16, None)), ("right", slice(16))], ids=str
)
def test_a_long_text_can_be_left_out_or_cut(strategy: str, kept: slice | None, byte_bpe: Any) -> None:
    store, counts = write(byte_bpe, ["Short.", SPEECHES[0]], max_length=16, strategy=strategy)
    long = whole(byte_bpe, [SPEECHES[0]])
    assert ids_of(store) == whole(byte_bpe, ["Short."]) + (long[kept] if kept else [])
    assert (counts.too_long, counts.first_too_long) == (1, "texts:2")
    assert counts.lost_tokens == len(long) - (16 if kept else 0)


def test_documents_without_text_are_counted_and_left_out(byte_bpe: Any) -> None:
    store, counts = write(byte_bpe, ["", "Text.", " \n\t"])
    assert (len(store.document_hashes), counts.empty, counts.num_rendered) == (1, 2, 1)
    assert store.origin(0) == "texts:2"


def test_a_document_that_gives_no_token_is_bad() -> None:
    core = Tokenizer(models.WordLevel({"<end>": 0, "word": 1}, unk_token="<end>"))
    core.normalizer = normalizers.Replace("nothing", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    store, counts = write(tokenizer, ["nothing", "word"])
    assert (ids_of(store), counts.bad, counts.first_bad) == ([1, 0], 1, "texts:1")


def test_a_tokenizer_without_eos_is_refused(byte_bpe: Any) -> None:
    with pytest.raises(DataError, match="has no eos_token, which must end every document"):
        TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_bpe.backend_tokenizer))


def test_equal_texts_have_equal_hashes_however_they_are_read(byte_bpe: Any, short_pieces: None, tmp_path: Path) -> None:
    path = tmp_path / "speech.txt"
    path.write_text(SPEECHES[0])
    hashes = write(byte_bpe, [SPEECHES[0], TextFile(LocalFile(path, path.name)), SPEECHES[1]])[0].document_hashes
    assert hashes[0] == hashes[1] != hashes[2]
