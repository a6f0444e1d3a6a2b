"""Orchestrator: from prompts to the batch of each optimizer step, at most so many policy versions ahead of training.

What is not here: how a group is made (group_maker.py), engines (generators/), tensors (micro_batches.py), threads
(feed.py).

The one idea: **how far generation may run ahead is a count of groups.** Batch j may be started once the engine holds
version j - max_async_level or a newer one, so at any moment the groups that may exist without having been trained on
are those of the batches from the next one up to version + max_async_level. Level 0 is the case where that is one batch
at most, and nothing of it is older than the policy that trains on it. One event loop; every wait has a deadline, and
says what it waits for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from surogate.config.parts_grpo import OrchestratorSpec
from surogate.errors import DataError, GeneratorError
from surogate.losses.advantages import load_advantage
from surogate.rl.environments.base import Environment, RewardError
from surogate.rl.generators.protocol import Generator, WeightUpdate
from surogate.rl.group_maker import GroupMaker
from surogate.rl.policy import UnusablePrompt
from surogate.rl.prompt_pool import PromptPool
from surogate.rl.rollout_checks import environment_failure
from surogate.rl.rollout_metrics import RolloutTally, batch_metrics
from surogate.rl.types import Example, Group, RolloutBatch

log = logging.getLogger(__name__)

STALL_SECONDS = 1800.0
"""Without a finished group for so long the run ends; more than a request to the engine may take."""

NOTICE_SECONDS = 60.0
"""After so long it is said what is waited for."""

STOP_SECONDS = 60.0
"""A group that was cancelled ends within this time."""

_MAX_DROPPED_BATCHES = 20
_MIN_DROPPED_GROUPS = 100
"""So many groups in a row, in batches and at least in all, that could not be trained on: the run would never end."""


@dataclass(frozen=True, slots=True)
class _Started:
    """A group under way.

    Attributes:
        number: counts groups in the order in which they were started.
        example: what it answers.
        version: of the policy when it was started.
    """

    number: int
    example: Example
    version: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """A group that waits to be trained on."""

    started: _Started
    group: Group

    @property
    def oldest_version(self) -> int:
        versions = (rollout.oldest_version for rollout in self.group.rollouts if rollout.num_sampled)
        return min(versions, default=self.started.version)


class Orchestrator:
    """Keeps the engine busy and hands out batches.

    Args:
        spec: sizes, sampling, what is left out.
        environments: what is asked, each with a name of its own.
        weights: how often each is drawn, relative to the others.
        generator: the engine; started by its owner.
        tokenizer: the model's.
        async_level: policy versions that generation may be ahead of training, 0 or more.
        stall_seconds: without progress for so long the run ends.

    Raises:
        DataError: an environment has no examples.
    """

    def __init__(
        self,
        spec: OrchestratorSpec,
        environments: Sequence[Environment],
        weights: Sequence[float],
        generator: Generator,
        tokenizer: Any,
        async_level: int,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.spec, self.async_level = spec, async_level
        self.environments = list(environments)
        self.generator, self.tokenizer = generator, tokenizer
        self._stall_seconds = stall_seconds
        self._weights = list(weights)
        self._tally = RolloutTally()
        self._maker = GroupMaker(spec, environments, generator, tokenizer, self._tally)
        self._advantages = load_advantage(spec.advantage)
        self.pool = self._new_pool()
        self._version = -1
        self._scores: asyncio.Task[list[float]] | None = None
        self._next_step = 0
        self._num_started = 0
        self._in_flight: dict[asyncio.Task[Group], _Started] = {}
        self._finished: list[_Finished] = []
        self._dropped_in_a_row = 0
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._is_closed = False

    @property
    def groups_per_step(self) -> int:
        """Groups in a batch."""
        return self.spec.batch_size // self.spec.rollouts_per_example

    @property
    def next_step(self) -> int:
        """Step of the batch that is made next."""
        return self._next_step

    def _new_pool(self) -> PromptPool:
        return PromptPool(self.environments, self._weights, self.spec.seed, self.spec.buffer)

    # ---- weights

    async def load_weights(self, update: WeightUpdate) -> None:
        """Hand new weights to the engine, and start what their version allows.

        Raises:
            GeneratorError: the engine refuses them.
        """
        self._next_step = max(self._next_step, update.version)
        self._cancel_stale()
        await self.generator.wake()
        await self.generator.load_weights(update)
        self._version = update.version
        if update.probe_ids:  # asked for before anything else is, and waited for by nobody until `scores`
            self._scores = asyncio.get_running_loop().create_task(self.generator.score(update.probe_ids))
        self._top_up()

    async def scores(self) -> list[float]:
        """Wait for the scores of the sequence that came with the newest weights.

        Raises:
            GeneratorError: the engine failed.
        """
        assert self._scores is not None, "no sequence came with the weights"
        return await self._scores

    def _cancel_stale(self) -> None:
        oldest = self._next_step - self._max_staleness()
        for task, started in self._in_flight.items():
            if started.version < oldest:
                task.cancel()
                self._tally.count("rollouts/too_old", self.spec.rollouts_per_example)

    def _max_staleness(self) -> int:
        """Return how many versions older than the policy that trains on it a token may be."""
        return self.spec.max_off_policy_steps if self.async_level else 0

    # ---- batches

    async def next_batch(self, step: int) -> RolloutBatch:
        """Return the batch of an optimizer step, with advantages.

        Args:
            step: updates behind the policy that trains on it; each is asked for once, in order.

        Raises:
            GeneratorError: the engine failed, or nothing was finished for too long.
            DataError: an environment failed, rewards fail again and again, or no group has any signal.
        """
        if self._version < max(0, step - self.async_level):
            raise GeneratorError(f"The batch of step {step} was asked for before the weights that it is sampled with.")
        self._next_step = step
        began = time.perf_counter()
        while (chosen := self._take()) is None:
            self._top_up()
            await self._wait_for_change()
        waited = time.perf_counter() - began
        for finished in chosen:
            rewards = [rollout.reward for rollout in finished.group.rollouts]
            self.pool.settle(finished.group.example, sum(rewards) / len(rewards))
        self._next_step = step + 1
        if self.async_level == 0:
            await self._give_up_the_rest()
            if self._scores is not None:
                await asyncio.wait([self._scores])
            await self.generator.sleep()
        else:
            self._top_up()
        groups = tuple(self._with_advantages(finished.group) for finished in chosen)
        metrics = {**batch_metrics(groups, step), **self.pool.metrics(), **self._tally.take()}
        return RolloutBatch(
            step=step,
            groups=groups,
            metrics={**metrics, "time/wait_for_rollouts": waited},
            ledger={"pool": self.pool.state(), "num_started": self._num_started},
        )

    def _take(self) -> list[_Finished] | None:
        """Take the groups of a batch, those started first; None where too few are finished."""
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise GeneratorError(f"The orchestrator was closed while step {self._next_step} waited for rollouts.")
        oldest = self._next_step - self._max_staleness()
        for finished in [finished for finished in self._finished if finished.oldest_version < oldest]:
            self._finished.remove(finished)
            self.pool.give_back(finished.group.example)
            self._tally.count("rollouts/too_old", len(finished.group.rollouts))
        if len(self._finished) < self.groups_per_step:
            return None
        self._finished.sort(key=lambda finished: finished.started.number)
        chosen, self._finished = self._finished[: self.groups_per_step], self._finished[self.groups_per_step :]
        return chosen

    async def _give_up_the_rest(self) -> None:
        """Give back what was started too much, since the next policy may not train on it."""
        await self._stop_tasks()
        for finished in self._finished:
            self.pool.give_back(finished.group.example)
        self._finished.clear()

    def _with_advantages(self, group: Group) -> Group:
        values = self._advantages(
            [rollout.reward for rollout in group.rollouts], [rollout.num_sampled for rollout in group.rollouts]
        )
        rollouts = [replace(r, advantage=float(value)) for r, value in zip(group.rollouts, values, strict=True)]
        return replace(group, rollouts=tuple(rollouts))

    async def _wait_for_change(self) -> None:
        deadline = time.monotonic() + self._stall_seconds
        while not self._changed.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                raise GeneratorError(f"No rollout was finished in {self._stall_seconds:g} s: {self._state()}.")
            try:
                await asyncio.wait_for(self._changed.wait(), min(left, NOTICE_SECONDS))
            except TimeoutError:
                log.info("Step %d waits for rollouts: %s.", self._next_step, self._state())
        self._changed.clear()

    def _state(self) -> str:
        slowest = min(self._in_flight.values(), key=lambda started: started.number, default=None)
        return (
            f"{len(self._finished)} of {self.groups_per_step} groups are finished and {len(self._in_flight)} under way "
            f"({f'the first is {slowest.example.id}, ' if slowest else ''}the engine holds version {self._version})"
        )

    # ---- groups

    def _top_up(self) -> None:
        """Start as many groups as may exist beside those that do."""
        last = min(self._version + self.async_level, self.spec.max_steps - 1)  # batch that may be started
        ahead = last - self._next_step  # whole batches after the next one
        if self._is_closed or self._failure is not None or self._version < 0 or ahead < 0:
            return
        wanted = ahead * self.groups_per_step + math.ceil(self.groups_per_step * self.spec.oversampling_factor)
        for _ in range(wanted - len(self._in_flight) - len(self._finished)):
            started = _Started(self._num_started, self.pool.draw(), self._version)
            self._num_started += 1
            making = self._maker.make(started.example, started.number, self._next_step)
            task = asyncio.get_running_loop().create_task(making)
            self._in_flight[task] = started
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[Group]) -> None:
        """Account for a group that ended, in whatever way, and start another one where that is due."""
        self._changed.set()
        try:
            self._account_for(task, self._in_flight.pop(task))
            self._top_up()
        finally:
            # The event loop only writes down what is raised here, and next_batch would wait for what never comes.
            self._failure = self._failure or sys.exc_info()[1]

    def _account_for(self, task: asyncio.Task[Group], started: _Started) -> None:
        example = started.example
        if task.cancelled():
            self.pool.give_back(example)
            if not task.cancelling():  # nobody here asked for it
                self._failure = self._failure or DataError(f"{example.env} cancelled itself on {example.id}.")
        elif (error := task.exception()) is None:
            self._accept(_Finished(started, task.result()))
        elif isinstance(error, RewardError | UnusablePrompt):
            log.warning("%s is left out: %s.", example.id, str(error).rstrip("."))
            self._drop(example, "rewards/failed" if isinstance(error, RewardError) else "prompts/unusable", str(error))
        else:
            self._failure = self._failure or environment_failure(error, example)

    def _accept(self, finished: _Finished) -> None:
        group = finished.group
        if self.spec.buffer.online_difficulty_filtering and not group.has_signal:
            reason = f"all rewards of {group.example.id} are {group.rollouts[0].reward:g}"
            self._drop(group.example, "groups/without_signal_dropped", reason, group.rollouts[0].reward)
            return
        self._dropped_in_a_row = 0
        self._finished.append(finished)

    def _drop(self, example: Example, kind: str, reason: str, mean_reward: float | None = None) -> None:
        """Leave an example out; end the run where nothing else comes any more."""
        self.pool.settle(example, mean_reward)
        self._tally.count(kind, 1)
        self._dropped_in_a_row += 1
        limit = max(_MIN_DROPPED_GROUPS, _MAX_DROPPED_BATCHES * self.groups_per_step)
        if self._dropped_in_a_row >= limit and self._failure is None:
            self._failure = DataError(
                f"The last {limit} groups could not be trained on. The newest one: {reason.rstrip('.')}."
            )

    # ---- beginning and end

    async def reset(self, ledger: dict[str, Any] | None) -> None:
        """Forget what is under way and go on from the ledger of a batch; None = from the start of the run.

        Nothing is started before weights arrive.

        Raises:
            CheckpointError: it belongs to other environments.
        """
        self._version = -1
        self._forget_scores()
        await self._stop_tasks()
        self._finished.clear()
        self._tally.take()
        self._failure, self._dropped_in_a_row = None, 0
        self._next_step = self._num_started = 0
        self.pool = self._new_pool()
        if ledger is not None:
            self.pool.restore(ledger["pool"])
            self._num_started = ledger["num_started"]

    def _forget_scores(self) -> None:
        if self._scores is not None:
            self._scores.cancel()
            self._scores = None

    async def _stop_tasks(self) -> None:
        """Cancel what is under way and wait for its end.

        Raises:
            GeneratorError: an environment does not let itself be cancelled.
        """
        tasks = dict(self._in_flight)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, stuck = await asyncio.wait(tasks, timeout=STOP_SECONDS)
        if stuck:
            names = ", ".join(sorted(tasks[task].example.id for task in stuck))
            raise GeneratorError(f"{names} went on for {STOP_SECONDS:g} s after being cancelled.")

    async def close(self) -> None:
        """Stop what is under way, the environments and the engine; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._changed.set()
        self._forget_scores()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.generator.close)
            for environment in self.environments:
                stack.push_async_callback(environment.close)
            await self._stop_tasks()
