"""The nouns of reinforcement learning: Example, Completion, Rollout, Group, RolloutBatch.

A batch of an optimizer step is made of groups, a group of the rollouts of one example. What is not here: tensors
(micro_batches.py). The one idea: **token ids travel, text does not.** What the engine sampled is what the trainer
scores; nothing is tokenised twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""A turn of a conversation: role, content, and perhaps tool_calls or tool_call_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt of an environment.

    Attributes:
        id: `<environment name>/<index>`, the same in every run.
        env: name of the environment.
        prompt: text that is tokenised as it is, or messages for the chat template.
        columns: what the reward needs, such as the answer; plain values.
    """

    id: str
    env: str
    prompt: str | list[Message]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled after a prompt.

    Attributes:
        token_ids: the end-of-text token included where it was sampled.
        logprobs: log-probability of each token under the distribution it was sampled from, in nats.
        versions: policy version that sampled each token.
        finish_reason: stop (end of text or a stop string), or length.
    """

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sequence that can be trained on.

    Attributes:
        example_id: of the example that it answers.
        env: name of the environment.
        prompt_ids: tokens before the first sampled one.
        completion_ids: all tokens after them; in several turns also those that the environment wrote.
        sampled: whether the policy sampled each of completion_ids; the others do not train.
        logprobs: the engine's, as in Completion; 0.0 where not sampled.
        versions: policy version of each of completion_ids; -1 where not sampled.
        text: the completion as text, for people.
        reward: from the environment.
        metrics: further numbers of the environment.
        is_truncated: cut off by the longest length.
        advantage: of all its tokens; set when its group is complete.
        trains: false where a filter keeps it out of the loss. Its reward counts in the group's baseline all the same.
    """

    example_id: str
    env: str
    prompt_ids: list[int]
    completion_ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    versions: list[int]
    text: str
    reward: float
    metrics: dict[str, float] = field(default_factory=dict)
    is_truncated: bool = False
    advantage: float = 0.0
    trains: bool = True

    @property
    def num_sampled(self) -> int:
        """Tokens that train."""
        return sum(self.sampled)

    @property
    def oldest_version(self) -> int:
        """Version of the oldest token that trains."""
        return min((v for v, s in zip(self.versions, self.sampled, strict=True) if s), default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one example.

    Attributes:
        example: what they answer.
        rollouts: at least two.
        temperature: that they were sampled at.
        began: when the group was started, in seconds since the epoch; 0 = not known.
        ended: when its last reward was there.
    """

    example: Example
    rollouts: tuple[Rollout, ...]
    temperature: float = 1.0
    began: float = field(default=0.0, compare=False)
    ended: float = field(default=0.0, compare=False)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ; otherwise every advantage is 0."""
        return len({rollout.reward for rollout in self.rollouts}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """The groups of one optimizer step.

    Attributes:
        step: of the update that they are for; the first one is 0.
        groups: with advantages set.
        metrics: numbers of generation and rewards, for the log.
        ledger: the orchestrator's position after this step, as plain values; what a checkpoint stores.
    """

    step: int
    groups: tuple[Group, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, group by group."""
        return [rollout for group in self.groups for rollout in group.rollouts]
