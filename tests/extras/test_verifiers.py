"""`verifiers:<taskset>` with verifiers itself: run by `make test-verifiers`, in an environment of its own.

One event loop serves all tests, as one serves a run: `renderers` keeps locks beyond a loop's end.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.byte_model import byte_tokenizer, save_byte_model, token_logprobs
from transformers import AutoModelForCausalLM

from surogate.config.parts_grpo import EnvSpec, InferenceSpec, OrchestratorSpec, SamplingSpec
from surogate.errors import ConfigError, DataError, GeneratorError
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.base import Environment, RewardError
from surogate.rl.environments.registry import build_environment
from surogate.rl.environments.verifiers_settings import renderer_of
from surogate.rl.generators.fake import FakeGenerator
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.group_maker import GroupMaker
from surogate.rl.policy import SampledPolicy, UnusablePrompt
from surogate.rl.rollout_checks import checked_rollouts
from surogate.rl.rollout_metrics import RolloutTally
from surogate.rl.types import Rollout

CONTEXT = 1024
N = 3
AGREEMENT = 1e-4
"""Log-probabilities of vLLM against transformers', float32."""
ID = "verifiers:count-digits"
TOOL_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

Script = Callable[[list[int], int], list[list[int]]]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", autouse=True)
def tasksets() -> Iterator[None]:
    folder = str(Path(__file__).with_name("tasksets"))
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TOOL_TOKENS})
    return tokenizer


def spec(agent: dict[str, Any] | None = None, **args: Any) -> EnvSpec:
    harness = {"id": "count-digits", **(agent or {}).pop("harness", {})}
    return EnvSpec(id=ID, name="digits", args={"agent": {"harness": harness, **(agent or {})}, **args})


class Asked:
    """An environment and a scripted engine, for a test."""

    def __init__(self, runner: asyncio.Runner, tokenizer: Any, script: Script | None, env: EnvSpec) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.options: dict[str, Any] = {}
        self.generator = FakeGenerator(script=script, max_model_len=CONTEXT, eos_id=tokenizer.eos_token_id)
        runner.run(self.generator.start())
        self.environment: Environment = build_environment(env)

    def rollouts(self, index: int = 0, max_len: int = CONTEXT, max_tokens: int = 32) -> list[Rollout]:
        sampling = SamplingSpec(max_tokens=max_tokens, chat_template_kwargs=self.options)
        policy = SampledPolicy(self.tokenizer, self.generator, sampling, max_len)
        example = self.environment.example(index)
        return checked_rollouts(self.runner.run(self.environment.rollouts(example, N, policy)), example, N, max_len)

    def close(self) -> None:
        self.runner.run(self.environment.close())


@pytest.fixture
def ask(runner, tokenizer) -> Iterator[Callable[..., Asked]]:
    opened = []

    def open_(script: Script | None = None, env: EnvSpec | None = None) -> Asked:
        opened.append(Asked(runner, tokenizer, script, env or spec()))
        return opened[-1]

    yield open_
    for asked in opened:
        asked.close()


def saying(tokenizer: Any, *texts: str) -> Script:
    """Answer with the texts in turn, each n times and ended, whatever the prompt."""
    turns = iter([text for text in texts for _ in range(N)])
    return lambda prompt, n: [[*tokenizer.encode(next(turns)), tokenizer.eos_token_id] for _ in range(n)]


def test_an_answer_becomes_a_rollout_with_its_reward_and_metrics(ask, tokenizer):
    asked = ask(saying(tokenizer, "12ab"))
    assert len(asked.environment) == 4
    for rollout in asked.rollouts(1):
        assert tokenizer.decode(rollout.prompt_ids) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nCount to 4.<|im_end|>\n<|im_start|>assistant\n"
        )
        assert rollout.completion_ids == [*tokenizer.encode("12ab"), tokenizer.eos_token_id]
        assert rollout.reward == 2.0 * 0.5 + 0.0
        assert rollout.metrics == {
            "num_turns": 1.0,
            "tokens_left_out": 0.0,
            "reply_chars": 4.0,
            "reward/digit_share": 0.5,
            "reward/is_short": 1.0,
        }
        assert rollout.sampled == [True] * 5
        assert rollout.logprobs == [-1.0] * 5
        assert rollout.versions == [0] * 5
        assert not rollout.is_truncated


