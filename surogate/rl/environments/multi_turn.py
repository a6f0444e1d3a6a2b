"""MultiTurnEnvironment: conversations in which the environment answers, token by token as they happened.

What is not here: what the environment says (guess_number.py). The one idea: nothing that was sampled is tokenised
again. The next prompt is the last one, the sampled tokens, and the tokens of the environment's turn, which are found by
rendering the turn after two stand-ins for the reply and keeping what both have in common at their end.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from surogate.errors import DataError
from surogate.rl.environments.base import Environment, Policy, checked_rewards
from surogate.rl.policy import PromptTooLong
from surogate.rl.types import Completion, Example, Message, Rollout

_STAND_INS = ("A", "B")
"""Two short replies; what follows them must not depend on them."""


@dataclass(slots=True)
class Episode:
    """A conversation under way.

    Attributes:
        example: what it began with.
        messages: so far, the policy's as text.
    """

    example: Example
    messages: list[Message]
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    is_truncated: bool = False

    @property
    def replies(self) -> list[str]:
        """What the policy said."""
        start = len(self.example.prompt)
        return [str(message["content"]) for message in self.messages[start:] if message["role"] == "assistant"]


class MultiTurnEnvironment(Environment):
    """Asks, hears, answers, until it has heard enough.

    Args:
        name: in metrics.
        max_turns: replies of the policy in a conversation at most.
    """

    def __init__(self, name: str, max_turns: int) -> None:
        super().__init__(name)
        self.max_turns = max_turns

    @abstractmethod
    def answer(self, episode: Episode) -> list[Message]:
        """Return the environment's turn after the policy's last reply, none where the conversation is over."""

    @abstractmethod
    def reward(self, episode: Episode) -> float:
        """Score a conversation that is over."""

    async def rollouts(self, example: Example, n: int, policy: Policy) -> list[Rollout]:
        """Hold n conversations at the same time; see Environment.rollouts.

        Raises:
            DataError: the chat template does not let a conversation be continued.
        """
        if isinstance(example.prompt, str):
            raise DataError(f"{self.name}: a conversation must begin with messages, and its prompt is text.")
        prompt_ids = policy.render(example.prompt)
        episodes = [Episode(example, list(example.prompt), prompt_ids) for _ in range(n)]
        first = await policy.sample(prompt_ids, n)
        held = [asyncio.create_task(self._hold(*pair, policy)) for pair in zip(episodes, first, strict=True)]
        try:
            await asyncio.gather(*held)
        finally:
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
        rewards = checked_rewards([self.reward(episode) for episode in episodes], [""] * n, self.name)
        return [self._rollout(*pair, policy) for pair in zip(episodes, rewards, strict=True)]

    async def _hold(self, episode: Episode, completion: Completion, policy: Policy) -> None:
        """Go on from the policy's first reply to the end."""
        for turn in range(1, self.max_turns + 1):
            _append_reply(episode, completion, policy)
            if episode.is_truncated:
                return
            answer = self.answer(episode)
            if not answer or turn == self.max_turns:
                return
            ids = turn_ids(policy, episode.messages[:-1], answer, episode.completion_ids[-1:], self.name)
            try:
                (completion,) = await policy.sample([*episode.prompt_ids, *episode.completion_ids, *ids], 1)
            except PromptTooLong:  # nothing fits any more
                episode.is_truncated = True
                return
            episode.messages += answer
            episode.completion_ids += ids
            episode.sampled += [False] * len(ids)
            episode.logprobs += [0.0] * len(ids)
            episode.versions += [-1] * len(ids)

    def _rollout(self, episode: Episode, reward: float, policy: Policy) -> Rollout:
        return Rollout(
            example_id=episode.example.id,
            env=self.name,
            prompt_ids=episode.prompt_ids,
            completion_ids=episode.completion_ids,
            sampled=episode.sampled,
            logprobs=episode.logprobs,
            versions=episode.versions,
            text=policy.decode(episode.completion_ids),
            reward=reward,
            metrics={"num_turns": float(len(episode.replies))},
            is_truncated=episode.is_truncated,
        )


def turn_ids(
    policy: Policy, messages: list[Message], answer: list[Message], last_ids: Sequence[int], env: str
) -> list[int]:
    """Return the tokens between the policy's last reply and its next one.

    Args:
        policy: renders.
        messages: before the reply.
        answer: the environment's turn.
        last_ids: the reply's last token; where it already ends the turn as the template does, it is not given twice.
        env: in messages.

    Raises:
        DataError: the template writes earlier turns differently once later ones follow, so there are no such tokens.
    """
    before = policy.render(messages)
    rendered = [policy.render([*messages, {"role": "assistant", "content": text}, *answer]) for text in _STAND_INS]
    # The stand-in is at least one token, also for a tokenizer that knows neither and gives both the same.
    shortest = min(map(len, rendered))
    tail = 0
    while tail < shortest - len(before) - 1 and rendered[0][-1 - tail] == rendered[1][-1 - tail]:
        tail += 1
    ids = rendered[0][len(rendered[0]) - tail :]
    extends = all(text[: len(before)] == before for text in rendered)
    if not extends or not ids or shortest - len(before) - tail > len(max(_STAND_INS, key=len)) + 1:
        raise DataError(
            f"{env}: the model's chat template does not render a conversation as its beginning plus what was added, so "
            "several turns cannot be trained on exactly. Use an environment of one turn, or another template."
        )
    return ids[1:] if list(last_ids) == ids[:1] else ids


def _append_reply(episode: Episode, completion: Completion, policy: Policy) -> None:
    count = len(completion.token_ids)
    episode.messages.append({"role": "assistant", "content": policy.decode(completion.token_ids)})
    episode.completion_ids += completion.token_ids
    episode.sampled += [True] * count
    episode.logprobs += completion.logprobs
    episode.versions += completion.versions
    episode.is_truncated = completion.finish_reason == "length"
