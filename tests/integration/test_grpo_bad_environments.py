"""Rewards and prompts that misbehave in a whole run: it leaves those groups out, or ends with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.grpo_here import fit, nested
from support.tiny_grpo import records, trained_examples

from surogate.errors import DataError, SurogateError

pytestmark = pytest.mark.slow

REWARD = """
import math, os, pathlib, time

def letters(completions, kind, **columns):
    rewards = [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]
    if kind[0] == "raises":
        raise ZeroDivisionError("of this reward")
    if kind[0] == "hangs":
        time.sleep(600)
    if kind[0] == "ends":
        os._exit(3)
    if kind[0] == "is not a number":
        rewards[-1] = math.nan
    if kind[0] == "miscounts":
        rewards.pop()
    if kind[0] == "stops after 60":
        calls = pathlib.Path(__file__).with_name("calls")
        with calls.open("a") as file:
            file.write(".")
        if calls.stat().st_size > 10:
            raise ZeroDivisionError("of this reward")
    return rewards
"""
BAD = ("raises", "hangs", "ends", "is not a number", "miscounts")
TIMEOUT_SECONDS = 1.0


def configuration(folder: Path, rows: list[dict[str, Any]], **orch: Any) -> dict[str, Any]:
    """A run on these prompts, with the rewards above."""
    config = nested(folder, orch={"max_steps": 3, **orch})
    (folder / "rewards.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["data"]["init_args"]["environments"][0]["args"]["timeout_seconds"] = TIMEOUT_SECONDS
    return config


def end_of(config: dict[str, Any], kind: type[SurogateError] = DataError) -> str:
    """What a run ends with."""
    with pytest.raises(kind) as caught:
        fit(config)
    return str(caught.value)


def test_groups_whose_reward_fails_are_left_out_and_each_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kinds = [*BAD, "good", "good", "good"] * 3
    rows = [{"prompt": f"{number:02} says:", "kind": kind} for number, kind in enumerate(kinds)]
    rows.append({"prompt": "x" * 60, "kind": "good"})  # nothing fits behind it into seq_len 64
    rows.append({"prompt": "x" * 300, "kind": "good"})  # nor into the engine's context
    fit(configuration(tmp_path, rows, max_steps=2))
    steps = records(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2]
    good = {f"letters/{number}" for number, kind in enumerate(kinds) if kind == "good"}
    trained = trained_examples(tmp_path / "run")
    assert len(trained) == len(set(trained)) == 8 and set(trained) <= good
    assert sum(step.get("rewards/failed", 0) for step in steps) > 0
    for part in (
        "raised ZeroDivisionError: of this reward",
        "gave no answer within 1 s and was ended",
        "ended with exit code 3",
        "16 numbers, and returned 15 of them",
        "the reward returned nan; each must be a finite number",
    ):
        assert part in caplog.text, part


def test_a_reward_that_always_fails_ends_the_run_before_its_first_step(tmp_path: Path):
    rows = [{"prompt": f"{number:02} says:", "kind": "raises"} for number in range(8)]
    assert "raised ZeroDivisionError: of this reward" in end_of(configuration(tmp_path, rows), SurogateError)


def test_a_reward_that_fails_from_some_moment_on_ends_the_run(tmp_path: Path):
    rows = [{"prompt": f"{number:02} says:", "kind": "stops after 60"} for number in range(48)]
    text = end_of(configuration(tmp_path, rows))
    assert text.startswith("The last 100 groups could not be trained on. The newest one: letters: the reward ")
    assert "\n" not in text


def test_prompts_that_all_leave_no_room_end_the_run(tmp_path: Path):
    rows = [{"prompt": "x" * 70, "kind": "good"} for _ in range(8)]
    text = end_of(configuration(tmp_path, rows))
    assert "a prompt has 70 tokens, and prompt and completion together may have 64" in text


def test_an_environment_without_prompts_ends_the_run_before_the_engine_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    text = end_of(configuration(tmp_path, []))
    assert "prompts.jsonl" in text and "\n" not in text
    assert "Engine and trainer agree" not in caplog.text
