"""Evaluation: what the policy gets in environments that it does not train on."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from surogate.config.parts_grpo import OrchestratorSpec
from surogate.errors import DataError, GeneratorError
from surogate.rl.environments.base import Environment, RewardError
from surogate.rl.generators.protocol import Generator
from surogate.rl.policy import SampledPolicy, UnusablePrompt
from surogate.rl.rollout_checks import asked, checked_example, environment_failure
from surogate.rl.types import Example, Rollout

log = logging.getLogger(__name__)

_MIN_AT_ONCE = 64
"""Completions under way at the same time, where a step of training has fewer."""

_NOTICE_SECONDS = 60.0
_STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """An evaluation.

    Attributes:
        version: of the policy.
        metrics: by name, `eval/<environment>/reward` and so on.
        rollouts: all that was answered, in the order of the examples.
    """

    version: int
    metrics: dict[str, float]
    rollouts: list[Rollout]


class Evaluation:
    """Asks the same questions at every call.

    Args:
        spec: its `eval` says how many are asked and how they are sampled, the rest what holds in training too.
        environments: each with a name of its own.
        generator: the engine, which must be awake.
        tokenizer: the model's.
        stall_seconds: without an answer for so long it fails.

    Raises:
        DataError: an environment has no examples.
    """

    def __init__(
        self,
        spec: OrchestratorSpec,
        environments: Sequence[Environment],
        generator: Generator,
        tokenizer: Any,
        stall_seconds: float = 1800.0,
    ) -> None:
        self.spec, self.environments = spec.eval, list(environments)
        self._generator, self._tokenizer = generator, tokenizer
        temperature = spec.eval.temperature
        if temperature is None:
            temperature = 0.0 if spec.eval.rollouts_per_example == 1 else spec.sampling.temperature
        self._sampling = replace(
            spec.sampling,
            max_tokens=spec.eval.max_tokens or spec.sampling.max_tokens,
            temperature=temperature,
            temp_scheduler=None,
        )
        self._at_once = max(1, max(_MIN_AT_ONCE, spec.batch_size) // spec.eval.rollouts_per_example)
        self._max_len, self._stall_seconds = spec.seq_len, stall_seconds
        for environment in environments:
            if not len(environment):
                raise DataError(f"eval.env: {environment.name} has no prompts. Give it some, or remove it.")

    def is_due(self, version: int, max_steps: int) -> bool:
        """Whether a policy version is evaluated: the first one as the reference, each interval, and the last."""
        if not self.environments:
            return False
        if version == 0:
            return self.spec.eval_base_model
        return version >= max_steps or version % self.spec.interval == 0

    async def run(self, version: int) -> EvalResult:
        """Evaluate the weights that the engine holds.

        Raises:
            GeneratorError: the engine failed, or nothing was answered for too long.
            DataError: an environment failed.
        """
        metrics: dict[str, float] = {}
        rollouts: list[Rollout] = []
        for environment in self.environments:
            answers = await self._ask(environment)
            answered = [rollout for of_example in answers for rollout in of_example or []]
            metrics |= _metrics(f"eval/{environment.name}", answered, sum(answer is None for answer in answers))
            rollouts += answered
        return EvalResult(version=version, metrics=metrics, rollouts=rollouts)

    async def _ask(self, environment: Environment) -> list[list[Rollout] | None]:
        """Return the rollouts of each example, None where it could not be answered or scored."""
        gate = asyncio.Semaphore(self._at_once)
        examples = [
            checked_example(environment, index) for index in range(min(self.spec.num_examples, len(environment)))
        ]
        # The same numbers are drawn at every evaluation.
        tasks = {
            asyncio.create_task(self._answer(environment, example, 7919 * index, gate)): example
            for index, example in enumerate(examples)
        }
        try:
            failed = await self._first_failure(list(tasks), environment.name)
            if failed is not None:
                error = asyncio.CancelledError() if failed.cancelled() else failed.exception()
                assert error is not None
                raise environment_failure(error, tasks[failed])
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            for task in done:
                task.cancelled() or task.exception()  # so that asyncio does not complain that nobody looked

    async def _first_failure(self, tasks: Sequence[asyncio.Task[Any]], name: str) -> asyncio.Task[Any] | None:
        """Wait for all tasks, or for the first that fails, and return that one."""
        deadline = time.monotonic() + self._stall_seconds
        pending: set[asyncio.Task[Any]] = set(tasks)
        while pending:
            count, timeout = len(pending), min(_NOTICE_SECONDS, self._stall_seconds)
            _, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
            ended = [task for task in tasks if task.done()]
            failed = [task for task in ended if task.cancelled() or task.exception() is not None]
            if failed:
                return failed[0]
            state = f"{len(ended)} of {len(tasks)} examples of {name} are done"
            if len(pending) < count:
                deadline = time.monotonic() + self._stall_seconds
            elif time.monotonic() >= deadline:
                raise GeneratorError(f"The evaluation came no further in {self._stall_seconds:g} s: {state}.")
            if pending:
                log.info("Evaluating: %s.", state)
        return None

    async def _answer(
        self, environment: Environment, example: Example, seed: int, gate: asyncio.Semaphore
    ) -> list[Rollout] | None:
        async with gate:
            policy = SampledPolicy(self._tokenizer, self._generator, self._sampling, self._max_len, seed)
            try:
                return await asked(environment, example, self.spec.rollouts_per_example, policy, self._max_len)
            except (RewardError, UnusablePrompt) as error:
                log.warning("Evaluation leaves out %s: %s", example.id, error)
                return None


def _metrics(prefix: str, rollouts: Sequence[Rollout], num_failed: int) -> dict[str, float]:
    if not rollouts:
        return {f"{prefix}/failed": float(num_failed)}
    of_example: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        of_example[rollout.example_id].append(rollout.reward)
    means = [statistics.fmean(rewards) for rewards in of_example.values()]
    # The examples are what was sampled from the world; completions of the same one are not independent.
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return {
        f"{prefix}/reward": statistics.fmean(means),
        f"{prefix}/standard_error": error,
        f"{prefix}/mean_len": statistics.fmean(rollout.num_sampled for rollout in rollouts),
        f"{prefix}/truncated": statistics.fmean(rollout.is_truncated for rollout in rollouts),
        f"{prefix}/failed": float(num_failed),
    }
