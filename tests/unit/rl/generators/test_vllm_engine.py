"""Deadlines and errors of the in-process generator, with a session that is not vLLM's."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import ConfigError, GeneratorError
from surogate.rl.generators import checks
from surogate.rl.generators.vllm_engine import InProcessVllm
from surogate.rl.generators.vllm_session import VllmSession
from surogate.rl.generators.vllm_thread import EngineThread

SAMPLING = SamplingSpec(max_tokens=4)


class NeverDone:
    """Takes requests and never answers one."""

    def __init__(self) -> None:
        self.is_broken = False
        self.running: set[str] = set()
        self.aborted: set[str] = set()

    @property
    def is_idle(self) -> bool:
        return True

    def add(self, request_id: str, prompt_ids: Any, arguments: Any) -> None:
        self.running.add(request_id)

    def abort(self, request_ids: Any) -> None:
        self.aborted.update(request_ids)

    def step(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def close(self) -> None:
        pass


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    return tmp_path


def test_a_deadline_says_what_was_waited_for_and_stops_the_sampling(model_dir: Path) -> None:
    session = NeverDone()

    async def run() -> None:
        generator = InProcessVllm(InferenceSpec(), model_dir, timeout=0.1)
        generator._thread = EngineThread(lambda: session)
        await generator.start()
        with pytest.raises(
            GeneratorError, match=r"vLLM had 0\.1 s to sample 2 completions of 3 tokens, and is not done"
        ):
            await generator.generate([1, 2, 3], 2, SAMPLING, seed=None)
        await generator.close()

    asyncio.run(run())
    assert len(session.running) == 2
    assert session.aborted == session.running


def test_a_start_has_a_deadline_too(model_dir: Path) -> None:
    gate = threading.Event()

    def build() -> NeverDone:
        gate.wait(10)
        return NeverDone()

    async def run() -> None:
        generator = InProcessVllm(InferenceSpec(), model_dir, start_timeout=0.1)
        generator._thread = EngineThread(build)
        with pytest.raises(GeneratorError, match=r"vLLM had 0\.1 s to start its engine"):
            await generator.start()
        gate.set()
        await generator.close()

    asyncio.run(run())


def test_a_generator_that_was_not_started_refuses_and_can_be_closed(model_dir: Path) -> None:
    async def run() -> None:
        generator = InProcessVllm(InferenceSpec(), model_dir)
        assert generator.max_model_len == 64
        with pytest.raises(GeneratorError, match="has not been started"):
            await generator.generate([1], 1, SAMPLING, seed=None)
        await generator.close()

    asyncio.run(run())


def test_a_missing_vllm_is_told_at_the_start(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed; on this machine: pip install"):
        asyncio.run(InProcessVllm(InferenceSpec(), model_dir).start())


def test_a_trainer_of_several_processes_is_sent_to_a_server(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(GeneratorError, match="start a server instead"):
        VllmSession(InferenceSpec(), model_dir)
