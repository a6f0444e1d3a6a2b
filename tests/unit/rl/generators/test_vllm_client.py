"""Servers over HTTP: which one is asked, and what happens when one is lost. The servers are fakes on real sockets."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import FakeVllmServer

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators import notices, vllm_client
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_client import ServerVllm
from surogate.rl.policy import SampledPolicy
from surogate.rl.types import Completion

SAMPLING = SamplingSpec(max_tokens=3)
PROMPT = [1, 2, 3]

Test = Callable[[list[FakeVllmServer], ServerVllm], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(vllm_client, "LONGEST_DELAY", 0.01)
    monkeypatch.setattr(vllm_client, "HEALTH_SECONDS", 0.02)


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


def test_a_group_goes_to_one_server_and_the_next_one_to_the_server_with_the_least_to_do() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        for server in servers:
            server.seconds = 0.2
        await asyncio.gather(sample(generator, 4), sample(generator, 3))
        assert sorted(server.most_running for server in servers) == [3, 4]

    with_servers(2, test)


def test_a_conversation_stays_with_its_server_until_that_is_lost() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        talks = [SampledPolicy(None, generator, SAMPLING, max_len=64) for _ in servers]
        for talk in talks:  # one after the other, so that no server has anything to do
            await talk.sample(PROMPT, 1)
        assert [len(server.sampled) for server in servers] == [1, 1]
        for _ in range(3):
            await talks[0].sample(PROMPT, 1)
        assert sorted(len(server.sampled) for server in servers) == [1, 4]
        busy, other = sorted(servers, key=lambda server: -len(server.sampled))
        await busy.stop()
        await talks[0].sample(PROMPT, 1)
        assert len(other.sampled) == 2

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


def test_what_a_failed_engine_was_sampling_is_sampled_elsewhere_though_its_server_goes_on() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].is_healthy = False
        await asyncio.gather(sample(generator, 2), sample(generator, 2))
        assert servers[1].sampled == ["policy"] * 4
        servers[0].is_healthy = True
        while len(generator._up) < 2:
            await asyncio.sleep(0.01)

    with_servers(2, test)


def test_an_engine_that_fails_while_it_takes_weights_does_not_hold_up_the_others(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        async def never(body: Any) -> Any:
            await asyncio.sleep(60)

        servers[0].is_healthy = False
        servers[0]._v1_load_lora_adapter = never
        await generator.load_weights(WeightUpdate(version=1, adapter_dir=adapter))
        assert servers[1].version == "0+1"

    with_servers(2, test)


def test_a_busy_server_is_not_taken_for_a_failed_one() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        server.num_busy_looks, server.seconds = vllm_client.MAX_SICK_LOOKS - 1, 0.3
        server.calls.clear()
        await sample(generator)
        assert [path for path, _ in server.calls] == ["/inference/v1/generate"]
        assert server.num_looks > vllm_client.MAX_SICK_LOOKS

    with_servers(1, test)


def test_nobody_looks_at_a_server_that_has_nothing_to_do() -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        await asyncio.sleep(0.1)
        assert servers[0].num_looks == 0

    with_servers(1, test)


class LaunchedFake:
    """A server's process, with a fake server in its place."""

    def __init__(self, server: FakeVllmServer) -> None:
        self.url, self._server = server.url, server
        self.is_running = True
        self.num_stopped = 0

    def launch(self) -> None:
        self._server.is_healthy = self.is_running = True

    def stop(self) -> None:
        self.is_running = False
        self.num_stopped += 1

    async def wait(self) -> None:
        pass


def test_an_engine_of_our_own_that_has_failed_is_started_anew() -> None:
    async def run() -> None:
        server = FakeVllmServer(free_port())
        await server.start()
        process = LaunchedFake(server)
        generator = ServerVllm(servers=[process], timeout=10)  # type: ignore[list-item]
        try:
            await generator.start()
            server.is_healthy = False
            task = asyncio.create_task(sample(generator))
            (completion,) = await task
            assert completion.token_ids and process.num_stopped == 1
        finally:
            await generator.close()
            await server.stop()

    asyncio.run(run())


def test_what_is_waited_for_is_said_once_for_all_that_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0.3)

    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].seconds = 60
        with caplog.at_level(logging.INFO, "surogate.rl.generators.notices"):
            tasks = [asyncio.create_task(sample(generator)) for _ in range(3)]
            while not caplog.messages:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        (message,) = caplog.messages
        asked = "Waiting for the vLLM servers to sample 1 completions of 3 tokens"
        assert re.fullmatch(rf"{asked}, for \d s now, and for 2 other answers\.", message)

    with_servers(1, test)


def test_a_server_that_keeps_its_cache_gets_no_request(tmp_path: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        servers[0].drops_cache = False
        with pytest.raises(GeneratorError, match=r"does not let go of what it computed with old weights"):
            await generator.load_weights(WeightUpdate(version=1, weights_dir=tmp_path))

    with_servers(1, test, timeout=0.3)


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


def test_what_was_written_on_a_servers_machine_is_removed(adapter: Path) -> None:
    async def test(servers: list[FakeVllmServer], generator: ServerVllm) -> None:
        (server,) = servers
        server.sees_disk = False
        for version in (1, 2):
            await generator.load_weights(WeightUpdate(version=version, adapter_dir=adapter))
        (of_a_dead_client,) = server.written
        other = ServerVllm([server.url])
        await other.start()
        assert not server.written
        await other.load_weights(WeightUpdate(version=1, adapter_dir=adapter))
        assert len(server.written) == 1 and of_a_dead_client not in server.written
        await other.close()
        assert not server.written

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
