"""Environment: prompts, and rewards of what the policy makes of them.

The one idea: an environment turns an example and a policy into rollouts with rewards. Most ask once and score the
answers (SingleTurnEnvironment); one that talks in several turns, or uses tools, has a `rollouts` of its own.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from surogate.errors import DataError
from surogate.rl.types import Completion, Example, Message, Rollout


class Policy(Protocol):
    """What an environment may ask of the model under training."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, for a library that renders itself; None where nothing but a script answers."""
        ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]:
        """Options of the chat template, for the same."""
        ...

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Return the tokens of a prompt: text as it is, messages by the chat template and with the start of a reply."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, without special tokens."""
        ...

    async def sample(self, prompt_ids: Sequence[int], n: int, stop: Sequence[str] = ()) -> list[Completion]:
        """Sample n completions."""
        ...


class Environment(ABC):
    """Prompts and rewards.

    Args:
        name: in metrics.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def example(self, index: int) -> Example:
        """Return an example; the same one at every call."""

    @abstractmethod
    async def rollouts(self, example: Example, n: int, policy: Policy) -> list[Rollout]:
        """Let the policy answer an example n times, and score what it did.

        Raises:
            RewardError: the reward failed.
            GeneratorError: the engine failed.
        """

    def reference(self, example: Example) -> str | None:
        """Return a completion that deserves a high reward, for `surogate env-check`; None where none is known."""
        return None

    async def close(self) -> None:  # noqa: B027  most environments start nothing
        """End what the environment started."""


class SingleTurnEnvironment(Environment):
    """Asks once and scores the answers.

    Attributes:
        stop: texts that end a completion.
    """

    stop: Sequence[str] = ()

    @abstractmethod
    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Score the completions of an example; one finite number each."""

    async def rollouts(self, example: Example, n: int, policy: Policy) -> list[Rollout]:
        """Ask once; see Environment.rollouts."""
        prompt_ids = policy.render(example.prompt)
        completions = await policy.sample(prompt_ids, n, self.stop)
        texts = [policy.decode(completion.token_ids) for completion in completions]
        rewards = checked_rewards(await self.rewards(texts, example), texts, self.name)
        return [
            Rollout(
                example_id=example.id,
                env=self.name,
                prompt_ids=prompt_ids,
                completion_ids=completion.token_ids,
                sampled=[True] * len(completion.token_ids),
                logprobs=completion.logprobs,
                versions=completion.versions,
                text=text,
                reward=reward,
                is_truncated=completion.finish_reason == "length",
            )
            for completion, text, reward in zip(completions, texts, rewards, strict=True)
        ]


class RewardError(DataError):
    """A reward that raised, did not answer in time, or gave something that is not one finite number per completion."""


def checked_rewards(rewards: object, completions: Sequence[str], env: str) -> list[float]:
    """Return rewards as floats.

    Raises:
        RewardError: they are not one finite number for each completion.
    """
    if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != len(completions):
        got = f"{len(rewards)} of them" if isinstance(rewards, Sequence) else f"a {type(rewards).__name__}"
        raise RewardError(f"{env}: the reward must return a list of {len(completions)} numbers, and returned {got}.")
    numbers = []
    for reward in rewards:
        # Compared and not converted: a whole number may be larger than every float.
        if isinstance(reward, bool | int | float) and abs(reward) <= sys.float_info.max:
            numbers.append(float(reward))
        else:
            shown = "a number beyond all floats" if isinstance(reward, int) else repr(reward)
            raise RewardError(f"{env}: the reward returned {shown}; each must be a finite number.")
    return numbers
