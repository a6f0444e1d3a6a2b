"""The server form with real vLLM on a byte model, once: start, sample, exchange weights, be killed, come back, end.

The tests share one server and run in their order: merged weights come before the first adapter, and the kill is last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from support.byte_model import (
    VOCAB,
    distance,
    largest_distance,
    merged_weights,
    random_adapter,
    randomize_adapter_,
    save_byte_model,
    token_logprobs,
)
from transformers import AutoModelForCausalLM

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import ConfigError, GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_client import ServerVllm
from surogate.rl.generators.vllm_endpoint import Endpoint
from surogate.rl.generators.vllm_server import VllmServer, is_group_alive
from surogate.rl.types import Completion

pytestmark = pytest.mark.slow

AGREEMENT = 1e-4
"""Log-probabilities of vLLM against transformers', float32; measured 6e-6."""
SECONDS = 10
PROMPT = [5, 6, 7, 8]
LONG_PROMPT = [20 + i % 50 for i in range(100)]

T = TypeVar("T")


class Server:
    """A running server, its client, and the event loop that it is asked from."""

    def __init__(self, model_dir: Path, log_path: Path, runner: asyncio.Runner) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.spec = InferenceSpec(max_model_len=512, max_lora_rank=8, port=port)
        self.process = VllmServer(self.spec, model_dir, has_gpu=False, log_path=log_path)
        self.generator = ServerVllm(servers=[self.process])
        self._runner = runner
        self.run(self.generator.start())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    @property
    def endpoint(self) -> Endpoint:
        return self.generator._up[0]

    def sample(self, prompt: list[int], **changes: Any) -> list[Completion]:
        return self.run(self.generator.generate(prompt, 4, SamplingSpec(max_tokens=20, **changes), seed=1))

    def load(self, version: int, **changes: Any) -> None:
        self.run(self.generator.load_weights(WeightUpdate(version=version, **changes)))

    async def begin(self, max_tokens: int) -> asyncio.Task[list[Completion]]:
        """Have four completions sampled, and return when the server has begun."""
        sampling = SamplingSpec(max_tokens=max_tokens)
        task = asyncio.create_task(self.generator.generate(PROMPT, 4, sampling, seed=3))
        while self.endpoint.num_running < 4:
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)
        assert not task.done()
        return task


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with asyncio.Runner() as runner:
        server = Server(model_dir, tmp_path_factory.mktemp("log") / "server.log", runner)
        yield server
        assert server.process._process is not None
        group = server.process._process.pid
        server.run(server.generator.close())
        assert not is_group_alive(group)


@pytest.fixture(scope="module")
def policy(model_dir: Path) -> PeftModel:
    return random_adapter(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), seed=1)


def versions_of(completions: list[Completion]) -> set[int]:
    return {version for completion in completions for version in completion.versions}


def test_logprobs_and_scores_are_the_trainers(server: Server, policy: PeftModel) -> None:
    completions = server.sample(PROMPT, temperature=0.7)
    scores = server.run(server.generator.score(LONG_PROMPT))
    with policy.disable_adapter():
        assert largest_distance(policy, PROMPT, completions, 0.7) < AGREEMENT
        reference = token_logprobs(policy, LONG_PROMPT[:1], LONG_PROMPT[1:])
    assert (torch.tensor(scores) - reference).abs().max() < AGREEMENT
    assert versions_of(completions) == {0}
    assert len({str(c.token_ids) for c in completions}) == 4
    assert server.sample(PROMPT, temperature=0.7) == completions


def test_a_port_that_is_taken_is_refused(server: Server, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        VllmServer(server.spec, model_dir, has_gpu=False).launch()


def test_merged_weights_from_files_come_while_completions_run(
    server: Server, policy: PeftModel, model_dir: Path, tmp_path: Path
) -> None:
    changed = random_adapter(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), seed=2)
    with torch.no_grad():
        changed.get_input_embeddings().weight.add_(torch.randn(VOCAB, 64) * 0.1)
    save_file({name: w.clone().contiguous() for name, w in merged_weights(changed)}, tmp_path / "model.safetensors")

    async def exchange() -> list[Completion]:
        task = await server.begin(max_tokens=400)
        await server.generator.load_weights(WeightUpdate(version=1, weights_dir=tmp_path))
        return await task

    completions = server.run(exchange())
    assert versions_of(completions) == {0, 1}
    for completion in completions:
        of_new = torch.tensor(completion.versions) == 1
        new, old = distance(changed, PROMPT, completion), distance_to_base(policy, completion)
        assert not of_new.any() or new[of_new].max() < AGREEMENT
        assert of_new.all() or old[~of_new].max() < AGREEMENT
    assert largest_distance(changed, LONG_PROMPT, server.sample(LONG_PROMPT)) < AGREEMENT

    server.load(2, weights_dir=model_dir)
    with policy.disable_adapter():
        assert largest_distance(policy, LONG_PROMPT, server.sample(LONG_PROMPT)) < AGREEMENT
    assert versions_of(server.sample(PROMPT)) == {2}


