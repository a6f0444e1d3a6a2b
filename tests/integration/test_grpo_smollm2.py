"""The quickstart of GRPO on the real model, shortened: right answers to held-out questions rise beyond chance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from surogate.quickstart import rewards
from surogate.quickstart.score import gain
from surogate.run_folder import RunFolder

NUM_STEPS = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_smollm2_answers_more_held_out_questions_right_after_a_few_steps(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "surogate", "quickstart-grpo", "--output_dir", str(run.path)]
    overrides = ["--orch.max_steps", str(NUM_STEPS), "--orch.eval.interval", str(NUM_STEPS)]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = rewards.first_and_last(run)
    right = [[row["reward"] == 1 for row in rows] for rows in (before, after)]
    result = gain(*right, [row["example"] for row in before])
    assert len({row["example"] for row in before}) >= 40
    assert result.low > 0, result
    assert "gain, 95 % interval" in done.stdout
