"""What `surogate grpo` and its parts refuse: one sentence and an exit code, before torch is imported if it can be."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from support.grpo_here import train
from support.tiny_grpo import write_files

from surogate.errors import GeneratorError, SurogateError
from surogate.modes.engine_link import EngineLink
from surogate.modes.grpo import GrpoModule

LIGHT = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder
from surogate.cli.main import main

found = []
for arguments, without_vllm in json.load(sys.stdin):
    if without_vllm:  # as find_spec sees a package that is not installed
        original = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: None if name == "vllm" else original(name, *rest)
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = main(arguments)
    if without_vllm:
        PathFinder.find_spec = original
    heavy = sorted({"torch", "transformers", "vllm", "lightning"} & sys.modules.keys())
    found.append([code, told.getvalue(), heavy])
json.dump(found, sys.stdout)
"""
"""Runs commands in one process, and looks what was imported after each."""


def run_light(*cases: tuple[list[str], bool]) -> list[tuple[int, str, list[str]]]:
    """Exit code, stderr, and the heavy packages that are imported afterwards, for each command line."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], input=json.dumps(cases), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [tuple(found) for found in json.loads(done.stdout)]


def test_what_the_files_say_wrong_is_told_before_torch_is_imported(tmp_path: Path):
    files = write_files(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "serve.yaml").write_text(
            f"model: {tmp_path / 'model'}\nport: {taken.getsockname()[1]}\nmax_model_len: 64\n"
        )
        expected = [
            (["grpo", *files, "--infer.model", "other/model"], "model is other/model in infer.yaml"),
            (["grpo", *files, "--orch.model.name", "other/model"], "model.name is other/model in orch.yaml"),
            (["grpo", *files, "--vllm-gpus", "0,1", "--trainer-gpus", "1"], "overlap in 1"),
            (["grpo", *files, "--vllm-gpus", "900", "--trainer-gpus", "901"], "--vllm-gpus names GPU 900; `nvidia-smi"),
            (["grpo", *files, "--infer.vllm.blok_size", "16"], "vllm.blok_size is no argument of the engine"),
            (["grpo", *files, "--infer.max_lora_rank", "1"], "lora_rank 8 of train.yaml is more than max_lora_rank 1"),
            (["grpo", *files, "--infer.max_model_len", "32"], "max_model_len 32 in infer.yaml is less than the 64"),
            (["grpo", *files, "--orch.seq_len", "512"], "seq_len 512 in orch.yaml is more than sequence_len 256"),
            (["grpo", *files, "--orch.rollouts_per_example", "1"], "rollouts_per_example must be 2 or more"),
            (["grpo", *files, "--orch.batch_size", "60"], "batch_size 60 is not a multiple of rollouts_per_example 16"),
            (["grpo", *files, "--orch.sampling.top_p", "0.9"], "sampling.top_p leaves out unlikely tokens"),
            (["grpo", *files, "--orch.env.0.id", "arithmetics"], "arithmetic"),
            (
                [
                    *("grpo", *files, "--orch.sampling.temperature", "0.7"),
                    *("--orch.sampling.temp_scheduler", "{type: linear, start: 1.0, end: 0.7, steps: 3}"),
                ],
                "sampling.temperature and sampling.temp_scheduler are both set",
            ),
            (["grpo-infer", str(tmp_path / "serve.yaml")], "(Address already in use): set another port in infer.yaml"),
        ]
        found = run_light(*((arguments, False) for arguments, _ in expected))
    for (arguments, sentence), (code, told, heavy) in zip(expected, found, strict=True):
        assert code == 2, (arguments, told)
        assert told.startswith("error: ") and sentence in told and len(told.splitlines()) == 1, (arguments, told)
        assert heavy == [], arguments
    assert not (tmp_path / "run").exists()


def test_a_machine_without_vllm_is_told_how_to_install_it(tmp_path: Path):
    files = write_files(tmp_path)
    (tmp_path / "serve.yaml").write_text(f"model: {tmp_path / 'model'}\n")
    found = run_light((["grpo", *files], True), (["grpo-infer", str(tmp_path / "serve.yaml")], True))
    for code, told, heavy in found:
        assert code == 2
        assert told.startswith("error: vLLM is not installed; on this machine: pip install ")
        assert heavy == []


def end_of(folder: Path, kind: type[SurogateError] = GeneratorError, **files: dict[str, Any]) -> str:
    """What a run that sends adapters ends with."""
    with pytest.raises(kind) as caught:
        train(folder, train={"weight_sync": "adapter"}, **files)
    return str(caught.value)


@pytest.mark.slow
def test_an_adapter_that_vllm_cannot_read_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = GrpoModule.save_adapter

    def save_half(module: GrpoModule, folder: Path) -> None:
        save(module, folder)
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])

    monkeypatch.setattr(GrpoModule, "save_adapter", save_half)
    text = end_of(tmp_path)
    assert text.startswith("vLLM could not load version 0: ")


@pytest.mark.slow
def test_an_adapter_of_a_larger_rank_than_vllm_was_told_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resolved = EngineLink.resolved_inference
    monkeypatch.setattr(
        EngineLink, "resolved_inference", lambda link, length: replace(resolved(link, length), max_lora_rank=1)
    )
    text = end_of(tmp_path)
    assert text.startswith("vLLM could not load version 0: ") and "rank" in text


@pytest.mark.slow
def test_a_disk_without_room_for_the_adapter_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = GrpoModule.save_adapter

    def save_first(module: GrpoModule, folder: Path) -> None:
        if module.global_step:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(module, folder)

    monkeypatch.setattr(GrpoModule, "save_adapter", save_first)
    text = end_of(tmp_path)
    assert "version_1: Error while serializing: I/O error: No space left on device" in text
    assert text.endswith("Make room and give the same command again; the run continues from its newest checkpoint.")
    assert not list((tmp_path / "run/generator_weights").glob(".version_1*"))
