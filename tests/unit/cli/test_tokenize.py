from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.word_tokenizer import save_word_tokenizer

from surogate.cli.tokenize import main
from surogate.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_word_tokenizer(tmp_path / "tokenizer", ["w1", "w2"])
    rows = [{"instruction": "w1", "output": "w2"} for _ in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "book.txt").write_text("w1 w2 " * 100)
    path = tmp_path / "cfg.yaml"
    values = {
        "model": str(tmp_path / "tokenizer"),
        "datasets": [{"path": str(tmp_path / "rows.jsonl")}],
        "validation_datasets": [{"path": str(tmp_path / "book.txt")}],
    }
    path.write_text(json.dumps(values))
    return path


def test_every_data_set_is_tokenised_and_its_folder_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--sequence_len", "64"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [["rows", "4 rows", "24 tokens"], ["book", "4 rows", "201 tokens"]]
    assert all((Path(line[3]) / "manifest.json").is_file() for line in lines)


def test_the_mode_decides_what_of_a_conversation_is_supervised(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for mode in ("sft", "pt"):
        main([str(config), "--mode", mode])
        folders.append([line.split("  ")[3] for line in capsys.readouterr().out.splitlines()])
    assert folders[0][0] != folders[1][0]
    assert folders[0][1] == folders[1][1], "text is the same in both"


def test_a_mistake_in_the_configuration_is_told(config: Path) -> None:
    with pytest.raises(ConfigError, match="sequence_length"):
        main([str(config), "--sequence_length", "64"])


def test_help_and_tokenising_load_no_lightning() -> None:
    code = "import sys, surogate.cli.tokenize, surogate.data.prepare; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