def test_each_answer_keeps_its_own_reward(ask, tokenizer):
    answers = iter(["1234", "12ab", "abcd"])
    asked = ask(lambda prompt, n: [tokenizer.encode(next(answers)) for _ in range(n)])
    assert {rollout.text: rollout.reward for rollout in asked.rollouts()} == {"1234": 2.0, "12ab": 1.0, "abcd": 0.0}


def test_weights_that_arrive_during_a_conversation_are_told_by_token(ask, tokenizer, runner):
    asked = ask(saying(tokenizer, "1234567"))
    asked.generator.seconds = 0.3

    async def load_meanwhile() -> None:
        while asked.generator.num_running < N:
            await asyncio.sleep(0.01)
        await asked.generator.load_weights(WeightUpdate(version=5))

    loading = runner.get_loop().create_task(load_meanwhile())
    rollouts = asked.rollouts()
    runner.run(asyncio.wait_for(loading, 1))
    assert [rollout.versions for rollout in rollouts] == [[0] * 4 + [5] * 4] * N


def test_several_turns_are_one_rollout_in_which_the_users_tokens_are_not_sampled(ask, tokenizer):
    asked = ask(saying(tokenizer, "one", "2", "33"), spec({"harness": {"turns": 3}}))
    for rollout in asked.rollouts():
        assert tokenizer.decode(rollout.completion_ids) == (
            "one<|im_end|>\n<|im_start|>user\nAnd 0?<|im_end|>\n<|im_start|>assistant\n"
            "2<|im_end|>\n<|im_start|>user\nAnd 1?<|im_end|>\n<|im_start|>assistant\n33<|im_end|>"
        )
        sampled = [token for token, flag in zip(rollout.completion_ids, rollout.sampled, strict=True) if flag]
        assert tokenizer.decode(sampled) == "one<|im_end|>2<|im_end|>33<|im_end|>"
        assert all(
            (logprob, version) == ((-1.0, 0) if flag else (0.0, -1))
            for logprob, version, flag in zip(rollout.logprobs, rollout.versions, rollout.sampled, strict=True)
        )
        assert rollout.metrics["num_turns"] == 3.0
        assert rollout.metrics["tokens_left_out"] == 0.0
        assert rollout.reward == 2.0


def test_replies_that_the_tokenizer_would_write_otherwise_train_all_the_same(ask, tokenizer):
    half = tokenizer.encode("\N{SNOWMAN}")[:2]  # no text: decoding it gives a replacement character
    asked = ask(lambda prompt, n: [[*half, tokenizer.eos_token_id]] * n, spec({"harness": {"turns": 3}}))
    for rollout in asked.rollouts():
        assert rollout.num_sampled == 9
        assert rollout.metrics["tokens_left_out"] == 0.0


def test_tool_calls_are_parsed_and_their_results_are_not_sampled(ask, tokenizer):
    call = json.dumps({"name": "look_up", "arguments": {"name": "x"}})
    script = saying(tokenizer, f"<tool_call>\n{call}\n</tool_call>", "1")
    asked = ask(script, spec({"harness": {"turns": 2, "tools": True}}, renderer="qwen3"))
    for rollout in asked.rollouts(max_tokens=128):
        whole = tokenizer.decode(rollout.completion_ids)
        assert "<tool_response>\n1\n</tool_response>" in whole
        sampled = [token for token, flag in zip(rollout.completion_ids, rollout.sampled, strict=True) if flag]
        assert "tool_response" not in tokenizer.decode(sampled)
        assert tokenizer.decode(sampled) == f"<tool_call>\n{call}\n</tool_call><|im_end|>1<|im_end|>"
        assert "look_up" in tokenizer.decode(rollout.prompt_ids)
        assert (rollout.reward, rollout.metrics["tokens_left_out"]) == (2.0, 0.0)


def test_tools_need_a_renderer_that_knows_the_models_calls(ask, tokenizer):
    asked = ask(saying(tokenizer, "1"), spec({"harness": {"tools": True}}))
    with pytest.raises(RewardError, match="set the argument `renderer`"):
        asked.rollouts()


def test_of_several_branches_the_last_trains_and_the_rest_is_counted(ask, tokenizer):
    asked = ask(saying(tokenizer, "abc", "12"), spec({"harness": {"turns": 2, "forgets": True}}))
    for rollout in asked.rollouts():
        assert rollout.text == "12"
        assert "abc" not in tokenizer.decode(rollout.prompt_ids)
        assert rollout.metrics["tokens_left_out"] == 4.0


