"""GroupMaker: from one example to its group of rollouts, with the reward of each.

What is not here: which example comes next and which group is trained on (orchestrator.py). The one idea: whatever an
environment does, either a group comes out that can be trained on, or an error that says what is wrong with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from surogate.config.parts_grpo import OrchestratorSpec
from surogate.rl import filters
from surogate.rl.environments.base import Environment
from surogate.rl.generators.protocol import Generator
from surogate.rl.policy import SampledPolicy
from surogate.rl.rollout_checks import asked
from surogate.rl.rollout_metrics import RolloutTally
from surogate.rl.temperature import scheduled_temperature
from surogate.rl.types import Example, Group, Rollout


class GroupMaker:
    """Samples and scores groups.

    Args:
        spec: sizes, sampling, filters.
        environments: each with a name of its own.
        generator: the engine.
        tokenizer: the model's.
        tally: what is counted and timed goes here.
    """

    def __init__(
        self,
        spec: OrchestratorSpec,
        environments: Sequence[Environment],
        generator: Generator,
        tokenizer: Any,
        tally: RolloutTally,
    ) -> None:
        self._spec, self._tally = spec, tally
        self._environments = {environment.name: environment for environment in environments}
        self._generator, self._tokenizer = generator, tokenizer

    async def make(self, example: Example, number: int, step: int) -> Group:
        """Return the group of an example.

        Args:
            example: of one of the environments.
            number: of the group in the run; seeds its sampling.
            step: whose temperature it is sampled at.

        Raises:
            RewardError: the reward failed; another group may do better.
            UnusablePrompt: nothing can be sampled; likewise.
            DataError: the environment is broken, or raised something.
            GeneratorError: the engine failed.
        """
        spec, tally = self._spec, self._tally
        sampling = replace(spec.sampling, temperature=scheduled_temperature(spec.sampling, step))
        first = spec.seed if spec.sampling.seed is None else spec.sampling.seed
        seed = (first * 1_000_003 + number * 4099) % 2**31  # 4099 turns before two groups draw alike
        policy = SampledPolicy(self._tokenizer, self._generator, sampling, spec.seq_len, seed, tally.sampling_clock)
        began = time.time()
        with tally.scoring_clock.running():
            environment = self._environments[example.env]
            rollouts = await asked(environment, example, spec.rollouts_per_example, policy, spec.seq_len)
        marked = tuple(self._filtered(rollout) for rollout in rollouts)
        return Group(example=example, rollouts=marked, temperature=sampling.temperature, began=began, ended=time.time())

    def _filtered(self, rollout: Rollout) -> Rollout:
        for spec in self._spec.filters:
            if filters.flagged(rollout, spec):
                self._tally.count(f"filters/{spec.type}", 1)
                if spec.enforce:
                    rollout = replace(rollout, trains=False)
        return rollout
