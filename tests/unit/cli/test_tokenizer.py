"""`surogate tokenizer train`: a folder that loads, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from surogate.cli.tokenizer import main
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import ConfigError, DataError

SPEECH = Path(__file__).parents[2] / "data" / "sotu-1790.txt"


def train(output: Path, *options: str, vocab_size: int = 300, data: Path = SPEECH) -> int:
    return main(["train", "--data", str(data), "--vocab_size", str(vocab_size), "--output", str(output), *options])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_loads_and_the_report_says_what_it_is(tmp_path, capsys):
    assert train(tmp_path / "deep" / "tok") == 0
    tokenizer = load_tokenizer(str(tmp_path / "deep" / "tok"))
    assert len(tokenizer) == 300
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|padding|>")
    text = SPEECH.read_text()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    report = capsys.readouterr().out
    assert f"300 tokens from 1 documents ({SPEECH.stat().st_size / 1e6:.1f} MB)" in report
    assert "bytes per token" in report and "seconds" in report


def test_the_same_command_writes_the_same_files(tmp_path):
    for name in ("one", "two"):
        train(tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert set(files(tmp_path / "one")) == {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_a_tokenizer_is_replaced_only_when_asked(tmp_path):
    train(tmp_path / "tok")
    before = files(tmp_path / "tok")
    with pytest.raises(ConfigError, match=r"holds a tokenizer already\. Add --force"):
        train(tmp_path / "tok", "--chat")
    assert files(tmp_path / "tok") == before
    train(tmp_path / "tok", "--chat", "--force")
    assert load_tokenizer(str(tmp_path / "tok")).chat_template.startswith("{%- for message")
    train(tmp_path / "tok", "--force")
    assert files(tmp_path / "tok") == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_with_anything_else_is_never_replaced(tmp_path, force):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "model.safetensors").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds more than a tokenizer \(model\.safetensors\)"):
        train(tmp_path / "tok", *force)
    assert files(tmp_path / "tok") == {"model.safetensors": b"precious"}


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        train(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        train(tmp_path / "file" / "tok")


def test_bad_data_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "tok", data=tmp_path / "nowhere.txt")
    assert list(tmp_path.iterdir()) == []


def test_several_data_sets_are_read_as_their_options_say(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("body\n" + "one two three\n" * 5)
    more = ["--data", str(tmp_path / "b.csv"), "--text_field", "body", "--samples", "3"]
    train(tmp_path / "tok", *more, data=tmp_path / "a.csv")
    report = capsys.readouterr().out
    assert "from 6 documents" in report
    assert "fewer than vocab_size 300" in report


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "required: train"),
        (["train"], "required: --data, --vocab_size, --output"),
        (["train", "--samples", "0"], "--samples: must be a whole number above 0, got '0'"),
        (["train", "--vocab_size", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_wrong_command_line_is_explained(argv, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
