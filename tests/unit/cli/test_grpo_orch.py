"""The orchestrator by itself: with which tokenizer it writes prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surogate.cli import grpo_orch
from surogate.data import tokenizers
from surogate.errors import ModelError

ORCH = """
model: {name: org/model}
output_dir: run
max_steps: 2
seq_len: 64
env: {id: arithmetic}
client: {base_url: http://node:8000}
"""


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], ("org/model", False)),
        (["--model.tokenizer", "org/words", "--model.trust_remote_code", "true"], ("org/words", True)),
    ],
)
def test_the_tokenizer_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], asked: tuple[str, bool]
) -> None:
    (tmp_path / "orch.yaml").write_text(ORCH)

    def load(*arguments: Any) -> None:
        raise ModelError(repr(arguments))

    monkeypatch.setattr(tokenizers, "load_tokenizer", load)
    with pytest.raises(ModelError) as caught:
        grpo_orch.main([str(tmp_path / "orch.yaml"), *options])
    assert str(caught.value) == repr(asked)
