"""GRPO in several processes: an engine as a server, an orchestrator and a trainer that meet in a folder, two ranks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support.tiny_grpo import command, records, run, trained_examples, write_files

DEADLINE_SECONDS = 250
RATIO_TOLERANCE = 1e-3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder, and their descendants' engines by their working group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words:
                found.append(int(entry.name))
    return found


def test_an_engine_in_a_process_of_its_own_learns_as_one_inside(tmp_path: Path):
    files = write_files(tmp_path, orch={"max_steps": 4})
    done = run("grpo", *files, "--infer.own_process", "true", "--infer.port", str(free_port()))
    assert done.returncode == 0, done.stderr[-3000:]
    steps = records(tmp_path / "run")
    assert steps[-1]["reward/mean"] > steps[0]["reward/mean"] + 0.1
    assert all(step["importance_ratio/max"] == pytest.approx(1, abs=RATIO_TOLERANCE) for step in steps)
    assert not processes_of(tmp_path)


def test_two_ranks_share_the_rollouts_of_a_step(tmp_path: Path):
    done = run("grpo", *write_files(tmp_path, orch={"max_steps": 3}), "--train.gpus", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    alone = run("grpo", *write_files(tmp_path / "alone", orch={"max_steps": 3}))
    assert alone.returncode == 0, alone.stderr[-3000:]
    both = records(tmp_path / "run"), records(tmp_path / "alone/run")
    for mine, theirs in zip(*both, strict=True):
        assert mine["sampled_tokens"] == theirs["sampled_tokens"]
        assert mine["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-3)
        assert mine["reward/mean"] == pytest.approx(theirs["reward/mean"], abs=1e-6)


def test_generator_orchestrator_and_trainer_meet_and_survive_each_others_death(tmp_path: Path):
    port = free_port()
    shared = {"max_steps": 8, "output_dir": str(tmp_path / "run"), "client": {"base_url": f"http://127.0.0.1:{port}"}}
    write_files(tmp_path, orch={**shared, "model": {"name": str(tmp_path / "model")}}, train={"max_steps": 8})
    infer = {"model": str(tmp_path / "model"), "port": port, "max_model_len": 64, "max_lora_rank": 8}
    (tmp_path / "infer.yaml").write_text(yaml.safe_dump({**infer, "kv_cache_gib": 0.0625}))
    log = (tmp_path / "parts.log").open("wb")

    def start(verb: str, file: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command(verb, str(tmp_path / file)), stdout=log, stderr=log)

    server, orchestrator = start("grpo-infer", "infer.yaml"), start("grpo-orch", "orch.yaml")
    trainer = start("grpo-train", "train.yaml")
    try:
        _wait_for_steps(tmp_path, 2, trainer)
        orchestrator.send_signal(signal.SIGKILL)
        orchestrator.wait()
        orchestrator = start("grpo-orch", "orch.yaml")
        _wait_for_steps(tmp_path, 4, trainer)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer = start("grpo-train", "train.yaml")
        assert trainer.wait(DEADLINE_SECONDS) == 0, (tmp_path / "parts.log").read_text()[-3000:]
        assert orchestrator.wait(60) == 0
    finally:
        server.send_signal(signal.SIGTERM)
        for process in (trainer, orchestrator):
            if process.poll() is None:
                process.kill()
        server.wait(60)
        log.close()
    trained = trained_examples(tmp_path / "run")
    assert len(trained) == len(set(trained)) == 8 * 4
    assert not processes_of(tmp_path)


def _wait_for_steps(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(list((folder / "run/rollouts").glob("step_*.jsonl"))) < count:
        assert process.poll() is None, (folder / "parts.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "parts.log").read_text()[-3000:]
        time.sleep(0.05)
