from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.word_tokenizer import save_word_tokenizer

from surogate.cli import inspect
from surogate.errors import ConfigError
from surogate.run_folder import RunFolder


@pytest.fixture
def run_file(tmp_path: Path) -> Any:
    """Writes rows and a configuration of them; the first row's answer can be chosen."""
    model = save_word_tokenizer(tmp_path / "model", [f"row{i}" for i in range(30)])

    def write(row: Any = None, **keys: Any) -> str:
        rows = [row or {"instruction": "row0", "output": "word word"}]
        rows += [{"instruction": f"row{i}", "output": "word word word"} for i in range(1, 30)]
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "model": str(model),
            "output_dir": str(tmp_path / "output"),
            "datasets": [{"path": str(data)}],
            "validation_split_ratio": 0,
            "sequence_len": 32,
            **keys,
        }
        path = tmp_path / "cfg.yaml"
        path.write_text(json.dumps(values))
        return str(path)

    return write


def test_good_data_is_shown_and_returns_0(run_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([run_file(), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "<user>row0<end><assistant>⟦wordword<end>⟧" in "".join(shown.split())
    assert "30 of 30 turns" in shown and "Nothing to remark." in shown
    run = RunFolder(tmp_path / "output")
    assert f"The same as a page: {run.path / 'inspect.html'}" in shown
    assert (run.path / "inspect.html").read_text().startswith("<!doctype html>")
    assert not run.has_results()


def test_problems_return_1_and_still_make_the_page(
    run_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "page.html"
    hostile = {"path": str(tmp_path / "rows.jsonl"), "name": "[bold]\x1b[2Jheld"}
    assert inspect.main([run_file(validation_datasets=[hostile]), "--output", str(page)]) == 1
    shown = capsys.readouterr().out
    assert "✗ problem  [bold]␛[2Jheld: 30 of 30" in shown and "\x1b" not in shown
    assert "of the validation are also trained on" in page.read_text()


def test_a_row_that_cannot_be_used_is_a_problem(run_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([run_file({"instruction": "row0", "output": ["[/] \x1b[2J"]})]) == 1
    shown = capsys.readouterr().out
    assert "✗ problem" in shown and "rows.jsonl:1" in "".join(shown.split()) and "\x1b[2J" not in shown


def test_overrides_reach_the_configuration(run_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([run_file(), "--samples", "0", "--sequence_len", "64", "--loss_scale=all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "A pack of 64 tokens" in shown and "30 rows from end to end" in shown and "⟦" not in shown


def test_the_mode_chooses_the_schema(run_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([run_file(), "--mode", "pt"]) == 0
    assert "30 rows from end to end" in " ".join(capsys.readouterr().out.split())


def test_text_that_a_terminal_would_obey_is_shown_as_signs(
    run_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_file()
    (tmp_path / "model" / "tokenizer.json").write_text(
        (tmp_path / "model" / "tokenizer.json").read_text().replace("row0", "[bold]\\u001b[31m")
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "[bold]\x1b[31m", "output": "word"}) + "\n")
    assert inspect.main([path]) == 0
    shown = capsys.readouterr().out
    assert "[bold]␛[31m" in shown and "\x1b" not in shown


def test_mistakes_on_the_command_line_are_told(run_file: Any) -> None:
    with pytest.raises(ConfigError, match="Name the configuration first"):
        inspect.main(["--learning_rate", "1e-4", run_file()])
    with pytest.raises(ConfigError, match="Did you mean learning_rate"):
        inspect.main([run_file(), "--learnign_rate", "1"])
    with pytest.raises(SystemExit, match="2"):
        inspect.main([run_file(), "--samples", "-1"])
