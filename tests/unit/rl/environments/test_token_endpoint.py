"""The endpoint's protocol, as verifiers 0.4.0 with renderers 0.1.12 speaks it: REQUEST is one of its requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import DataError, GeneratorError
from surogate.rl.environments.token_endpoint import (
    MODEL,
    Conversation,
    TokenEndpoint,
    ended_at,
    request_problem,
    response_body,
)
from surogate.rl.generators.fake import FakeGenerator
from surogate.rl.policy import PromptTooLong, SampledPolicy
from surogate.rl.types import Completion

REQUEST: dict[str, Any] = {
    "model": "policy",
    "token_ids": [1, 85, 91, 85],
    "sampling_params": {
        "routed_experts_prompt_start": 51,
        "stop_token_ids": [2],
        "logprobs": 1,
        "skip_special_tokens": False,
    },
}
HEADERS = {"Authorization": "Bearer EMPTY", "X-Session-ID": "8525de2efba947029f03ab1cab90ad2f"}
NAME = HEADERS["X-Session-ID"]


class Served:
    """An endpoint with one conversation, asked over HTTP."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner, self.endpoint = runner, TokenEndpoint()
        self.generator = FakeGenerator(script=lambda prompt, n: [[7, 8, 2]])
        self.num_full = 0
        self.conversation = self.new_conversation(1024)
        runner.run(self.generator.start())
        self.url = runner.run(self.endpoint.start())
        self.endpoint.open(NAME, self.conversation)

    def new_conversation(self, max_len: int) -> Conversation:
        return Conversation(SampledPolicy(None, self.generator, SamplingSpec(max_tokens=8), max_len), self.fill)

    def fill(self) -> None:
        self.num_full += 1

    async def post(self, body: Any = REQUEST, headers: dict[str, str] = HEADERS) -> tuple[int, Any]:
        url = f"{self.url.removesuffix('/v1')}/inference/v1/generate"
        async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    def ask(self, **changes: Any) -> tuple[int, Any]:
        return self.runner.run(self.post(REQUEST | changes))


@pytest.fixture
def served() -> Iterator[Served]:
    with asyncio.Runner() as runner:
        served = Served(runner)
        yield served
        runner.run(served.endpoint.close())


def test_a_request_is_answered_in_the_shape_that_renderers_reads(served):
    status, answer = served.ask()
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["token_ids"] == [7, 8, 2]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["token_id:7", "token_id:8", "token_id:2"]
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [-1.0] * 3
    assert choice["finish_reason"] == "stop"
    assert isinstance(answer["request_id"], str)
    assert served.generator.prompts == [REQUEST["token_ids"]]


def test_log_probabilities_survive_the_way_bit_by_bit():
    logprob = -math.log(3) / 7
    completion = Completion(token_ids=[1], logprobs=[logprob], versions=[0], finish_reason="stop")
    assert response_body(completion)["choices"][0]["logprobs"]["content"][0]["logprob"] == logprob


def test_versions_stay_with_the_conversation_by_its_tokens(served):
    served.generator.version = 4
    served.ask()
    assert served.conversation.turns[(1, 85, 91, 85, 7, 8, 2)].versions == [4, 4, 4]


def test_the_model_is_listed_without_a_length(served):
    async def get() -> Any:
        async with aiohttp.ClientSession() as http, http.get(f"{served.url}/models") as response:
            return await response.json()

    assert served.runner.run(get())["data"] == [{"id": MODEL, "object": "model"}]


@pytest.mark.parametrize("name", ["", "somebody-elses"])
def test_a_conversation_that_is_not_under_way_is_refused(served, name):
    status, answer = served.runner.run(served.post(headers={"X-Session-ID": name}))
    assert status == 400
    assert "No conversation under way" in answer["error"]["message"]
    assert served.generator.prompts == []


def test_a_conversation_that_ended_is_refused_and_its_sampling_stops(served):
    served.generator.seconds = 60.0

    async def end_meanwhile() -> list[Any]:
        asked = asyncio.create_task(served.post())
        while not served.generator.num_running:
            await asyncio.sleep(0.01)
        await served.endpoint.end([NAME])
        assert served.generator.num_running == 0
        return [await asked, await served.post()]

    during, after = served.runner.run(asyncio.wait_for(end_meanwhile(), 30))
    assert during[0] == after[0] == 400


