"""Weights, gradients and optimizer state shared out among ranks: the numbers of one rank, on any number of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM

FIRST_STEP_TOLERANCE = 1e-5
LATER_TOLERANCE = 1e-4
"""Absolute, of losses in float32 against one rank: at the first step, and up to the last."""
WEIGHT_TOLERANCE = 1e-5
"""Largest difference of a trained weight, whose updates are up to 0.005 a step."""
NUM_STEPS = 20
DEADLINE_SECONDS = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an untied head, its tokenizer and a text."""
    folder = tmp_path_factory.mktemp("sharding")
    save_tiny_model(folder / "model", vocab_size=160, tie_word_embeddings=False)
    save_word_tokenizer(folder / "model", [f"w{i}" for i in range(140)])
    rng = random.Random(0)
    lines = [" ".join(f"w{rng.randrange(140)}" for _ in range(rng.randint(8, 40))) for _ in range(160)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


def run(folder: Path, name: str, **changes: Any) -> str:
    """Pretrain further as given and return what was printed; the global batch is the same on one rank and on two."""
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "output_dir": str(folder / name),
        "datasets": [{"path": str(folder / "text.jsonl"), "type": "text"}],
        "eval_steps": 10,
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // changes.get("gpus", 1),
        "max_steps": NUM_STEPS,
        "save_steps": 0,
        "learning_rate": 0.005,
        "lr_scheduler_type": "constant",
        "optimizer": "adamw",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "pt", str(path)]
    done = subprocess.run(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE_SECONDS
    )
    assert done.returncode == 0 or "error:" in done.stdout, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> Path:
    run(folder, "one-rank")
    return folder / "one-rank"


def losses(output: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def assert_close(got: Path, expected: Path) -> None:
    assert losses(got).keys() == losses(expected).keys() and len(losses(got)) == NUM_STEPS
    for step, loss in losses(expected).items():
        assert losses(got)[step] == pytest.approx(loss, abs=FIRST_STEP_TOLERANCE if step == 1 else LATER_TOLERANCE)
    ours, theirs = (load_file(output / "model/model.safetensors") for output in (got, expected))
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=WEIGHT_TOLERANCE)


def test_level_2_gives_the_losses_and_weights_of_one_rank(folder: Path, one_rank: Path) -> None:
    run(folder, "level-2", gpus=2, zero_level=2)
    assert_close(folder / "level-2", one_rank)


@pytest.mark.parametrize("level", [1, 3])
def test_a_run_goes_on_from_two_ranks_to_one_and_back(folder: Path, one_rank: Path, level: int) -> None:
    name = f"level-{level}"
    run(folder, name, gpus=2, zero_level=level, max_steps=6)
    assert "Continuing" in run(folder, name, gpus=1, zero_level=level, max_steps=13)
    assert "Continuing" in run(folder, name, gpus=2, zero_level=level)
    assert_close(folder / name, one_rank)
    model = AutoModelForCausalLM.from_pretrained(folder / name / "model")
    assert type(model).__name__ == "LlamaForCausalLM" == model.config.architectures[0]


def test_sharded_runs_resume_bit_for_bit_and_only_sharded(folder: Path) -> None:
    changes = {"gpus": 2, "zero_level": 3, "model_dtype": "bfloat16", "master_dtype": "float32"}
    run(folder, "whole", **changes)
    run(folder, "continued", **changes, max_steps=9)
    unsharded = run(folder, "continued", **{**changes, "zero_level": 1})
    assert "was saved with zero_level 2 or 3. Set it to one of these" in unsharded
    assert "Continuing" in run(folder, "continued", **changes)
    assert losses(folder / "continued") == losses(folder / "whole")
    whole, continued = (load_file(folder / name / "model/model.safetensors") for name in ("whole", "continued"))
    assert all(torch.equal(continued[name], value) for name, value in whole.items())
    assert {value.dtype for value in whole.values()} == {torch.bfloat16}
    shards = list((folder / "whole/checkpoints").glob(f"step_{NUM_STEPS}/trainer.ckpt/*.safetensors"))
    assert len(shards) == 2
    states = [tensor.dtype for shard in shards for tensor in load_file(shard).values()]
    assert set(states) == {torch.float32}


def test_an_unsharded_checkpoint_is_not_continued_sharded(folder: Path, one_rank: Path) -> None:
    printed = run(folder, one_rank.name, zero_level=3, max_steps=NUM_STEPS + 1)
    assert "was saved without sharding. Set zero_level back to 1" in printed
