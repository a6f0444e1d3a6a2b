from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surogate.callbacks.environment import EnvironmentRecord, git_state, installed_version, without_secrets


def record(folder: Path, **changes: Any) -> dict[str, Any]:
    values = {"is_global_zero": True, "world_size": 2, "strategy": object(), "datamodule": None, "loggers": []}
    trainer: Any = SimpleNamespace(**{**values, **changes})
    EnvironmentRecord(str(folder)).on_fit_start(trainer, None)  # type: ignore[arg-type]
    return json.loads((folder / "environment.json").read_text())


def test_the_record_says_with_what_and_on_what_the_run_was_made(tmp_path: Path) -> None:
    data = SimpleNamespace(data_summary=lambda: {"rows": 3, "fingerprint": "ab"})
    written = record(tmp_path, datamodule=data)
    assert written["packages"]["torch"] == installed_version("torch")
    assert written["data"] == {"rows": 3, "fingerprint": "ab"}
    assert written["world_size"] == 2
    assert written["cpu_cores"] > 0 and written["memory_gib"] > 0.1 and isinstance(written["gpus"], list)
    assert {"surogate", "git", "python", "platform", "command", "cpu", "cuda"} <= written.keys()


def test_a_token_on_the_command_line_never_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["surogate", "sft", "c.yaml", "--hub_token", "hf_abc", "--max_steps", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    written = record(tmp_path)
    assert written["command"] == ["surogate", "sft", "c.yaml", "--hub_token", "***", "--max_steps", "3"]
    assert "hf_abc" not in (tmp_path / "environment.json").read_text()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--hub_token=hf_abc"], ["--hub_token=***"]),
        (["--a.api_key", "x", "--b", "y"], ["--a.api_key", "***", "--b", "y"]),
        (["--Password=x=y"], ["--Password=***"]),
        (["--max_tokens", "5"], ["--max_tokens", "5"]),
        (["--tokenizer", "smol"], ["--tokenizer", "smol"]),
        (["hub_token", "5"], ["hub_token", "5"]),
    ],
)
def test_what_looks_like_a_secret_is_hidden_and_nothing_else(given: list[str], shown: list[str]) -> None:
    assert without_secrets(given) == shown


def test_a_commit_is_recorded_with_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "new.py").touch()
    assert (git_state(tmp_path) or {})["dirty"] is True


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        record(tmp_path, is_global_zero=False)
