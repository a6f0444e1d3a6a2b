"""Pad is not end: with a tokenizer whose pad token is its end token (SmolLM2's GGUF), the model must learn to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate.cli.main import main

WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model that has never seen an end token, and questions with answers of one to three words."""
    save_tiny_model(tmp_path / "model", vocab_size=32, tie_word_embeddings=False, initializer_range=0.1)
    save_word_tokenizer(tmp_path / "model", WORDS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"instruction": WORDS[i], "output": " ".join([WORDS[i]] * (1 + i % 3))} for i in range(20)] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_after_training_on_short_answers_the_model_stops_where_they_stop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "model": str(folder / "model"),
        "datasets": [{"path": str(folder / "rows.jsonl")}],
        "output_dir": str(folder / "run"),
        "validation_split_ratio": 0.0,
        "sequence_len": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 60,
        "learning_rate": 0.02,
        "lora_dropout": 0.0,
        "recompute": False,
        "optimizer": "adamw",
        "save_steps": 0,
        "logging_steps": 50,
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    assert main(["sft", str(folder / "run.yaml")]) == 0

    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "adapter")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(base, folder / "run" / "adapter").eval()
    right = 0
    for i, word in enumerate(WORDS):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": word}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        expected = [*tokenizer.convert_tokens_to_ids([word] * (1 + i % 3)), tokenizer.eos_token_id]
        right += ids[0, prompt.input_ids.shape[1] :].tolist() == expected
    assert right >= 18
