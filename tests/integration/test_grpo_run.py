"""`surogate grpo` end to end: a real engine, a real model, a reward that rises, a ledger that survives kills."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.tiny_grpo import NUM_PROMPTS, command, records, run, trained_examples, write_files

RATIO_TOLERANCE = 1e-3
"""Of the importance ratio of tokens that the policy itself has just sampled, in float32."""
DEADLINE_SECONDS = 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("grpo")
    done = run("grpo", *write_files(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_reward_rises_on_policy_with_ratios_of_one_and_nothing_masked(finished: Path):
    steps = records(finished / "run")
    assert len(steps) == 8
    assert steps[0]["reward/mean"] < 0.3
    assert max(step["reward/mean"] for step in steps) > 0.8
    for step in steps:
        if step["sampled_tokens"]:
            assert step["importance_ratio/mean"] == pytest.approx(1, abs=RATIO_TOLERANCE)
            assert step["importance_ratio/max"] == pytest.approx(1, abs=RATIO_TOLERANCE)
            assert step["masked_fraction/any"] == 0
        assert step["staleness/max"] == 0
        assert step["parity/sampled_difference"] < RATIO_TOLERANCE
    assert all(step["parity/max_difference"] < RATIO_TOLERANCE for step in steps[1:])  # of the weights before the step


def test_a_run_leaves_adapter_curve_metrics_and_rollouts(finished: Path):
    for name in ("adapter/adapter_model.safetensors", "reward.png", "metrics.csv", "train.yaml", "config.yaml"):
        assert (finished / "run" / name).exists(), name
    assert len(list((finished / "run/rollouts").iterdir())) == 8


def test_no_prompt_is_trained_on_twice_before_all_were(finished: Path):
    trained = trained_examples(finished / "run")
    assert len(trained) == 8 * 4
    assert len(set(trained)) == len(trained) <= NUM_PROMPTS


def test_a_finished_run_says_so(finished: Path):
    files = [part for name in ("train", "infer", "orch") for part in (f"--{name}", str(finished / f"{name}.yaml"))]
    again = run("grpo", *files)
    assert again.returncode == 0
    assert "is finished" in again.stderr


def test_a_run_killed_at_any_moment_trains_on_each_prompt_once(tmp_path: Path):
    files = write_files(tmp_path, orch={"max_steps": 12, "max_async_level": 1}, train={"max_async_level": 1})
    for steps_before_the_kill in (3, 7):
        process = subprocess.Popen(command("grpo", *files), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + DEADLINE_SECONDS
        rollouts = tmp_path / "run/rollouts"
        while len(list(rollouts.glob("step_*.jsonl"))) < steps_before_the_kill:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run("grpo", *files)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Continuing the run" in done.stderr
    trained = trained_examples(tmp_path / "run")
    assert len(trained) == 12 * 4 == NUM_PROMPTS
    assert len(set(trained)) == NUM_PROMPTS
    assert [step["step"] for step in records(tmp_path / "run")] == list(range(1, 13))
