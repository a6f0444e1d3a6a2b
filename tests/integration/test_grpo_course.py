"""The course of a run: what happens at the same time, what a resumed run does again, and everything on at once."""

from __future__ import annotations

import json
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.grpo_here import fit, nested, train
from support.tiny_grpo import records, trained_examples

from surogate.cli.main import main

pytestmark = pytest.mark.slow

SAME_REWARD = 0.02
"""Of a step's mean reward in two runs that draw the same random numbers; rounding in another batch can change a token
now and then."""

ADVANTAGES = """
def centred(rewards, lengths, scale):
    means = rewards.mean(axis=1, keepdims=True)
    return scale * (rewards - means)
"""


def test_generation_runs_one_step_ahead_and_beside_training(tmp_path: Path):
    ahead = {"max_async_level": 1}
    by_length = {"type": "leave_one_out", "length_weighted_mean": True}
    train(tmp_path, train=ahead, orch={**ahead, "max_steps": 8, "advantage": by_length})
    steps = records(tmp_path / "run")
    assert [step["staleness/max"] for step in steps] == [0] + [1] * 7
    for now, after in pairwise(steps):
        # The rollouts of the next step are begun before this one is trained, and none waits for its end.
        assert after["clock/generate_began"] < now["clock/train_ended"]
        assert now["clock/train_began"] < now["clock/train_ended"] <= after["clock/train_began"]
    beside = [now["clock/train_began"] < after["clock/generate_ended"] for now, after in pairwise(steps)]
    assert sum(beside) >= 4

    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/step_000001.jsonl").read_text().splitlines()]
    first, *others = [row for row in rows if row["example"] == rows[0]["example"]]
    weighed = sum(row["reward"] * row["tokens"] for row in others) / sum(row["tokens"] for row in others)
    assert first["advantage"] == pytest.approx(first["reward"] - weighed, abs=1e-6)


def test_a_resumed_run_goes_on_as_if_it_had_not_ended_and_nothing_of_it_overlaps(tmp_path: Path):
    train(tmp_path / "whole", orch={"max_steps": 6})
    train(tmp_path / "halves", orch={"max_steps": 4})
    train(tmp_path / "halves", orch={"max_steps": 6})
    whole, halves = records(tmp_path / "whole/run"), records(tmp_path / "halves/run")
    assert [step["step"] for step in halves] == [1, 2, 3, 4, 5, 6]
    assert trained_examples(tmp_path / "whole/run") == trained_examples(tmp_path / "halves/run")
    for of_whole, of_halves in zip(whole, halves, strict=True):
        assert of_halves["reward/mean"] == pytest.approx(of_whole["reward/mean"], abs=SAME_REWARD)
        assert of_halves["train/learning_rate"] == of_whole["train/learning_rate"]
        assert of_halves["importance_ratio/max"] == pytest.approx(1, abs=1e-3)
    for now, after in pairwise(whole):
        assert now["clock/generate_ended"] <= now["clock/train_began"]
        assert now["clock/train_ended"] <= after["clock/generate_began"]
    # The first step after the pause, on the same weights, the same prompts and the same random numbers.
    assert halves[4]["reward/mean"] == pytest.approx(whole[4]["reward/mean"], abs=1e-6)
    assert halves[4]["train/grad_norm"] == pytest.approx(whole[4]["train/grad_norm"], rel=1e-3)
    # The second one shows that Adam's moments were there.
    assert halves[5]["train/grad_norm"] == pytest.approx(whole[5]["train/grad_norm"], rel=1e-1)


def test_what_a_run_leaves_is_found_by_the_other_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train(tmp_path, train={"qlora_bnb": True}, orch={"max_steps": 8})
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    assert main(["merge", run, "--output", merged]) == 0
    capsys.readouterr()
    for place in (run, str(tmp_path / "run/adapter"), merged):
        assert main(["generate", place, "--raw", "--prompt", "00 says:", "--max_new_tokens", "16"]) == 0
        text = capsys.readouterr().out.rstrip("\n")[-16:]
        assert sum("a" <= letter <= "z" for letter in text) > 12, (place, text)
    monkeypatch.setattr("sys.stdin", StringIO("hello\n"))
    assert main(["chat", run, "--max_new_tokens", "16"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_run_with_everything_on_ends_well_and_records_it(tmp_path: Path):
    (tmp_path / "advantages.py").write_text(ADVANTAGES)
    config = nested(tmp_path, train={"noise_scheduler": {"enabled": True, "num_stages": 3}}, orch=everything(tmp_path))
    fit(config)
    run = tmp_path / "run"
    steps = records(run)
    assert [step["step"] for step in steps] == list(range(1, 7))
    for step in steps:
        assert {"filters/repetition", "filters/gibberish"} & step.keys()
        assert {"data/letters/easy", "data/letters/hard", "completion/filtered"} <= step.keys()
        assert step["tokens/generated"] > 0
    noisy = [step.get("parity/max_difference", 0) > 1e-3 for step in steps]
    assert noisy == [False, False, True, True, True, True]  # the first of three stages has no noise
    assert max(step["completion/filtered"] for step in steps) > 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    evaluated = [line["step"] for line in lines if "rl/eval/held-out/reward" in line]
    assert evaluated == [0, 2, 4, 6]
    assert len(list((run / "evaluations").iterdir())) == 4
    rows = [json.loads(line) for line in (run / "rollouts/step_000001.jsonl").read_text().splitlines()]
    group = [row for row in rows if row["example"] == rows[0]["example"]]
    mean = sum(row["reward"] for row in group) / len(group)
    assert [row["advantage"] for row in group] == pytest.approx([2 * (row["reward"] - mean) for row in group])
    assert (run / "adapter/adapter_model.safetensors").exists()


def everything(folder: Path) -> dict[str, Any]:
    """What orch.yaml can ask for beside the usual."""
    held_out = {
        "id": f"{folder / 'rewards.py'}:letters",
        "name": "held-out",
        "args": {"path": str(folder / "prompts.jsonl"), "prompt": "plain"},
    }
    return {
        "max_steps": 6,
        "oversampling_factor": 1.5,
        "sampling": {
            "max_tokens": 24,
            "temp_scheduler": {"type": "linear", "start": 1.2, "end": 0.8, "steps": 5},
        },
        "filters": [
            {"type": "repetition", "enforce": True, "window": 4, "min_repeats": 3},
            {"type": "gibberish", "enforce": True, "logprob_threshold": -6.0},
        ],
        "buffer": {
            "online_difficulty_filtering": True,
            "easy_threshold": 0.95,
            "hard_threshold": 0.02,
            "hard_fraction": 0.5,
        },
        "advantage": {"type": "custom", "import_path": f"{folder / 'advantages.py'}:centred", "kwargs": {"scale": 2.0}},
        "eval": {"env": [held_out], "interval": 2, "num_examples": 8, "rollouts_per_example": 2},
    }