@pytest.mark.parametrize("survives", [False, True])
def test_a_conversation_that_fills_the_context_is_scored_as_it_stands(ask, tokenizer, survives):
    asked = ask(saying(tokenizer, "1", "2"), spec({"harness": {"turns": 3, "survives": survives}}))
    first = len(tokenizer.encode("Be brief.Count to 3.")) + 30
    for rollout in asked.rollouts(max_len=first + 42):
        assert rollout.is_truncated
        assert rollout.metrics["num_turns"] < 3
        assert rollout.sampled[-1]
        assert rollout.reward == 2.0


def test_a_reply_that_is_cut_off_is_marked(ask, tokenizer):
    asked = ask(lambda prompt, n: [tokenizer.encode("1" * 8)] * n)
    assert all(rollout.is_truncated for rollout in asked.rollouts(max_tokens=8))


def test_a_reply_ends_at_the_renderers_stop_token(ask, tokenizer):
    asked = ask(lambda prompt, n: [[*tokenizer.encode("1"), tokenizer.eos_token_id, *tokenizer.encode("2")]] * n)
    assert [rollout.text for rollout in asked.rollouts()] == ["1"] * N


def test_what_a_harness_asks_of_sampling_changes_nothing(ask, tokenizer):
    asked = ask(saying(tokenizer, "1"), spec({"harness": {"temperature": 0.1}}))
    assert [rollout.text for rollout in asked.rollouts()] == ["1"] * N


@pytest.mark.parametrize("turns", [1, 2])
def test_an_engine_that_fails_is_no_failure_of_the_reward(ask, tokenizer, turns):
    asked = ask(saying(tokenizer, "1", "2"), spec({"harness": {"turns": 2}}))
    asked.generator.failures.extend([None] * N * (turns - 1) + [GeneratorError("the engine is gone")])
    with pytest.raises(GeneratorError, match="the engine is gone"):
        asked.rollouts()


def test_a_prompt_that_does_not_fit_is_unusable(ask, tokenizer):
    with pytest.raises(UnusablePrompt, match="prompt and completion together may have 20"):
        ask(saying(tokenizer, "1")).rollouts(max_len=20)


def test_a_reward_that_raises_fails_its_group(ask, tokenizer):
    asked = ask(saying(tokenizer, "1"), spec(taskset={"first": 13}))
    with pytest.raises(RewardError, match="thirteen cannot be scored"):
        asked.rollouts()


def test_a_group_that_is_cancelled_samples_no_more(ask, tokenizer, runner):
    asked = ask(saying(tokenizer, "1", "2"))
    asked.rollouts()
    asked.generator.seconds = 60.0
    policy = SampledPolicy(tokenizer, asked.generator, SamplingSpec(), CONTEXT)

    async def cancel() -> None:
        group = asyncio.create_task(asked.environment.rollouts(asked.environment.example(0), N, policy))
        while asked.generator.num_running < N:
            await asyncio.sleep(0.01)
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group

    runner.run(asyncio.wait_for(cancel(), 30))
    assert asked.generator.num_running == 0


def test_what_was_started_ends_with_the_environment(ask, tokenizer, runner):
    before = asyncio.all_tasks(runner.get_loop())
    asked = ask(saying(tokenizer, "1", "1"))
    asked.rollouts()
    asked.close()
    runner.run(asyncio.sleep(0.1))
    assert asyncio.all_tasks(runner.get_loop()) == before
    assert asked.rollouts()[0].text == "1"  # and it can be used again


def test_without_a_model_it_says_what_is_missing(ask, runner):
    asked = ask()
    with pytest.raises(DataError, match="cannot be tried without a model"):
        runner.run(asked.environment.rollouts(asked.environment.example(0), 1, ScriptedPolicy(["1"])))


