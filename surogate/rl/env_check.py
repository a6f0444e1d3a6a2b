"""The dry run of an environment: rewards of reference answers and of completions, without training.

What is not here: the command line, and the model where one is given. The one idea: an environment cannot tell a policy
from a script that says known things, so everything is checked through the call that training makes.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surogate.errors import DataError, GeneratorError, SurogateError
from surogate.foreign import ForeignCode, describe
from surogate.rl.environments.base import Environment, Policy
from surogate.rl.rollout_checks import asked, checked_example, source_of
from surogate.rl.types import Completion, Example, Message

Render = Callable[[str | list[Message]], list[int]]
"""Prompt -> its tokens."""

_MAX_SHOWN = 3
"""Different errors that are shown in full."""
_ANY_ID = "\0"
"""Stands for the example's id in an error."""


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
        prompt_lens: tokens of each prompt; none where no tokenizer was given.
        max_len: most tokens of a prompt and its completion.
        errors: what was raised, with the examples that it was raised for.
    """

    env: str
    num_examples: int
    has_policy: bool
    references: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    truncated: float = 0.0
    prompt_lens: list[int] = field(default_factory=list)
    max_len: int = 0
    errors: dict[str, list[str]] = field(default_factory=dict)

    def note(self, error: BaseException, example_id: str, source: str | None = None) -> None:
        """Keep what was raised for an example; what differs only in the example's id is the same."""
        text = str(error).removeprefix(f"{self.env}: ") if isinstance(error, SurogateError) else describe(error, source)
        self.errors.setdefault(text.replace(example_id, _ANY_ID), []).append(example_id)

    @property
    def num_too_long(self) -> int:
        """Prompts that leave no room for a completion."""
        return sum(length >= self.max_len for length in self.prompt_lens)

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
            found.append(f"{sum(map(len, self.errors.values()))} calls failed")
        if self.prompt_lens and self.num_too_long == len(self.prompt_lens):
            found.append(f"no prompt leaves room for a completion in seq_len {self.max_len}")
        if self.references and self.rewards and max(self.references) <= min(map(min, self.rewards)):
            found.append("reference answers get no more than the worst completion")
        if self.has_policy and self.rewards and self.without_signal(len(self.rewards[0])) == 1.0:
            found.append("no group has a signal: nothing would be learnt")
        return found

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        lines = [f"{self.env}: {self.num_examples} prompts"]
        if self.prompt_lens:
            too_long = f"; {self.num_too_long} leave no room for a completion" if self.num_too_long else ""
            lens = f"{min(self.prompt_lens)} to {max(self.prompt_lens)} ({len(self.prompt_lens)})"
            lines.append(f"  tokens of prompts    {lens}, of seq_len {self.max_len}{too_long}")
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
        for text, ids in list(self.errors.items())[:_MAX_SHOWN]:
            times = f" ({len(ids)} times)" if len(ids) > 1 else ""
            lines.append(f"  error: {ids[0]}: {text.replace(_ANY_ID, ids[0])}{times}")
        if len(self.errors) > _MAX_SHOWN:
            lines.append(f"  and {len(self.errors) - _MAX_SHOWN} other errors")
        lines += [f"  problem: {problem}" for problem in self.problems()]
        return lines


async def check(
    environment: Environment,
    policy: Policy | None,
    num_examples: int,
    n: int,
    max_len: int = sys.maxsize,
    render: Render | None = None,
) -> EnvReport:
    """Run some examples of an environment.

    Args:
        environment: stays open.
        policy: samples completions; None = stand-ins that no model made.
        num_examples: to run, from the first on.
        n: completions of each.
        max_len: most tokens of a prompt and its completion; stand-ins have no tokens.
        render: gives the tokens of a prompt, where the model's tokenizer is known.

    Raises:
        GeneratorError: the policy's engine failed.
    """
    report = EnvReport(environment.name, len(environment), policy is not None, max_len=max_len)
    spent, count, truncated = 0.0, 0, 0
    for index in range(min(num_examples, len(environment))):
        try:
            example = checked_example(environment, index)
        except DataError as error:
            report.note(error, f"{environment.name}/{index}")
            continue
        _measure(environment, example, render, report)
        reference = _reference(environment, example, report)
        if reference is not None:
            report.references += await _run(environment, example, 1, ScriptedPolicy([reference]), report)
        asked_policy = _TimedPolicy(policy or ScriptedPolicy(stand_ins(example)))
        start = time.perf_counter()
        rewards = await _run(environment, example, n, asked_policy, report, sys.maxsize if policy is None else max_len)
        if rewards:
            spent += time.perf_counter() - start - asked_policy.seconds
            count += len(rewards)
            truncated += asked_policy.num_truncated
            report.rewards.append(rewards)
    report.seconds, report.truncated = spent / max(1, count), truncated / max(1, count)
    return report


def _measure(environment: Environment, example: Example, render: Render | None, report: EnvReport) -> None:
    if render is None:
        return
    rendering = ForeignCode()  # a chat template may refuse, for example, a system's message
    with rendering:
        report.prompt_lens.append(len(render(example.prompt)))
    _note(rendering.error, example, report, None)


def _reference(environment: Environment, example: Example, report: EnvReport) -> str | None:
    asking = ForeignCode()
    reference = None
    with asking:
        reference = environment.reference(example)
    _note(asking.error, example, report, source_of(environment))
    return reference


async def _run(
    environment: Environment, example: Example, n: int, policy: Policy, report: EnvReport, max_len: int = sys.maxsize
) -> list[float]:
    answering = ForeignCode()
    rewards: list[float] = []
    with answering:
        rewards = [rollout.reward for rollout in await asked(environment, example, n, policy, max_len)]
    if isinstance(answering.error, GeneratorError):
        raise answering.error
    _note(answering.error, example, report, source_of(environment))
    return rewards


def _note(error: BaseException | None, example: Example, report: EnvReport, source: str | None) -> None:
    if error is None:
        return
    if not isinstance(error, Exception):
        raise error
    report.note(error, example.id, source)


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
    chat_template_kwargs: Mapping[str, Any] = {}

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
        self.tokenizer, self.chat_template_kwargs = policy.tokenizer, policy.chat_template_kwargs
        self.render: Render = policy.render
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
