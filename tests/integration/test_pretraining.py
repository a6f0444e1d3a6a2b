"""`surogate pt` as a user types it: a tokenizer, a model from random weights, a stop, a resume, a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.cli.main import main
from surogate.run_folder import RunFolder

SPEECHES = sorted((Path(__file__).parents[1] / "data").glob("sotu-*.txt"))

CONFIG = """\
model: model
tokenizer: tokenizer
from_scratch: true
datasets: [{path: corpus.jsonl, type: text}]
sequence_len: 64
per_device_train_batch_size: 8
gradient_accumulation_steps: 1
learning_rate: 5e-3
optimizer: adamw
max_steps: 6
save_steps: 3
recompute: false
dataloader_num_workers: 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, the configuration of a model, and cfg.yaml."""
    folder = tmp_path_factory.mktemp("pt")
    paragraphs = [text for speech in SPEECHES for text in speech.read_text().split("\n") if text.strip()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs))
    arguments = ["--data", str(folder / "corpus.jsonl"), "--vocab_size", "384", "--output", str(folder / "tokenizer")]
    assert main(["tokenizer", "train", *arguments]) == 0
    tiny_config(vocab_size=384, initializer_range=0.02).save_pretrained(folder / "model")
    (folder / "cfg.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def pt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `surogate pt cfg.yaml` in the folder, with overrides."""
    monkeypatch.chdir(folder)
    return lambda output, *overrides: main(["pt", "cfg.yaml", "--output_dir", output, *overrides])


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def test_a_model_is_pretrained_from_scratch_and_its_folder_loads_in_transformers(folder, pt, capsys):
    assert pt("whole") == 0
    run = RunFolder(folder / "whole")
    curve = losses(run.path)
    assert len(curve) == 6
    assert curve[1] == pytest.approx(np.log(384), abs=0.1), "random weights guess"
    assert curve[6] < curve[1] - 0.3

    model = AutoModelForCausalLM.from_pretrained(run.model_dir)
    trained = torch.load(run.latest_valid_checkpoint() / "trainer.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(model.model.embed_tokens.weight, trained["model.model.embed_tokens.weight"])
    tokenizer = AutoTokenizer.from_pretrained(run.model_dir)
    assert tokenizer.decode(tokenizer("My fellow Americans").input_ids) == "My fellow Americans"
    assert not run.adapter_dir.exists()

    shown = capsys.readouterr().err
    assert "before training" not in shown, "random weights have nothing to compare with"
    assert run.samples_txt.read_text().count("|") == 3

    assert main(["generate", str(run.path), "--prompt", "The Congress", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_stopped_pretraining_goes_on_bit_for_bit(folder, pt):
    assert pt("stopped", "--max_steps", "3", "--lr_scheduler_type", "constant") == 0
    assert pt("stopped", "--max_steps", "6", "--lr_scheduler_type", "constant") == 0
    assert pt("straight", "--max_steps", "6", "--lr_scheduler_type", "constant") == 0
    assert losses(folder / "stopped") == losses(folder / "straight")


def test_continued_pretraining_shows_the_perplexity_before_it(folder, pt, capsys):
    pt("first", "--max_steps", "3")
    capsys.readouterr()
    base = str(folder / "first/model")
    assert pt("continued", "--model", base, "--from_scratch", "false", "--max_steps", "2") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("val ")]
    assert "before training" not in lines[0]
    assert "before training)" in lines[-1]
    records = [json.loads(line) for line in (folder / "continued/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val/loss" in record] == [0, 2]


def test_an_adapter_adapts_to_a_domain_and_the_merged_model_is_left_too(folder, pt):
    pt("first", "--max_steps", "3")
    base = str(folder / "first/model")
    overrides = ["--from_scratch", "false", "--lora", "true", "--merge_adapter", "true", "--max_steps", "2"]
    assert pt("adapted", "--model", base, *overrides) == 0
    run = RunFolder(folder / "adapted")
    assert (run.adapter_dir / "adapter_config.json").exists()
    assert (run.model_dir / "model.safetensors").exists()


def test_seeds_give_other_random_weights(folder, pt):
    pt("seed-1", "--train_seed", "1", "--max_steps", "1")
    pt("seed-1-again", "--train_seed", "1", "--max_steps", "1")
    pt("seed-2", "--train_seed", "2", "--max_steps", "1")
    first, again, other = (losses(folder / name) for name in ("seed-1", "seed-1-again", "seed-2"))
    assert first == again
    assert first != other


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(folder, pt, capsys):
    tiny_config(vocab_size=300).save_pretrained(folder / "small")
    assert pt("mismatched", "--model", "small") == 4
    assert "embeds 300" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_told_how_to_get_one(folder, pt, capsys):
    (folder / "plain.yaml").write_text(CONFIG.replace("tokenizer: tokenizer\n", ""))
    assert main(["pt", "plain.yaml", "--output_dir", "none"]) == 4
    assert "surogate tokenizer train" in capsys.readouterr().err
