"""`verifiers:<taskset>` without verifiers: what is told before it is needed, and traces that look like its own.

With the library: tests/extras/test_verifiers.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surogate.config.parts_grpo import EnvSpec
from surogate.errors import ConfigError, DataError
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.base import RewardError
from surogate.rl.environments.registry import arguments_of, build_environment, check_environment
from surogate.rl.environments.token_endpoint import Conversation
from surogate.rl.environments.verifiers_env import check_taskset, rollout_of, trained_trace
from surogate.rl.environments.verifiers_settings import VerifiersArgs
from surogate.rl.types import Completion, Example

EXAMPLE = Example(id="digits/0", env="digits", prompt=[{"role": "user", "content": "?"}])


@dataclass
class Node:
    token_ids: list[int]
    mask: list[bool]


@dataclass
class Branch:
    nodes: list[Node]
    trainable: bool = True

    @property
    def token_ids(self) -> list[int]:
        return [token for node in self.nodes for token in node.token_ids]

    @property
    def sampled_mask(self) -> list[bool]:
        return [flag for node in self.nodes for flag in node.mask]


@dataclass
class Reward:
    score: float
    value: float


@dataclass
class Trace:
    branches: list[Branch]
    rewards: dict[str, Reward | None] = field(default_factory=lambda: {"good": Reward(0.5, 1.0)})
    metrics: dict[str, float | None] = field(default_factory=dict)
    num_turns: int = 1
    stop_condition: str | None = None
    agent: Any = field(default_factory=lambda: SimpleNamespace(trainable=True))
    errors: list[Any] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        return list({id(node): node for branch in self.branches for node in branch.nodes}.values())

    @property
    def reward(self) -> float:
        return sum(reward.value for reward in self.rewards.values() if reward)


def said(*ids: int, before: int = 0) -> Node:
    """A reply, after so many tokens of the template."""
    return Node([ord("<")] * before + list(ids), [False] * before + [True] * len(ids))


def heard(*ids: int) -> Node:
    return Node(list(ids), [False] * len(ids))


def completion(*ids: int, version: int = 0, reason: str = "stop") -> Completion:
    logprobs = [-0.1 * token for token in ids]
    return Completion(token_ids=list(ids), logprobs=logprobs, versions=[version] * len(ids), finish_reason=reason)


def conversation(turns: dict[tuple[int, ...], Completion]) -> Conversation:
    return Conversation(ScriptedPolicy(["x"]), lambda: None, turns)


def episode(*traces: Trace, ok: bool = True, errors: tuple[Any, ...] = ()) -> Any:
    return SimpleNamespace(traces=list(traces), ok=ok, errors=list(errors))


# ---- what is told before anything is loaded


def test_without_verifiers_the_way_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(ConfigError, match=r"not installed: `pip install 'surogate\[verifiers\]'`"):
        check_environment(EnvSpec(id="verifiers:gsm8k"))
    with pytest.raises(ConfigError, match="not installed"):
        build_environment(EnvSpec(id="verifiers:gsm8k"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the name, with a taskset."""
    (tmp_path / "verifiers/v1/tasksets/shipped").mkdir(parents=True)
    (tmp_path / "verifiers/__init__.py").touch()
    (tmp_path / "my_tasks.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "verifiers", raising=False)
    return tmp_path


def test_a_taskset_is_found_without_importing_it(library):
    check_taskset("shipped")
    check_taskset("My-Tasks")
    with pytest.raises(ConfigError, match=r"there is no module 'nobodys'.*PYTHONPATH"):
        check_taskset("nobodys")


def test_an_older_verifiers_is_told(library):
    (library / "verifiers/v1/tasksets/shipped").rmdir()
    (library / "verifiers/v1/tasksets").rmdir()
    (library / "verifiers/v1").rmdir()
    with pytest.raises(ConfigError, match=r"older than 0\.4"):
        check_taskset("shipped")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tasksets": {}}, "'tasksets' is no argument of it. Did you mean 'taskset'?"),
        ({"taskset": 3}, "taskset is 3; it must be"),
        ({"agent": "bash"}, "agent is 'bash'; it must be"),
        ({"num_examples": 0}, "num_examples is 0; it must be"),
        ({"local_execution": "perhaps"}, "local_execution is 'perhaps'; it must be"),
    ],
)
def test_arguments_are_checked_without_the_library(library, args, message):
    with pytest.raises(ConfigError) as caught:
        check_environment(EnvSpec(id="verifiers:shipped", args=args))
    assert message in str(caught.value)


def test_settings_of_the_library_are_taken_as_they_are(library):
    args = {"taskset": {"n": 3}, "agent": {"max_turns": 2}, "renderer": "qwen3", "num_examples": 5}
    check_environment(EnvSpec(id="verifiers:shipped", args=args))
    assert arguments_of("verifiers:shipped") is VerifiersArgs


# ---- from a trace to a rollout


