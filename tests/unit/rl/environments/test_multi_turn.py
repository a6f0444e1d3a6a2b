from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from surogate.errors import DataError
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.guess_number import GuessNumberArgs, GuessNumberEnvironment
from surogate.rl.policy import PromptTooLong
from surogate.rl.types import Completion, Message, Rollout


def play(policy: ScriptedPolicy, n: int = 1, **args: object) -> list[Rollout]:
    environment = GuessNumberEnvironment("guess", GuessNumberArgs(highest=15, **args))
    index = next(i for i in range(15) if environment.example(i).columns["number"] == 6)
    return asyncio.run(environment.rollouts(environment.example(index), n, policy))


class Recorder(ScriptedPolicy):
    """Remembers what it was asked to continue, ends each turn as the template does, and says what version it is."""

    def __init__(self, texts: Sequence[str], ends_turns: bool = True, reason: str = "stop") -> None:
        super().__init__(texts)
        self.prompts: list[list[int]] = []
        self.ends_turns, self.reason = ends_turns, reason

    async def sample(self, prompt_ids, n, stop=()):
        self.prompts.append(list(prompt_ids))
        completions = []
        for plain in await super().sample(prompt_ids, n, stop):
            ids = plain.token_ids + ([ord("\n")] if self.ends_turns else [])
            completions.append(
                Completion(
                    token_ids=ids,
                    logprobs=[-0.5] * len(ids),
                    versions=[len(self.prompts)] * len(ids),
                    finish_reason=self.reason,
                )
            )
        return completions


def test_each_prompt_is_the_last_one_with_what_was_sampled_and_answered():
    policy = Recorder(["8", "4", "6"])
    (rollout,) = play(policy)
    texts = [policy.decode(prompt) for prompt in policy.prompts]
    assert texts[1] == texts[0] + "8\n<user>Lower.\n<assistant>"
    assert texts[2] == texts[1] + "4\n<user>Higher.\n<assistant>"
    assert rollout.prompt_ids == policy.prompts[0]
    assert policy.prompts[2] == rollout.prompt_ids + rollout.completion_ids[:-2]
    assert rollout.text == "8\n<user>Lower.\n<assistant>4\n<user>Higher.\n<assistant>6\n"


def test_only_what_was_sampled_trains():
    (rollout,) = play(Recorder(["8", "6"]))
    between = len("<user>Lower.\n<assistant>")
    assert rollout.sampled == [True, True] + [False] * between + [True, True]
    assert rollout.logprobs == [-0.5] * 2 + [0.0] * between + [-0.5] * 2
    assert rollout.versions == [1, 1] + [-1] * between + [2, 2]
    assert rollout.oldest_version == 1
    assert rollout.metrics == {"num_turns": 2.0}


def test_a_turn_that_the_policy_did_not_end_is_ended_by_the_template():
    ended, cut = play(Recorder(["8", "6"]))[0], play(Recorder(["8", "6"], ends_turns=False))[0]
    assert ended.text.rstrip() == cut.text
    assert sum(ended.sampled) == sum(cut.sampled) + 2


def test_several_conversations_of_a_group_have_their_own_turns():
    first, second = play(Recorder(["6", "8", "6"]), n=2)
    assert (first.reward, second.reward) == (1.0, 1.0)
    assert (first.metrics["num_turns"], second.metrics["num_turns"]) == (1.0, 2.0)


def test_the_reward_falls_with_guesses_that_halving_does_not_need():
    assert play(Recorder(["8", "4", "5", "6"]))[0].reward == 1.0
    assert play(Recorder(["1", "2", "3", "4", "6"]), max_turns=5)[0].reward == 0.5


def test_a_number_that_is_never_found_earns_nothing():
    (rollout,) = play(Recorder(["no"]))
    assert rollout.reward == 0.0
    assert rollout.metrics["num_turns"] == 4.0
    assert "That is no number" in rollout.text


def test_a_reply_that_was_cut_off_ends_the_conversation():
    (rollout,) = play(Recorder(["8", "6"], reason="length"))
    assert rollout.is_truncated
    assert rollout.metrics["num_turns"] == 1.0


def test_a_conversation_that_outgrows_the_context_ends_before_the_answer_that_does_not_fit():
    class Short(Recorder):
        async def sample(self, prompt_ids, n, stop=()):
            if self.prompts:
                raise PromptTooLong("too long")
            return await super().sample(prompt_ids, n, stop)

    (rollout,) = play(Short(["8", "6"]))
    assert rollout.is_truncated
    assert rollout.text == "8\n"
    assert all(rollout.sampled)


def test_any_other_failure_ends_all_conversations_of_the_group():
    class Broken(Recorder):
        async def sample(self, prompt_ids, n, stop=()):
            if len(self.prompts) == 2:
                raise DataError("the tokenizer is broken")
            made = await super().sample(prompt_ids, n, stop)
            if len(self.prompts) == 2:
                await asyncio.Event().wait()
            return made

    async def run():
        environment = GuessNumberEnvironment("guess", GuessNumberArgs(highest=15))
        with pytest.raises(DataError, match="the tokenizer is broken"):
            await environment.rollouts(environment.example(0), 2, Broken(["1", "2"]))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_template_that_rewrites_earlier_turns_is_refused():
    class Forgetful(Recorder):
        def render(self, prompt: str | list[Message]) -> list[int]:
            return super().render([turn for turn in prompt if turn["role"] != "assistant"])

    class Numbering(Recorder):
        def render(self, prompt: str | list[Message]) -> list[int]:
            return [len(prompt), *super().render(prompt)]

    for policy in (Forgetful(["8", "6"]), Numbering(["8", "6"])):
        with pytest.raises(DataError, match="chat template does not render a conversation as its beginning"):
            play(policy)


def test_a_tokenizer_that_gives_every_stand_in_the_same_token_works():
    class Unknowing(Recorder):
        def render(self, prompt: str | list[Message]) -> list[int]:
            return [0 if token in (ord("A"), ord("B")) else token for token in super().render(prompt)]

    assert play(Unknowing(["8", "6"]))[0].text == "8\n<user>Lower.\n<assistant>6\n"


def test_the_numbers_are_all_different_and_the_seed_decides_their_order():
    def numbers(seed: int) -> list[int]:
        environment = GuessNumberEnvironment("guess", GuessNumberArgs(seed=seed))
        return [environment.example(index).columns["number"] for index in range(len(environment))]

    assert sorted(numbers(0)) == list(range(1, 21))
    assert numbers(0) == numbers(0) != numbers(1)
