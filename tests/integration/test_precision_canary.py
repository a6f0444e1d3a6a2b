"""The canary through the command line: its numbers are in the records, and the run is the one without it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.quantised import BNB, of_bitsandbytes, store_again
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer

from surogate.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13

VALUES: dict[str, Any] = {
    "model": "model",
    "datasets": [{"path": "rows.jsonl", "type": "instruction"}],
    "max_steps": 6,
    "save_steps": 3,
    "sequence_len": 64,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "validation_split_ratio": 0.2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "lora_rank": 4,
    "lora_dropout": 0.1,
    "qlora_bnb": True,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and rows."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model", vocab_size=160, hidden_size=64, intermediate_size=128)
    save_word_tokenizer(tmp_path / "model", [f"w{i}" for i in range(140)])
    rows = [{"instruction": f"w{i} w{i + 1}", "output": f"w{i + 2} w{i + 3}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(output: str, **changes: Any) -> None:
    Path(f"{output}.yaml").write_text(json.dumps({**VALUES, "output_dir": output, **changes}))
    assert main(["sft", f"{output}.yaml"]) == 0


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def canaries(output: str) -> list[dict[str, Any]]:
    return [record for record in records(output) if any(key.startswith("precision/") for key in record)]


def test_a_watched_run_stopped_or_not_is_the_run_that_nobody_watched(folder: Path) -> None:
    train("plain")
    train("watched", precision_canary_steps=2)
    train("stopped", precision_canary_steps=2, max_steps=3)
    train("stopped", precision_canary_steps=2)
    losses = [[r["train/loss"] for r in records(run) if "train/loss" in r] for run in ("plain", "watched", "stopped")]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 6
    adapters = [load_file(Path(run, "adapter/adapter_model.safetensors")) for run in ("plain", "watched", "stopped")]
    assert all(adapters[0][name].equal(other[name]) for other in adapters[1:] for name in adapters[0])
    assert canaries("plain") == []
    assert [record["step"] for record in canaries("watched")] == [1, 2, 4, 6]
    assert canaries("watched") == canaries("stopped"), "the same layers, and no step twice"


def test_the_numbers_are_in_the_table_too(folder: Path) -> None:
    train("run", precision_canary_steps=3)
    key = next(key for key in canaries("run")[0] if key.endswith("/output_snr_db"))
    with Path("run/metrics.csv").open(newline="") as file:
        cells = [row[key] for row in csv.DictReader(file)]
    assert [float(cell) for cell in cells if cell] == [record[key] for record in canaries("run")]
    assert all(15 < record[key] < 35 for record in canaries("run"))


def test_a_quantised_checkpoint_is_watched_without_its_original(folder: Path, capsys: Any) -> None:
    store_again(folder / "model", of_bitsandbytes(), BNB)
    train("run", precision_canary_steps=3, qlora_bnb=False)
    assert "the checkpoint is quantised itself, so there are no original weights" in capsys.readouterr().err
    assert all(value > 30 for key, value in canaries("run")[0].items() if key.endswith("snr_db"))
