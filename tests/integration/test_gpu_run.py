"""Whole LoRA and QLoRA runs on one GPU, in bfloat16, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

from surogate.cli.main import main


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"qlora_bnb": True}, {"qlora_fp8": True}, {"qlora_fp4": True}], ids=str)
def test_a_run_on_a_gpu_learns_in_bfloat16_with_recompute(tmp_path: Path, changes: dict[str, bool]) -> None:
    words = [f"w{i}" for i in range(20)]
    save_tiny_model(tmp_path / "model", vocab_size=32, hidden_size=64, head_dim=16, initializer_range=0.1)
    save_word_tokenizer(tmp_path / "model", words)
    rows = [{"instruction": word, "output": word} for word in words * 8]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": str(tmp_path / "model"),
        "model_dtype": "bfloat16",
        "datasets": [{"path": str(tmp_path / "rows.jsonl")}],
        "output_dir": str(tmp_path / "run"),
        "sequence_len": 128,
        "num_epochs": 20,
        "learning_rate": 0.01,
        **changes,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert main(["sft", str(tmp_path / "run.yaml")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert losses[-1] < 0.7 * losses[0]
