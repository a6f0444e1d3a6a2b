"""Servers over HTTP: which one is asked, and what happens when one is lost. The servers are fakes on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import FakeVllmServer

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators import vllm_client
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_client import ServerVllm
from surogate.rl.types import Completion

SAMPLING = SamplingSpec(max_tokens=3)
PROMPT = [1, 2, 3]

Test = Callable[[list[FakeVllmServer], ServerVllm], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(vllm_client, "LONGEST_DELAY", 0.01)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"tensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def with_servers(num_servers: int, test: Test, **arguments: Any) -> None:
    async def run() -> None:
        servers = [FakeVllmServer(free_port()) for _ in range(num_servers)]
        for server in servers:
            await server.start()
        generator = ServerVllm([server.url for server in servers], **{"timeout": 10, **arguments})
        try:
            await generator.start()
            await generator.start()
            await test(servers, generator)
        finally:
            await generator.close()
            await generator.close()
            for server in servers:
                await server.stop()

    asyncio.run(run())


async def sample(generator: ServerVllm, n: int = 1) -> list[Completion]:
    return await generator.generate(PROMPT, n, SAMPLING, seed=1)


def test_completions_and_scores_come_back_as_they_were_sampled() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        assert generator.max_model_len == 128
        completions = await sample(generator, 4)
        assert len({tuple(c.token_ids) for c in completions}) > 1
        assert completions[0].logprobs == [-0.5] * 3
        assert completions[0].versions == [0, 0, 0]
        assert await generator.score(PROMPT) == [-1.5, -1.5]

    with_servers(1, test)


def test_the_server_with_the_least_to_do_is_asked() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        for server in servers:
            server.seconds = 0.2
        await sample(generator, 8)
        assert [server.most_running for server in servers] == [4, 4]

    with_servers(2, test)


def test_what_a_lost_server_was_sampling_is_sampled_elsewhere() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].seconds = servers[1].seconds = 0.3
        task = asyncio.create_task(sample(generator, 4))
        while not servers[0].num_running:
            await asyncio.sleep(0.01)
        await servers[0].stop()
        assert len(await task) == 4
        assert servers[1].sampled == ["policy"] * 4

    with_servers(2, test)


def test_a_server_that_comes_back_gets_the_weights_before_a_request(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        await generator.load_weights(WeightUpdate(version=7, adapter_dir=adapter))
        await server.stop()
        task = asyncio.create_task(sample(generator))
        await asyncio.sleep(0.1)
        assert not task.done()
        await server.start()
        (completion,) = await task
        assert completion.versions == [7, 7, 7]
        assert server.sampled == ["policy-7"]

    with_servers(1, test)


def test_a_server_that_restarted_unseen_is_noticed_by_its_answer(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        await generator.load_weights(WeightUpdate(version=7, adapter_dir=adapter))
        await server.stop()
        await server.start()
        (completion,) = await sample(generator)
        assert completion.versions == [7, 7, 7]

    with_servers(1, test)


def test_each_version_has_its_own_name_and_the_old_one_goes_when_nobody_uses_it(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        await generator.load_weights(WeightUpdate(version=1, adapter_dir=adapter))
        server.seconds = 0.3
        old = asyncio.create_task(sample(generator))
        while not server.num_running:
            await asyncio.sleep(0.01)
        await generator.load_weights(WeightUpdate(version=2, adapter_dir=adapter))
        assert set(server.adapters) == {"policy-1", "policy-2"}
        assert server.version == "0+2"
        (new,) = await sample(generator)
        assert (await old)[0].versions == [1, 1, 1]
        assert new.versions == [2, 2, 2]
        await generator.load_weights(WeightUpdate(version=3, adapter_dir=adapter))
        assert set(server.adapters) == {"policy-3"}

    with_servers(1, test)


def test_an_adapter_is_sent_to_a_server_that_does_not_see_the_disk(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].sees_disk = False
        await generator.load_weights(WeightUpdate(version=1, adapter_dir=adapter))
        assert (await sample(generator))[0].versions == [1, 1, 1]
        assert servers[0].adapters["policy-1"] in servers[0].written

    with_servers(1, test)


def test_a_refused_adapter_is_told_with_vllms_words_and_the_old_one_stays(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        await generator.load_weights(WeightUpdate(version=1, adapter_dir=adapter))
        servers[0].refusal = "LoRA rank 16 is greater than max_lora_rank 8."
        with pytest.raises(GeneratorError, match=r"refused the adapter .*: LoRA rank 16 is greater"):
            await generator.load_weights(WeightUpdate(version=2, adapter_dir=adapter))
        with pytest.raises(GeneratorError, match="there is no adapter folder"):
            await generator.load_weights(WeightUpdate(version=2, adapter_dir=adapter / "none"))
        assert (await sample(generator))[0].versions == [1, 1, 1]

    with_servers(1, test)


def test_merged_weights_come_between_two_tokens_and_clear_what_was_cached(tmp_path: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        server.calls.clear()
        await generator.load_weights(WeightUpdate(version=4, weights_dir=tmp_path, norm_noise_sigma=0.1))
        paths = [path for path, _ in server.calls]
        assert paths[:6] == [
            "/pause",
            "/collective_rpc",
            "/collective_rpc",
            "/update_weight_version",
            "/reset_prefix_cache",
            "/resume",
        ]
        assert server.calls[1][1] == {"method": "load_merged_files", "args": [str(tmp_path)]}
        assert server.calls[2][1]["method"] == "add_norm_noise"
        assert (await sample(generator))[0].versions == [4, 4, 4]

    with_servers(1, test)


def test_tensors_cannot_be_sent() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        with pytest.raises(GeneratorError, match="tensors stay in their process"):
            await generator.load_weights(WeightUpdate(version=1, tensors=lambda: iter(())))

    with_servers(1, test)


def test_merged_weights_of_an_earlier_run_are_not_taken_for_the_base(tmp_path: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        await generator.load_weights(WeightUpdate(version=4, weights_dir=tmp_path))
        other = ServerVllm([servers[0].url])
        await other.start()
        try:
            with pytest.raises(GeneratorError, match="holds merged weights of version 4 from an earlier run"):
                await sample(other)
            await other.load_weights(WeightUpdate(version=1, weights_dir=tmp_path))
            assert (await sample(other))[0].versions == [1, 1, 1]
        finally:
            await other.close()

    with_servers(1, test)


def test_a_deadline_says_what_was_waited_for() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].seconds = 60
        with pytest.raises(GeneratorError, match=r"had 0\.2 s to sample 1 completions of 3 tokens: http://127"):
            await sample(generator)
        await servers[0].stop()
        with pytest.raises(GeneratorError, match=r"http://127.* does not answer"):
            await sample(generator)

    with_servers(1, test, timeout=0.2)


def test_cancelling_closes_the_connection() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].seconds = 60
        task = asyncio.create_task(sample(generator, 3))
        while servers[0].num_running < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert all(endpoint.num_running == 0 for endpoint in generator._up)

    with_servers(1, test)


def test_a_request_that_does_not_fit_is_refused() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        with pytest.raises(GeneratorError, match="do not fit into the generator's max_model_len of 128"):
            await generator.generate(PROMPT, 1, SamplingSpec(max_tokens=126), seed=None)

    with_servers(1, test)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GeneratorError, match=r"environment variable VLLM_TEST_KEY, .* is not set"):
        ServerVllm(["http://127.0.0.1:1"], api_key_var="VLLM_TEST_KEY")
    monkeypatch.setenv("VLLM_TEST_KEY", "secret")

    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        await sample(generator)
        assert set(servers[0].headers) == {"Bearer secret"}

    with_servers(1, test, api_key_var="VLLM_TEST_KEY")


def test_a_server_that_nobody_started_is_told_at_the_start() -> None:
    generator = ServerVllm([f"http://127.0.0.1:{free_port()}"], start_timeout=0.1)
    with pytest.raises(GeneratorError, match=r"had 0\.1 s to answer: http://127.* does not answer"):
        asyncio.run(generator.start())


def test_without_an_address_there_is_no_generator() -> None:
    with pytest.raises(GeneratorError, match="at least one server"):
        ServerVllm()
