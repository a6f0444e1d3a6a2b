"""A trained tokenizer: whole alphabet, same data same tokens, and honest about what it read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data import tokenizer_training
from surogate.data.chat import ChatRenderer
from surogate.data.tokenizer_training import END, train_tokenizer
from surogate.errors import ConfigError, DataError

SPEECHES = [DatasetSpec(path=str(Path(__file__).parents[2] / "data" / f"sotu-{year}.txt")) for year in (1790, 1800)]


def jsonl(path: Path, *rows: object) -> list[DatasetSpec]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [DatasetSpec(path=str(path))]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(SPEECHES, 400)


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_as_it_was(trained, text):
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == text


def test_text_in_scripts_that_training_never_saw_comes_back_too(trained):
    text = "naïve 漢字 🙂 \r\n\t  two  spaces\x00 ,  .\n\n" + END
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == text


def test_the_vocabulary_has_the_size_that_was_asked_for_and_compresses(trained):
    assert len(trained.tokenizer) == 400
    assert max(trained.tokenizer.get_vocab().values()) == 399
    assert trained.num_documents == 2
    assert trained.num_bytes == sum(Path(spec.path).stat().st_size for spec in SPEECHES)
    text = Path(SPEECHES[0].path).read_text()
    assert 1.3 < len(text) / len(trained.tokenizer.encode(text)) < 3
    assert 1.3 < trained.bytes_per_token < 3


def test_documents_end_with_the_end_token_and_padding_is_another(trained):
    tokenizer = trained.tokenizer
    assert (tokenizer.eos_token, tokenizer.bos_token) == (END, END)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.chat_template is None


def test_every_digit_is_a_token(tmp_path):
    trained = train_tokenizer(jsonl(tmp_path / "a.jsonl", {"text": "1790 1790 1790"}), 300)
    assert trained.tokenizer.tokenize("1790") == ["1", "7", "9", "0"]


def test_the_same_data_gives_the_same_tokenizer(trained):
    again = train_tokenizer(SPEECHES, 400)
    assert again.tokenizer.backend_tokenizer.to_str() == trained.tokenizer.backend_tokenizer.to_str()
    other = train_tokenizer(SPEECHES[:1], 400)
    assert other.tokenizer.backend_tokenizer.to_str() != trained.tokenizer.backend_tokenizer.to_str()


def test_a_long_document_is_handed_over_in_pieces_that_tear_no_word(tmp_path, trained, monkeypatch):
    text = " ".join(Path(spec.path).read_text() for spec in SPEECHES)
    specs = jsonl(tmp_path / "one.jsonl", {"text": text})
    whole = train_tokenizer(specs, 400)
    monkeypatch.setattr(tokenizer_training, "PIECE_LEN", 100)
    pieces = list(tokenizer_training._Corpus(specs).pieces())
    assert "".join(pieces) == text
    assert len(pieces) > 50
    assert all(piece.startswith(" ") for piece in pieces[1:])
    assert train_tokenizer(specs, 400).tokenizer.get_vocab() == whole.tokenizer.get_vocab()


def test_compression_is_measured_on_the_beginnings_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "SAMPLE_LEN", 25)
    monkeypatch.setattr(tokenizer_training, "SAMPLE_OF_A_DOCUMENT", 10)
    corpus = tokenizer_training._Corpus(jsonl(tmp_path / "a.jsonl", *({"text": letter * 30} for letter in "abcd")))
    list(corpus.pieces())
    assert corpus.sample == "a" * 10 + "b" * 10 + "c" * 5


def test_a_small_corpus_gives_fewer_tokens_than_asked_for(tmp_path):
    small = train_tokenizer(jsonl(tmp_path / "a.jsonl", {"text": "ab ab"}), 400)
    assert len(small.tokenizer) == 259  # all bytes, two special tokens, and "ab"


def test_rows_and_columns_are_chosen_as_in_a_dataset(tmp_path):
    path = tmp_path / "a.jsonl"
    jsonl(path, {"body": "xyz xyz xyz"}, {"body": "never never never"})
    chosen = train_tokenizer([DatasetSpec(path=str(path), text_field="body", samples=1)], 400)
    assert chosen.num_documents == 1
    assert "xyz" in chosen.tokenizer.get_vocab()
    assert not any("ver" in token for token in chosen.tokenizer.get_vocab())


def test_chat_adds_a_template_that_the_renderer_can_supervise():
    tokenizer = train_tokenizer(SPEECHES[:1], 300, chat=True).tokenizer
    renderer = ChatRenderer(tokenizer, ChatSpec())
    (row,) = renderer.encode([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}])
    assert tokenizer.decode(row.input_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    assert tokenizer.decode(row.input_ids[row.loss_mask]) == "Yes.<|im_end|>"
    assert renderer.end_token_id() == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == END


@pytest.mark.parametrize(("chat", "smallest"), [(False, 258), (True, 260)])
def test_a_vocabulary_without_room_for_all_bytes_is_refused(chat, smallest):
    with pytest.raises(ConfigError, match=f"vocab_size is {smallest - 1}, .* Set it to {smallest} or more"):
        train_tokenizer(SPEECHES, smallest - 1, chat=chat)
    assert len(train_tokenizer(SPEECHES[:1], smallest, chat=chat).tokenizer) == smallest


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"body": "x", "n": 1}, r"a.jsonl:2: there is no column 'text'; the row has body, n. Name .* --text_field"),
        ({"text": 7}, "a.jsonl:2: text must be text, got int"),
        ({"text": None}, "a.jsonl:2: text must be text, got NoneType"),
    ],
)
def test_a_row_that_is_not_text_is_named(tmp_path, row, sentence):
    with pytest.raises(DataError, match=sentence):
        train_tokenizer(jsonl(tmp_path / "a.jsonl", {"text": "fine"}, row), 300)


def test_data_without_any_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="the data holds no text"):
        train_tokenizer(jsonl(tmp_path / "a.jsonl", {"text": ""}), 300)