def test_a_trace_becomes_a_rollout_with_the_engines_numbers():
    trace = Trace([Branch([heard(1, 2), said(7, 8, before=1)])], metrics={"length": 2.0, "unknown": None})
    rollout = rollout_of(trace, conversation({(1, 2, 60, 7, 8): completion(7, 8, version=3)}), EXAMPLE)
    assert (rollout.prompt_ids, rollout.completion_ids) == ([1, 2, 60], [7, 8])
    assert rollout.logprobs == pytest.approx([-0.7, -0.8])
    assert (rollout.versions, rollout.sampled) == ([3, 3], [True, True])
    assert (rollout.reward, rollout.text, rollout.is_truncated) == (1.0, "\x07\x08", False)
    assert rollout.metrics == {"num_turns": 1.0, "tokens_left_out": 0.0, "length": 2.0}


def test_tokens_of_the_environment_between_replies_are_not_sampled_and_those_behind_them_are_left_out():
    trace = Trace([Branch([heard(1), said(7), heard(4, 5), said(8, before=1), heard(6)])], num_turns=2)
    turns = {(1, 7): completion(7, version=1), (1, 7, 4, 5, 60, 8): completion(8, version=2, reason="length")}
    rollout = rollout_of(trace, conversation(turns), EXAMPLE)
    assert rollout.completion_ids == [7, 4, 5, 60, 8]
    assert rollout.sampled == [True, False, False, False, True]
    assert rollout.versions == [1, -1, -1, -1, 2]
    assert rollout.logprobs == pytest.approx([-0.7, 0.0, 0.0, 0.0, -0.8])
    assert rollout.is_truncated


def test_of_several_branches_the_last_that_trains_is_taken_and_the_others_are_counted():
    root = heard(1)
    branches = [Branch([root, said(7, 7)]), Branch([root, said(8)]), Branch([root, said(9, 9, 9)], trainable=False)]
    turns = {(1, 7, 7): completion(7, 7), (1, 8): completion(8), (1, 9, 9, 9): completion(9, 9, 9)}
    rollout = rollout_of(Trace(branches), conversation(turns), EXAMPLE)
    assert rollout.completion_ids == [8]
    assert rollout.metrics["tokens_left_out"] == 5.0


def test_a_conversation_that_filled_the_context_is_truncated():
    held = conversation({(1, 7): completion(7)})
    held.is_full = True
    assert rollout_of(Trace([Branch([heard(1), said(7)])]), held, EXAMPLE).is_truncated


def test_several_rewards_are_metrics_too():
    trace = Trace([Branch([heard(1), said(7)])], rewards={"a": Reward(0.5, 1.0), "b": Reward(3.0, 0.0)})
    rollout = rollout_of(trace, conversation({(1, 7): completion(7)}), EXAMPLE)
    assert rollout.reward == 1.0
    assert (rollout.metrics["reward/a"], rollout.metrics["reward/b"]) == (0.5, 3.0)


@pytest.mark.parametrize("turns", [{}, {(1, 7): completion(8)}, {(1, 7): completion(1, 7)}])
def test_tokens_that_the_policy_did_not_sample_do_not_train(turns):
    held = conversation(turns)
    with pytest.raises(DataError, match="that the policy did not sample"):
        rollout_of(Trace([Branch([heard(1), said(7)])]), held, EXAMPLE)


@pytest.mark.parametrize("branches", [[], [Branch([heard(1)])], [Branch([heard(1), said(7)], trainable=False)]])
def test_a_conversation_without_a_reply_fails(branches):
    with pytest.raises(RewardError, match="before anything was sampled"):
        rollout_of(Trace(branches, stop_condition="max_turns"), conversation({}), EXAMPLE)


# ---- which trace of an episode


def test_the_one_trace_that_trains_is_taken():
    judge = Trace([], agent=SimpleNamespace(trainable=False))
    trace = Trace([])
    assert trained_trace(episode(judge, trace), EXAMPLE) is trace


@pytest.mark.parametrize("count", [0, 2])
def test_several_agents_that_train_are_refused(count):
    with pytest.raises(DataError, match=f"has {count} traces that train"):
        trained_trace(episode(*(Trace([]) for _ in range(count))), EXAMPLE)


def test_an_episode_that_failed_says_why():
    error = SimpleNamespace(type="TaskError", message="scoring: no answer")
    with pytest.raises(RewardError, match="digits: an episode failed: TaskError: scoring: no answer"):
        trained_trace(episode(Trace([], errors=[error]), ok=False), EXAMPLE)
    with pytest.raises(RewardError, match="TaskError"):
        trained_trace(episode(ok=False, errors=(error,)), EXAMPLE)


@pytest.mark.parametrize(("rewards", "message"), [({"a": None}, "a was not scored"), ({}, "no reward was scored")])
def test_what_was_not_scored_is_no_reward_of_zero(rewards, message):
    with pytest.raises(RewardError, match=message):
        trained_trace(episode(Trace([], rewards=rewards)), EXAMPLE)
