"""A GRPO step whose log-probabilities are not finite: skipped, named by its prompts, and no fault of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.grpo_here import train
from support.tiny_grpo import records

from surogate.modes import GrpoModule

BAD_STEP = 2

pytestmark = pytest.mark.slow


def test_a_policy_step_that_is_not_finite_is_skipped_and_its_prompts_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = GrpoModule._score

    def score(self: GrpoModule, micro_batch: Any, temperature: Any) -> Any:
        scored = plain(self, micro_batch, temperature)
        is_bad = self.model.training and self.global_step + 1 == BAD_STEP
        return scored._replace(logprobs_N=scored.logprobs_N * float("nan")) if is_bad else scored

    monkeypatch.setattr(GrpoModule, "_score", score)
    train(tmp_path, orch={"max_steps": 3})
    assert [record["health/skipped_steps"] for record in records(tmp_path / "run")] == [0, 1, 0]
    kept = json.loads((tmp_path / f"run/health/step_{BAD_STEP}.json").read_text())
    rows = [row for micro in kept["ranks"][0]["micro_batches"] for row in micro["rows"]]
    assert len(rows) == 64 and all(row["dataset"] == "letters" and "reward" in row for row in rows)
    assert f"Step {BAD_STEP} was skipped" in caplog.text and rows[0]["origin"] in caplog.text