def test_a_tokenizer_without_a_template_is_told_at_the_first_prompt(ask, runner):
    asked = ask()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    policy = SampledPolicy(tokenizer, asked.generator, SamplingSpec(), CONTEXT)
    with pytest.raises(DataError, match="no chat template"):
        runner.run(asked.environment.rollouts(asked.environment.example(0), 1, policy))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"taskset": {"m": 3}}, r"taskset\.m: "),
        ({"taskset": {"id": "other"}}, "taskset.id is set by the environment's id"),
        ({"env": {"taskset": {}}}, "env.taskset is set by the environment's id"),
        ({"agent": {"max_turn": 3}}, r"agent\.max_turn: "),
        ({"agent": {"runtime": {"type": "prime"}}}, "runtime.type is 'prime'.*must be subprocess, docker"),
        ({"agent": {"harness": {"id": "bash"}}}, "runs what the model writes.*local_execution: true"),
        ({"agent": {"sampling": {"temperature": 0.5}}}, "agent.sampling is set, but the policy plays this agent"),
        ({"agent": {"model": "gpt"}}, "agent.model is set"),
        ({"agent": {"harness": {"id": "nothing-there"}}}, "nothing-there"),
        ({"renderer": "qwen-three"}, "qwen-three"),
        ({"num_examples": 0}, "num_examples is 0"),
    ],
)
def test_arguments_that_cannot_be_are_told_in_a_sentence(args, message):
    with pytest.raises(ConfigError, match=message):
        build_environment(EnvSpec(id=ID, args=args))


THINKING = byte_tokenizer().chat_template + (
    "{% if add_generation_prompt and enable_thinking is false %}<think></think>{% endif %}"
)


@pytest.mark.parametrize(("options", "start"), [({}, ""), ({"enable_thinking": False}, "<think></think>")])
def test_options_of_the_chat_template_reach_the_prompt(ask, tokenizer, options, start):
    asked = ask(saying(tokenizer, "12"))
    asked.tokenizer, asked.options = copy.deepcopy(tokenizer), options
    asked.tokenizer.chat_template = THINKING
    assert tokenizer.decode(asked.rollouts()[0].prompt_ids).endswith("\n<|im_start|>assistant\n" + start)


def test_a_renderer_takes_the_options_that_it_knows(tokenizer):
    from renderers import Qwen3RendererConfig

    quiet = {"enable_thinking": False}
    assert renderer_of(tokenizer, Qwen3RendererConfig(), quiet, "digits").enable_thinking is False
    assert renderer_of(tokenizer, Qwen3RendererConfig(enable_thinking=False), quiet, "digits").enable_thinking is False
    with pytest.raises(ConfigError, match=r"renderer.enable_thinking is True, and sampling.chat_template_kwargs says"):
        renderer_of(tokenizer, Qwen3RendererConfig(enable_thinking=True), quiet, "digits")
    with pytest.raises(ConfigError, match=r"the renderer 'qwen3' refuses sampling.chat_template_kwargs: .*'effort'"):
        renderer_of(tokenizer, Qwen3RendererConfig(), {"effort": 1}, "digits")


def test_an_agent_has_no_cloud_and_no_shell_unless_asked_for(ask):
    environment: Any = build_environment(EnvSpec(id=ID))
    seat = environment._env.config.agent
    assert (seat.runtime.type, environment._env.config.agent_harnesses()["agent"].id) == ("subprocess", "count-digits")
    shell = {"agent": {"harness": {"id": "bash"}}, "local_execution": True, "num_examples": 2}
    assert len(build_environment(EnvSpec(id=ID, args=shell))) == 2


@pytest.mark.slow
def test_real_vllm_in_this_process_gives_log_probabilities_of_the_model(runner, tmp_path):
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from surogate.rl.generators.vllm_engine import InProcessVllm

    folder = save_byte_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = InProcessVllm(InferenceSpec(max_model_len=CONTEXT, max_lora_rank=8), folder)
    environment = build_environment(spec({"harness": {"turns": 2}}))
    sizes = OrchestratorSpec(seq_len=CONTEXT, rollouts_per_example=4, sampling=SamplingSpec(max_tokens=12))
    maker = GroupMaker(sizes, [environment], generator, tokenizer, RolloutTally())

    async def sample() -> Any:
        await generator.start()
        try:
            await generator.load_weights(WeightUpdate(version=3, tensors=lambda: iter(model.state_dict().items())))
            return await maker.make(environment.example(0), 0, 0)
        finally:
            await environment.close()
            await generator.close()

    group = runner.run(sample())
    assert len({tuple(rollout.completion_ids) for rollout in group.rollouts}) == 4
    for rollout in group.rollouts:
        assert (rollout.metrics["num_turns"], rollout.metrics["tokens_left_out"]) == (2.0, 0.0)
        expected = token_logprobs(model, rollout.prompt_ids, rollout.completion_ids).tolist()
        for logprob, other, flag, version in zip(
            rollout.logprobs, expected, rollout.sampled, rollout.versions, strict=True
        ):
            assert version == (3 if flag else -1)
            assert not flag or math.isclose(logprob, other, abs_tol=AGREEMENT)
