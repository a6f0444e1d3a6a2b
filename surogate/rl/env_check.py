"""The dry run of an environment: rewards of reference answers and of completions, without training.

What is not here: the command line, and the model where one is given. The one idea: an environment cannot tell a policy
from a script that says known things, so everything is checked through the call that training makes.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from surogate.errors import GeneratorError, SurogateError
from surogate.rl.environments.base import Environment, Policy
from surogate.rl.types import Completion, Example, Message

_MAX_SHOWN = 3
"""Errors that are shown in full."""


@dataclass(slots=True)
class EnvReport:
    """What an environment did with some examples.

    Attributes:
        env: its name.
        num_examples: in all of it.
        has_policy: whether completions are a model's; otherwise they are stand-ins: nothing, the prompt, noise.
        references: reward of each reference answer.
        rewards: of each example's completions.
        seconds: spent on rewards, by completion.
        truncated: share of completions that were cut off.
        errors: what was raised.
    """

    env: str
    num_examples: int
    has_policy: bool
    references: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    truncated: float = 0.0
    errors: list[str] = field(default_factory=list)

    def without_signal(self, group_size: int) -> float:
        """Return the expected share of groups whose rewards are all the same.

        An example's group is any `group_size` of its n completions, each choice equally likely: the sum over its
        different rewards of C(how often, group_size) / C(n, group_size), averaged over examples.

        Args:
            group_size: at most the completions of an example.
        """
        shares = [
            sum(math.comb(count, group_size) for count in Counter(rewards).values())
            / math.comb(len(rewards), group_size)
            for rewards in self.rewards
        ]
        return statistics.fmean(shares)

    def problems(self) -> list[str]:
        """Say what would keep a run from learning."""
        found = []
        if self.errors:
            found.append(f"{len(self.errors)} calls failed")
        if self.references and self.rewards and max(self.references) <= min(map(min, self.rewards)):
            found.append("reference answers get no more than the worst completion")
        if self.has_policy and self.rewards and self.without_signal(len(self.rewards[0])) == 1.0:
            found.append("no group has a signal: nothing would be learnt")
        return found

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        lines = [f"{self.env}: {self.num_examples} prompts"]
        if self.references:
            lines.append(f"  reference answers    {_spread(self.references)}")
        else:
            lines.append("  reference answers    not known to this environment")
        everything = [reward for rewards in self.rewards for reward in rewards]
        if everything:
            kind = "sampled completions" if self.has_policy else "stand-ins, no model"
            lines.append(f"  {kind:<20} {_spread(everything)}")
            lines.append(f"  time per reward      {1000 * self.seconds:.1f} ms")
        if everything and self.has_policy:
            n = len(self.rewards[0])
            lines.append(f"  cut off at max_tokens {self.truncated:.0%}")
            lines.append(f"  groups of {n} without signal {self.without_signal(n):.0%}")
        lines += [f"  error: {error}" for error in self.errors[:_MAX_SHOWN]]
        if len(self.errors) > _MAX_SHOWN:
            lines.append(f"  and {len(self.errors) - _MAX_SHOWN} more errors")
        lines += [f"  problem: {problem}" for problem in self.problems()]
        return lines


async def check(environment: Environment, policy: Policy | None, num_examples: int, n: int) -> EnvReport:
    """Run some examples of an environment.

    Args:
        environment: stays open.
        policy: samples completions; None = stand-ins that no model made.
        num_examples: to run, from the first on.
        n: completions of each.

    Raises:
        GeneratorError: the policy's engine failed.
    """
    report = EnvReport(environment.name, len(environment), policy is not None)
    spent, count, truncated = 0.0, 0, 0
    for index in range(min(num_examples, len(environment))):
        example = environment.example(index)
        reference = environment.reference(example)
        if reference is not None:
            report.references += await _run(environment, example, 1, ScriptedPolicy([reference]), report.errors)
        asked = _TimedPolicy(policy or ScriptedPolicy(stand_ins(example)))
        start = time.perf_counter()
        rewards = await _run(environment, example, n, asked, report.errors)
        if rewards:
            spent += time.perf_counter() - start - asked.seconds
            count += len(rewards)
            truncated += asked.num_truncated
            report.rewards.append(rewards)
    report.seconds, report.truncated = spent / max(1, count), truncated / max(1, count)
    return report


async def _run(environment: Environment, example: Example, n: int, policy: Policy, errors: list[str]) -> list[float]:
    try:
        return [rollout.reward for rollout in await environment.rollouts(example, n, policy)]
    except GeneratorError:
        raise
    except SurogateError as error:
        errors.append(f"{example.id}: {error}")
        return []


def stand_ins(example: Example) -> list[str]:
    """Return completions that deserve little: nothing, the prompt itself, a number, noise."""
    rng = random.Random(example.id)
    prompt = example.prompt if isinstance(example.prompt, str) else str(example.prompt[-1]["content"])
    noise = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz 0123456789\n{}()") for _ in range(80))
    return ["", prompt, str(rng.randrange(1000)), noise]


class ScriptedPolicy:
    """A policy that says given texts in turn; its tokens are characters.

    Args:
        texts: at least one.
    """

    tokenizer = None

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = itertools.cycle(texts)

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Return the characters of a prompt; messages in a plain template."""
        if isinstance(prompt, str):
            return list(map(ord, prompt))
        return list(map(ord, "".join(f"<{turn['role']}>{turn['content']}\n" for turn in prompt) + "<assistant>"))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return characters as text."""
        return "".join(map(chr, token_ids))

    async def sample(self, prompt_ids: Sequence[int], n: int, stop: Sequence[str] = ()) -> list[Completion]:
        """Say the next n texts, each up to a stop text."""
        completions = []
        for text in itertools.islice(self._texts, n):
            ends = [text.find(end) + len(end) for end in stop if end in text]
            ids = list(map(ord, text[: min(ends, default=len(text))]))
            completion = Completion(
                token_ids=ids, logprobs=[0.0] * len(ids), versions=[0] * len(ids), finish_reason="stop"
            )
            completions.append(completion)
        return completions


class _TimedPolicy:
    """A policy whose sampling is timed, so that it can be told from the rewards'."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.tokenizer = policy.tokenizer
        self.render: Callable[[str | list[Message]], list[int]] = policy.render
        self.decode: Callable[[Sequence[int]], str] = policy.decode
        self.seconds = 0.0
        self.num_truncated = 0

    async def sample(self, prompt_ids: Sequence[int], n: int, stop: Sequence[str] = ()) -> list[Completion]:
        start = time.perf_counter()
        completions = await self._policy.sample(prompt_ids, n, stop)
        self.seconds += time.perf_counter() - start
        self.num_truncated += sum(completion.finish_reason == "length" for completion in completions)
        return completions


def _spread(rewards: Sequence[float]) -> str:
    return (
        f"mean {statistics.fmean(rewards):.3f}, standard deviation {statistics.pstdev(rewards):.3f}, "
        f"{min(rewards):g} to {max(rewards):g} ({len(rewards)})"
    )
