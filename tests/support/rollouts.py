"""What tests of reinforcement learning are built from: an environment that answers by a function, a tokenizer of
characters, and a generator whose answers wait for the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from surogate.config.parts_grpo import OrchestratorSpec, SamplingSpec
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.generators.fake import FakeGenerator
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.orchestrator import Orchestrator
from surogate.rl.types import Completion, Example, Rollout

Score = Callable[[list[str], Example], list[float]]


class CharTokenizer:
    """A token is a character."""

    chat_template = None
    eos_token_id = None

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=list(map(ord, text)))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


def by_place(texts: list[str], example: Example) -> list[float]:
    """Rewards 0, 1, 2, ... by the place in the group, so that each group has a signal."""
    return [float(place) for place in range(len(texts))]


class ListedEnvironment(SingleTurnEnvironment):
    """Prompts `<name>/<index>`, and rewards by a function."""

    def __init__(self, name: str, size: int, score: Score = by_place) -> None:
        super().__init__(name)
        self.size, self.score = size, score
        self.num_closed = 0

    def __len__(self) -> int:
        return self.size

    def example(self, index: int) -> Example:
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=f"{self.name}/{index}")

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        return self.score(completions, example)

    async def close(self) -> None:
        self.num_closed += 1


@dataclass(kw_only=True)
class GatedGenerator(FakeGenerator):
    """A generator whose answers wait until the test lets them through.

    Attributes:
        gates: prompt -> what its answers wait for; prompts that are not there are answered at once.
        begun: (prompt, version) of each request, in order.
        num_cancelled: requests that were cancelled.
    """

    is_started: bool = True
    script: Any = lambda ids, n: [[65 + place, 66] for place in range(n)]
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    begun: list[tuple[str, int]] = field(default_factory=list)
    num_cancelled: int = 0

    async def generate(
        self,
        prompt_ids: Sequence[int],
        n: int,
        sampling: SamplingSpec,
        *,
        stop: Sequence[str] = (),
        seed: int | None,
        asker: object | None = None,
    ) -> list[Completion]:
        prompt = "".join(map(chr, prompt_ids))
        self.begun.append((prompt, self.version))
        gate, before = self.gates.get(prompt) or self.gates.get("all"), self.version
        self.num_running += n
        try:
            if gate is not None:
                await gate.wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= n
        completions = await super().generate(prompt_ids, n, sampling, stop=stop, seed=seed)
        if before == self.version:
            return completions
        return [
            Completion(
                token_ids=c.token_ids,
                logprobs=c.logprobs,
                versions=[before, *c.versions[1:]],
                finish_reason=c.finish_reason,
            )
            for c in completions
        ]


def update(version: int) -> WeightUpdate:
    """Weights in name only."""
    return WeightUpdate(version=version, tensors=lambda: iter(()))


def make_spec(num_groups: int = 2, group_size: int = 2, **values: Any) -> OrchestratorSpec:
    """A spec of a few small groups."""
    given = {"seq_len": 64, "sampling": SamplingSpec(max_tokens=4), "max_steps": 100, "max_off_policy_steps": 8}
    return OrchestratorSpec(
        **{**given, "batch_size": num_groups * group_size, "rollouts_per_example": group_size, **values}
    )


def make_orchestrator(
    generator: FakeGenerator,
    level: int = 0,
    environments: Sequence[Any] | None = None,
    stall_seconds: float = 5.0,
    **spec: Any,
) -> Orchestrator:
    """An orchestrator over one environment of 12 examples, unless others are given."""
    environments = environments or [ListedEnvironment("a", 12)]
    weights = [1.0] * len(environments)
    return Orchestrator(make_spec(**spec), environments, weights, generator, CharTokenizer(), level, stall_seconds)


def make_rollout(prompt_len: int = 2, sampled: Sequence[bool] = (True, True), start: int = 0, **values: Any) -> Rollout:
    """A rollout whose numbers all differ: token t has id start + t, log-probability -id / 1000 and version id."""
    ids = [start + prompt_len + place for place in range(len(sampled))]
    given = {
        "example_id": "a/0",
        "env": "a",
        "prompt_ids": [start + place for place in range(prompt_len)],
        "completion_ids": ids,
        "sampled": list(sampled),
        "logprobs": [-i / 1000 if s else 0.0 for i, s in zip(ids, sampled, strict=True)],
        "versions": [i if s else -1 for i, s in zip(ids, sampled, strict=True)],
        "text": "text",
        "reward": 1.0,
    }
    return Rollout(**{**given, **values})
