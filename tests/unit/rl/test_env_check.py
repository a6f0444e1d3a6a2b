from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.rollouts import ListedEnvironment

from surogate.errors import GeneratorError
from surogate.rl.env_check import EnvReport, ScriptedPolicy, check, stand_ins
from surogate.rl.environments.arithmetic import ArithmeticArgs, ArithmeticEnvironment
from surogate.rl.environments.base import RewardError, SingleTurnEnvironment
from surogate.rl.environments.guess_number import GuessNumberArgs, GuessNumberEnvironment
from surogate.rl.types import Example


class Broken(SingleTurnEnvironment):
    """Fails on its second example."""

    def __len__(self) -> int:
        return 3

    def example(self, index: int) -> Example:
        return Example(id=f"{self.name}/{index}", env=self.name, prompt="?", columns={"index": index})

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        if example.columns["index"] == 1:
            raise RewardError("broken: the reward raised")
        return [0.5] * len(completions)


def test_references_are_right_and_stand_ins_are_wrong():
    environment = ArithmeticEnvironment("sums", ArithmeticArgs(digits=3))
    report = asyncio.run(check(environment, None, 5, 4))
    assert report.references == [1.0] * 5
    assert [len(rewards) for rewards in report.rewards] == [4] * 5
    assert not report.problems()
    assert report.lines()[0] == "sums: 1000 prompts"
    assert "stand-ins, no model" in report.lines()[2]


def test_a_policy_is_measured_with_its_share_of_groups_without_signal():
    environment = ArithmeticEnvironment("sums", ArithmeticArgs())
    answer = environment.reference(environment.example(0))
    report = asyncio.run(check(environment, ScriptedPolicy([answer, "no"]), 2, 2))
    assert report.rewards[0] == [1.0, 0.0]
    assert report.without_signal(2) == pytest.approx(0.0 if report.rewards[1] == [1.0, 0.0] else 0.5)
    assert any("without signal" in line for line in report.lines())


def test_a_conversation_is_checked_by_the_same_call():
    report = asyncio.run(check(GuessNumberEnvironment("guess", GuessNumberArgs()), None, 3, 4))
    assert report.references == [1.0] * 3
    assert not report.errors


def test_what_a_reward_raises_is_reported_and_the_others_go_on():
    report = asyncio.run(check(Broken("broken"), None, 10, 2))
    assert report.errors == {"the reward raised": ["broken/1"]}
    assert len(report.rewards) == 2
    assert "1 calls failed" in report.problems()
    assert "  error: broken/1: the reward raised" in report.lines()


def test_an_engine_that_fails_ends_the_check():
    class Gone(ScriptedPolicy):
        async def sample(self, *args, **kwargs):
            raise GeneratorError("gone")

    with pytest.raises(GeneratorError):
        asyncio.run(check(ArithmeticEnvironment("sums", ArithmeticArgs()), Gone(["x"]), 1, 2))


def test_rewards_that_are_all_the_same_are_a_problem():
    report = asyncio.run(check(Broken("broken"), ScriptedPolicy(["x"]), 1, 4))
    assert "no group has a signal: nothing would be learnt" in report.problems()


def test_the_expected_share_of_smaller_groups_counts_every_choice():
    report = EnvReport("env", 2, True, rewards=[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    # Of the six pairs of the first example three are two zeros.
    assert report.without_signal(2) == pytest.approx((3 / 6 + 1) / 2)
    assert report.without_signal(4) == pytest.approx(0.5)


def test_a_scripted_policy_stops_where_it_is_asked_to():
    (completion,) = asyncio.run(ScriptedPolicy(["7\nmore"]).sample([], 1, ("\n",)))
    assert completion.token_ids == [ord("7"), ord("\n")]


def test_stand_ins_are_the_same_at_every_call():
    example = Example(id="e/1", env="e", prompt="2 + 2 =")
    assert stand_ins(example) == stand_ins(example)
    assert stand_ins(example)[:2] == ["", "2 + 2 ="]


class Unsound(ListedEnvironment):
    """Fails at its third example, and returns rollouts of another at its second."""

    def example(self, index):
        if index == 2:
            raise KeyError("answer")
        return super().example(index)

    async def rollouts(self, example, n, policy):
        made = await super().rollouts(example, n, policy)
        return [replace(rollout, example_id="e/0") for rollout in made]


def test_what_would_end_a_run_is_reported():
    report = asyncio.run(check(Unsound("e", 3), None, 3, 2))
    texts = [line for line in report.lines() if line.startswith("  error")]
    assert len(report.rewards) == 1
    assert texts[0] == "  error: e/1: a rollout of e/1 says that it answers e/0."
    assert texts[1].startswith("  error: e/2: example 2 cannot be made: KeyError: 'answer' (line ")
    assert "2 calls failed" in report.problems()


def test_one_mistake_is_told_once_with_its_line_and_a_count():
    def score(texts, example):
        raise TypeError("no such column")

    report = asyncio.run(check(ListedEnvironment("e", 32, score), None, 32, 2))
    errors = [line for line in report.lines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("  error: e/0: e failed on e/0: TypeError: no such column (line ")
    assert errors[0].endswith(" (32 times)")


def test_prompts_are_counted_against_the_longest_length():
    environment = ListedEnvironment("e", 12)
    report = asyncio.run(check(environment, None, 12, 2, max_len=4, render=lambda prompt: list(prompt)))
    assert report.lines()[1] == ("  tokens of prompts    3 to 4 (12), of seq_len 4; 2 leave no room for a completion")
    assert not report.problems()
    report = asyncio.run(check(environment, None, 12, 2, max_len=3, render=lambda prompt: list(prompt)))
    assert report.problems() == ["no prompt leaves room for a completion in seq_len 3"]
    assert not asyncio.run(check(environment, None, 12, 2)).prompt_lens


def test_a_template_that_refuses_a_prompt_is_reported():
    def render(prompt):
        raise ValueError("no system's message")

    report = asyncio.run(check(ListedEnvironment("e", 2), None, 2, 2, render=render))
    assert report.errors == {"ValueError: no system's message": ["e/0", "e/1"]}