def distance_to_base(policy: PeftModel, completion: Completion) -> torch.Tensor:
    with policy.disable_adapter():
        return distance(policy, PROMPT, completion)


def test_running_completions_end_with_the_adapter_that_they_began_with(
    server: Server, policy: PeftModel, tmp_path: Path
) -> None:
    folders = [tmp_path / str(version) for version in (3, 4)]
    for seed, folder in enumerate(folders):
        randomize_adapter_(policy, seed)
        policy.save_pretrained(folder)

    async def exchange() -> list[list[Completion]]:
        base = await server.begin(max_tokens=400)
        await server.generator.load_weights(WeightUpdate(version=3, adapter_dir=folders[0]))
        third = await server.begin(max_tokens=400)
        await server.generator.load_weights(WeightUpdate(version=4, adapter_dir=folders[1]))
        fourth = await server.generator.generate(PROMPT, 4, SamplingSpec(max_tokens=20), seed=5)
        return [await base, await third, fourth]

    base, *adapted = server.run(exchange())
    assert versions_of(base) == {2}
    assert max(distance_to_base(policy, c).max().item() for c in base) < AGREEMENT
    for version, folder, completions in zip((3, 4), folders, adapted, strict=True):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_path(policy)), folder)
        assert versions_of(completions) == {version}
        assert largest_distance(model, PROMPT, completions) < AGREEMENT


def base_path(policy: PeftModel) -> str:
    return policy.peft_config["default"].base_model_name_or_path


def test_a_refused_adapter_leaves_the_old_one(server: Server, policy: PeftModel, tmp_path: Path) -> None:
    randomize_adapter_(policy, seed=5)
    policy.save_pretrained(tmp_path / "good")
    server.load(5, adapter_dir=tmp_path / "good")
    other = AutoModelForCausalLM.from_pretrained(base_path(policy))
    random_adapter(other, seed=1, rank=16).save_pretrained(tmp_path / "large")
    with pytest.raises(GeneratorError, match=r"refused the adapter .*large: .*rank 16 is greater than max_lora_rank 8"):
        server.load(6, adapter_dir=tmp_path / "large")
    completions = server.sample(PROMPT)
    assert versions_of(completions) == {5}
    assert largest_distance(policy, PROMPT, completions) < AGREEMENT


def test_an_adapter_can_be_written_where_the_server_runs(server: Server, policy: PeftModel, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    path = Path(server.run(server.endpoint._send_adapter("policy-6", tmp_path)))
    sent = (path / "adapter_model.safetensors").read_bytes()
    assert sent == (tmp_path / "adapter_model.safetensors").read_bytes()
    server.run(server.endpoint._call_workers("drop_adapter", f"{server.endpoint._client}/policy-6"))
    assert not path.exists()


def test_norm_noise_changes_the_scores_and_is_taken_away_exactly(
    server: Server, policy: PeftModel, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)
    scores = []
    for version, sigma in ((7, 0.0), (8, 0.05), (9, 0.0)):
        server.load(version, adapter_dir=tmp_path, norm_noise_sigma=sigma)
        scores.append(torch.tensor(server.run(server.generator.score(LONG_PROMPT))))
    assert (scores[1] - scores[0]).abs().max() > 1e-3
    assert torch.equal(scores[2], scores[0])


def test_a_server_that_is_killed_is_restarted_and_its_completions_are_sampled_with_the_same_weights(
    server: Server, policy: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def see_it_gone() -> None:
        """In the place of ending what is left: vLLM's engine has ended with its server by itself."""
        deadline = time.monotonic() + SECONDS
        while is_group_alive(killed):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    randomize_adapter_(policy, seed=10)
    policy.save_pretrained(tmp_path)
    server.load(10, adapter_dir=tmp_path)
    assert server.process._process is not None
    killed = server.process._process.pid

    async def kill() -> list[Completion]:
        monkeypatch.setattr(server.process, "stop", see_it_gone)
        task = await server.begin(max_tokens=500)
        os.kill(killed, signal.SIGKILL)
        return await task

    completions = server.run(kill())
    monkeypatch.undo()
    assert server.process._process.pid != killed
    assert not is_group_alive(killed)
    assert len(completions) == 4
    assert versions_of(completions) == {10}
    assert largest_distance(policy, PROMPT, completions) < AGREEMENT
