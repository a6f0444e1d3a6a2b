"""`surogate env-check` in this process: what it reads, refuses and prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.byte_model import byte_tokenizer

from surogate.cli.env_check import main
from surogate.errors import ConfigError

ORCH = "env: [{id: arithmetic, args: {num_examples: 4}}]\nrollouts_per_example: 2\nbatch_size: 2\nmax_steps: 1\n"


@pytest.fixture
def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the verb on an orch.yaml; return its exit code and what it printed."""

    def run(text: str, *argv: str) -> tuple[int, str]:
        (tmp_path / "orch.yaml").write_text(text)
        return main([str(tmp_path / "orch.yaml"), *argv]), capsys.readouterr().out

    return run


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_prompts_are_counted_by_the_models_tokenizer_without_the_model(checked, tokenizer):
    length = len("3 + 4 = 7\n9 - 2 = 7\n2 * 3 = 6\n1 + 2 =")
    code, printed = checked(ORCH + "seq_len: 64\n", "--model.name", tokenizer)
    assert (code, f"tokens of prompts    {length} to {length} (4), of seq_len 64\n" in printed) == (0, True)
    code, printed = checked(ORCH + "seq_len: 30\n", "--model.name", tokenizer)
    assert code == 1 and "problem: no prompt leaves room for a completion in seq_len 30" in printed


def test_without_a_model_it_says_that_lengths_were_not_counted(checked):
    code, printed = checked(ORCH)
    assert code == 0 and printed.endswith("add --model.name MODEL, whose tokenizer counts them.\n")


def test_an_option_of_the_template_that_it_does_not_know_is_refused(checked, tokenizer):
    with pytest.raises(ConfigError, match="has enable_thinking, and the model's chat template knows no such option"):
        checked(ORCH + "sampling: {chat_template_kwargs: {enable_thinking: false}}\n", "--model.name", tokenizer)


def test_what_is_wrong_with_several_environments_is_told_at_once(checked):
    text = ORCH.replace("num_examples: 4}}", "digit: 4}}, {id: math, args: {path: gone.jsonl}}")
    with pytest.raises(ConfigError, match=r"(?s)'digit' is no argument.*args.path 'gone.jsonl' does not exist"):
        checked(text)


@pytest.mark.parametrize("argv", [["--examples", "0"], ["--sample", "few"]])
def test_a_count_is_a_whole_number_above_0(checked, argv, capsys):
    with pytest.raises(SystemExit):
        checked(ORCH, *argv)
    assert f"{argv[1]!r} is no whole number above 0" in capsys.readouterr().err
