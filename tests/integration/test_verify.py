"""`surogate verify` on a tiny model: what is right is found right, and each fault that is put in is found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import Strategy
from support.kills import save_material

from surogate.cli import verify
from surogate.cli.fit import launch
from surogate.cli.main import main
from surogate.data.datamodule import StepDataModule
from surogate.errors import ConfigError, Stopped
from surogate.models.isolation import ISOLATION_TOLERANCE as TOLERANT
from surogate.modes.base import MicroSums
from surogate.modes.sft import SftModule
from surogate.verification import launching

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning 2.6.6 under torch 2.13


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration; runs happen in this process."""
    save_material(tmp_path, num_rows=40)
    values = {
        "model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "out"),
        "datasets": [{"path": str(tmp_path / "rows.jsonl")}],
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "max_steps": 40,
        "eval_steps": 2,
        "learning_rate": 0.01,
        "optimizer": "adamw",
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run.yaml"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Any, nested: dict[str, Any], title: str) -> None:
        with contextlib.suppress(Stopped):
            launch(nested)

    monkeypatch.setattr(launching.Launcher, "__call__", run)


def left_behind(config: Path) -> set[str]:
    return {path.name for path in config.parent.iterdir()} - {"model", "rows.jsonl", "run.yaml"}


@pytest.mark.slow
def test_a_run_resumes_exactly_in_processes_of_its_own_and_leaves_nothing_behind(config: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "surogate", "verify", "resume", str(config), "--steps", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "VERDICT: exact" in done.stdout and "-- new process --" in done.stdout
    assert "equal bit for bit" in done.stdout
    assert left_behind(config) == set()


def test_a_resume_that_loses_its_place_in_the_data_is_found_out(
    config: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StepDataModule, "load_state_dict", lambda self, state: None)
    assert main(["verify", "resume", str(config), "--steps", "2"]) == 1
    printed = capsys.readouterr().out
    assert "VERDICT: NOT EXACT" in printed and "Two runs in one go: equal bit for bit." in printed
    assert "ledger" in printed
    assert left_behind(config) == set()


def test_a_resume_that_loses_the_optimizer_is_found_out(
    config: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Strategy, "load_optimizer_state_dict", lambda self, checkpoint: None)
    assert main(["verify", "resume", str(config), "--steps", "2"]) == 1
    assert "tensors differ" in capsys.readouterr().out


def test_a_whole_resume_is_found_whole_and_a_run_that_is_too_short_is_told(
    config: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "resume", str(config), "--max_steps", "3", "--lora", "false", "--keep"]) == 0
    printed = capsys.readouterr().out
    assert "VERDICT: exact" in printed
    (kept,) = left_behind(config)
    assert kept.startswith("out.verify-") and f"Kept: {config.parent / kept}" in printed
    with pytest.raises(ConfigError, match="no step to stop after"):
        verify.main(["resume", str(config), "--max_steps", "1"])
    with pytest.raises(ConfigError, match=r"over after \d+ steps.* --steps half"):
        verify.main(["resume", str(config), "--max_steps", "-1", "--num_epochs", "1", "--steps", "30"])


def test_a_loss_is_invariant_however_its_batch_is_cut_and_computed(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "loss", str(config)]) == 0
    printed = capsys.readouterr().out
    for way in ("2 rows x 2 micro-batches", "4 rows x 1 micro-batch", "sample_packing: false", "recompute: false"):
        assert way in printed
    for way in ("lmhead_chunks: 1", "lmhead_chunks: 4", "attn_implementation: sdpa", "attn_implementation: eager"):
        assert way in printed
    assert "VERDICT: invariant" in printed and left_behind(config) == set()
    assert main(["verify", "loss", str(config), "--mode", "pt", "--sample_packing", "false"]) == 0
    assert "sample_packing: true" in capsys.readouterr().out


def test_a_mean_of_means_is_found_out(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = SftModule.micro_loss

    def mean(self: SftModule, micro_batch: Any) -> MicroSums:
        sums = right(self, micro_batch)
        return MicroSums(sums.loss / max(micro_batch.num_loss_tokens, 1), sums.num_correct)

    monkeypatch.setattr(SftModule, "micro_loss", mean)
    assert main(["verify", "loss", str(config)]) == 1
    printed = capsys.readouterr().out
    assert "VERDICT: NOT INVARIANT" in printed and "<- beyond the tolerance" in printed


def test_attention_that_sees_other_documents_is_found_out(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from surogate.models import attention

    def everything(*args: Any, cu_seq_lens_q: Any, **kwargs: Any) -> Any:
        rows, length = args[1].shape[0], args[1].shape[2]
        whole = cu_seq_lens_q.new_tensor([i * length for i in range(rows + 1)])
        return right(*args, cu_seq_lens_q=whole, **kwargs)

    right = attention.document_attention
    monkeypatch.setattr(attention, "document_attention", everything)
    monkeypatch.setattr("surogate.models.isolation.ISOLATION_TOLERANCE", dict.fromkeys(TOLERANT, 1e9))
    assert main(["verify", "loss", str(config), "--attn_implementation", "varlen"]) == 1
    assert "sample_packing: false" in capsys.readouterr().out


def test_what_verify_cannot_do_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="takes a configuration of sft or pt"):
        verify.main(["resume", "--train", "train.yaml", "--infer", "infer.yaml", "--orch", "orch.yaml"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun must not start it"):
        verify.main(["resume", str(config)])