def test_who_does_not_know_the_path_gets_nothing(served):
    secret = served.url.split("/")[3]
    served.url = served.url.replace(secret, "guessed")

    async def status() -> int:
        url = f"{served.url.removesuffix('/v1')}/inference/v1/generate"
        async with aiohttp.ClientSession() as http, http.post(url, json=REQUEST, headers=HEADERS) as response:
            return response.status

    assert served.runner.run(status()) == 404
    assert len(secret) >= 32


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampling_params": {"temperature": 0.5}}, "asks for temperature: 0.5; how tokens are sampled is set by"),
        ({"sampling_params": {"max_tokens": 5}}, "asks for max_tokens: 5"),
        ({"sampling_params": {"logprobs": 5}}, "asks for logprobs: 5"),
        ({"sampling_params": {"skip_special_tokens": True}}, "asks for skip_special_tokens: True"),
        ({"features": {}}, "has features; only text"),
        ({"model": "other"}, "asks for the model 'other'"),
    ],
)
def test_a_request_that_brings_its_own_sampling_is_a_failure_of_the_environment(served, changes, problem):
    status, answer = served.ask(**changes)
    assert status == 400
    assert problem in answer["error"]["message"]
    assert isinstance(served.conversation.failure, DataError)
    assert served.generator.prompts == []


def test_a_request_without_tokens_is_told():
    assert request_problem({"model": MODEL, "sampling_params": {}}) == "lacks token_ids"


def test_the_engines_failure_is_kept_and_not_asked_for_again(served):
    served.generator.failures.append(GeneratorError("the engine is gone"))
    status, answer = served.ask()
    assert (status, answer["error"]["message"]) == (400, "the engine is gone")
    assert isinstance(served.conversation.failure, GeneratorError)


def test_a_log_probability_that_is_no_number_is_the_engines_failure(served):
    served.generator.script, served.generator.vocab_size = None, 1

    async def generate(*_: Any, **__: Any) -> list[Completion]:
        return [Completion(token_ids=[5], logprobs=[-math.inf], versions=[0], finish_reason="stop")]

    served.generator.generate = generate
    assert served.ask()[0] == 400
    assert isinstance(served.conversation.failure, GeneratorError)


def test_a_failure_in_a_later_turn_is_no_end_of_the_conversation(served):
    served.ask()
    served.generator.failures.append(DataError("the tokenizer is broken"))
    served.ask(token_ids=[*REQUEST["token_ids"], 7, 8, 2, 9])
    assert (str(served.conversation.failure), served.num_full) == ("the tokenizer is broken", 0)


def test_a_first_prompt_that_does_not_fit_is_a_failure_and_a_later_one_the_end(served):
    conversation = served.new_conversation(5)
    served.endpoint.open(NAME, conversation)
    served.ask(token_ids=[1] * 6)
    assert isinstance(conversation.failure, PromptTooLong)
    assert served.num_full == 0

    conversation = served.new_conversation(5)
    served.endpoint.open(NAME, conversation)
    served.ask(token_ids=[1, 2])
    status, _ = served.ask(token_ids=[1, 2, 7, 8, 2, 9])
    assert status == 400
    assert (conversation.failure, conversation.is_full, served.num_full) == (None, True, 1)


@pytest.mark.parametrize(
    ("ids", "stops", "kept", "reason"),
    [
        ([7, 8, 9], [2], [7, 8, 9], "length"),
        ([7, 2, 9], [2], [7, 2], "stop"),
        ([7, 9, 2], [2, 9], [7, 9], "stop"),
        ([7, 8, 2], [2], [7, 8, 2], "stop"),
        ([7, 2], [], [7, 2], "length"),
    ],
)
def test_a_completion_ends_with_the_first_stop_token(ids, stops, kept, reason):
    completion = Completion(
        token_ids=ids, logprobs=[-float(i) for i in ids], versions=list(ids), finish_reason="length"
    )
    ended = ended_at(completion, stops)
    assert (ended.token_ids, ended.finish_reason) == (kept, reason)
    assert ended.logprobs == [-float(i) for i in kept]
    assert ended.versions == kept
