"""PromptPool: which example comes next, and which are still owed.

What is not here: sampling (orchestrator.py). The one idea: **a prompt is owed until a step has trained on it.** The
pool keeps the ids of examples that were handed out, so a position in the run is (how far each environment was walked,
which ids are owed), and a resumed run hands the owed ones out again, first.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from surogate.config.parts_grpo import BufferSpec
from surogate.errors import CheckpointError, DataError
from surogate.rl.environments.base import Environment
from surogate.rl.rollout_checks import checked_example
from surogate.rl.types import Example


@dataclass
class _Walk:
    """One pass after the other over the examples of an environment, each in an order of its own.

    Attributes:
        epoch: pass that is under way.
        position: examples of it that have been drawn.
        drawn: examples drawn in all.
        easy: indices that left the pool because the policy solves them.
        hard: indices that left it because the policy never does.
    """

    epoch: int = 0
    position: int = 0
    drawn: int = 0
    easy: set[int] = field(default_factory=set)
    hard: set[int] = field(default_factory=set)


class PromptPool:
    """Deals the examples of several environments, and remembers what is owed.

    Args:
        environments: each with a name of its own.
        weights: how often each is drawn, relative to the others.
        seed: of the orders.
        buffer: which examples leave the pool.

    Raises:
        DataError: an environment has no examples.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        weights: Sequence[float],
        seed: int,
        buffer: BufferSpec = BufferSpec(),  # noqa: B008  frozen
    ) -> None:
        self._environments = {environment.name: environment for environment in environments}
        assert len(self._environments) == len(environments), "two environments have the same name"
        for environment in environments:
            if not len(environment):
                raise DataError(f"The environment {environment.name} has no prompts. Give it some, or remove it.")
        self._weights = dict(zip(self._environments, weights, strict=True))
        self._seed, self._buffer = seed, buffer
        self._walks = {name: _Walk() for name in self._environments}
        self._orders: dict[str, tuple[int, list[int]]] = {}
        self._returned: deque[str] = deque()
        self._owed: list[str] = []  # in the order in which they were handed out; an id may be owed for two passes

    def draw(self) -> Example:
        """Hand out an example, which is owed from now on; returned ones come first.

        Raises:
            DataError: the environment is broken.
        """
        if self._returned:
            example_id = self._returned.popleft()
        else:
            # The environment that is furthest behind its share; the first of those that are even.
            name = min(self._walks, key=lambda name: (self._walks[name].drawn + 1) / self._weights[name])
            example_id = f"{name}/{self._next_index(name)}"
        self._owed.append(example_id)
        name, _, index = example_id.rpartition("/")
        return checked_example(self._environments[name], int(index))

    def give_back(self, example: Example) -> None:
        """Take back an example that could not be trained on; it is handed out again."""
        self._settle(example)
        self._returned.append(example.id)

    def settle(self, example: Example, mean_reward: float | None = None) -> None:
        """Note that an example is done with: trained on, or left out for good.

        Args:
            example: no longer owed.
            mean_reward: of its group, which may take it out of the pool; None where it was never answered.
        """
        self._settle(example)
        if mean_reward is None:
            return
        name, _, index = example.id.rpartition("/")
        walk, buffer = self._walks[name], self._buffer
        if buffer.easy_threshold is not None and mean_reward >= buffer.easy_threshold:
            walk.easy.add(int(index))
        elif buffer.hard_threshold is not None and mean_reward <= buffer.hard_threshold:
            walk.hard.add(int(index))

    def _settle(self, example: Example) -> None:
        assert example.id in self._owed, f"{example.id} is not owed"
        self._owed.remove(example.id)

    def metrics(self) -> dict[str, float]:
        """Give the passes over each environment, and how many of its examples have left the pool."""
        values = {}
        for name, walk in self._walks.items():
            values[f"data/{name}/epochs"] = walk.drawn / len(self._environments[name])
            if self._buffer.easy_threshold is not None or self._buffer.hard_threshold is not None:
                values[f"data/{name}/easy"], values[f"data/{name}/hard"] = len(walk.easy), len(walk.hard)
        return values

    def state(self) -> dict[str, Any]:
        """Return the position as plain values."""
        walks = {
            name: {**vars(walk), "easy": sorted(walk.easy), "hard": sorted(walk.hard)}
            for name, walk in self._walks.items()
        }
        return {**self._identity(), "walks": walks, "owed": [*self._owed], "returned": [*self._returned]}

    def _identity(self) -> dict[str, Any]:
        """Return what a position means nothing without."""
        sizes = {name: len(environment) for name, environment in self._environments.items()}
        return {"sizes": sizes, "seed": self._seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a position; what was owed there is handed out first.

        Raises:
            CheckpointError: the position belongs to other environments, or to another order of their examples.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                what = "the environments (and numbers of examples)" if name == "sizes" else name
                raise CheckpointError(
                    f"The checkpoint was made with {what} {state[name]}, and this run has {value}. Set it as it was, "
                    "or start afresh in another output_dir."
                )
        self._walks = {
            name: _Walk(**{**walk, "easy": set(walk["easy"]), "hard": set(walk["hard"])})
            for name, walk in state["walks"].items()
        }
        self._owed = []
        self._returned = deque([*state["owed"], *state["returned"]])

    def _next_index(self, name: str) -> int:
        walk = self._walks[name]
        walk.drawn += 1
        while True:
            order = self._order(name)
            while walk.position < len(order):
                index = order[walk.position]
                walk.position += 1
                if index not in walk.easy and index not in walk.hard:
                    return index
            walk.epoch += 1
            walk.position = 0
            self._readmit(name)

    def _readmit(self, name: str) -> None:
        """Let the asked share of the easy and hard examples into the next pass; all of them where nothing is left."""
        walk, draw = self._walks[name], random.Random(f"{self._seed}/{name}/{self._walks[name].epoch}/readmit")
        for left, share in ((walk.easy, self._buffer.easy_fraction), (walk.hard, self._buffer.hard_fraction)):
            left.difference_update(draw.sample(sorted(left), round(share * len(left))))
        if len(walk.easy) + len(walk.hard) >= len(self._environments[name]):
            walk.easy.clear()
            walk.hard.clear()

    def _order(self, name: str) -> list[int]:
        epoch = self._walks[name].epoch
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            order = list(range(len(self._environments[name])))
            random.Random(f"{self._seed}/{name}/{epoch}").shuffle(order)  # a str is hashed alike in every process
            self._orders[name] = known = (epoch, order)
        return known[1]
