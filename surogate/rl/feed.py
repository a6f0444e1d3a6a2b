"""Feed: where a trainer gets its batches and leaves its weights.

What is not here: what a batch is made of (orchestrator.py), and feeds over a folder (transport.py). The one idea: the
trainer is synchronous and the orchestrator an event loop, so a LocalFeed runs the loop in a thread of its own and hands
calls over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, wait
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from surogate.errors import GeneratorError
from surogate.rl.environments.base import RewardError
from surogate.rl.evaluation import EvalResult, Evaluation
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.group_maker import GroupMaker
from surogate.rl.orchestrator import Orchestrator
from surogate.rl.policy import UnusablePrompt
from surogate.rl.rollout_checks import checked_example
from surogate.rl.rollout_metrics import RolloutTally
from surogate.rl.types import Group, RolloutBatch

log = logging.getLogger(__name__)

T = TypeVar("T")

_PROBE_SIZE = 2
"""Rollouts of a group of the probe."""

_PROBE_TRIES = 8
"""Examples that are tried for a group of the probe, where their rewards fail."""

_ALIVE_SECONDS = 1.0
"""So often it is looked whether the thread is there at all."""

_CLOSE_SECONDS = 120.0
"""The engine is given so long to end."""


class Feed(Protocol):
    """What a trainer's rank may ask for; every call blocks."""

    def start(self) -> None:
        """Bring up what generates."""
        ...

    def publish(self, update: WeightUpdate) -> None:
        """Hand over the policy's weights; when it returns, they may change again."""
        ...

    def next_batch(self, step: int) -> RolloutBatch:
        """Return the batch of an optimizer step."""
        ...

    def probe(self, num_groups: int) -> list[Group]:
        """Sample as training does, with the weights that were published last."""
        ...

    def scores(self) -> list[float]:
        """Return the engine's scores of the sequence that came with the weights published last."""
        ...

    def evaluate(self, version: int) -> EvalResult | None:
        """Evaluate the weights that were published last; None where no evaluation is due."""
        ...

    def restore(self, ledger: dict[str, Any]) -> None:
        """Go on from the ledger of a batch; before start."""
        ...

    def close(self, *, is_over: bool = True) -> None:
        """End everything that was started; may be called twice.

        Args:
            is_over: nobody will continue the run. What somebody else started may stay for who does.
        """
        ...


class RolloutService:
    """An orchestrator and an evaluation over one engine, as coroutines; where they run is up to who owns it.

    Args:
        orchestrator: not yet started.
        evaluation: what is asked between steps.
    """

    def __init__(self, orchestrator: Orchestrator, evaluation: Evaluation) -> None:
        self.orchestrator, self._evaluation = orchestrator, evaluation

    async def start(self) -> None:
        """Start the engine."""
        await self.orchestrator.generator.start()

    async def publish(self, update: WeightUpdate) -> None:
        """Hand weights to the engine, between two tokens of what is under way."""
        await self.orchestrator.load_weights(update)

    async def next_batch(self, step: int) -> RolloutBatch:
        """Wait for the batch of a step."""
        return await self.orchestrator.next_batch(step)

    async def probe(self, num_groups: int) -> list[Group]:
        """Sample as training does; see Feed.

        Raises:
            RewardError, UnusablePrompt: of too many examples in a row.
            DataError: an environment is broken.
        """
        orchestrator = self.orchestrator
        spec = replace(orchestrator.spec, rollouts_per_example=_PROBE_SIZE, filters=[])
        environments = orchestrator.environments
        maker = GroupMaker(spec, environments, orchestrator.generator, orchestrator.tokenizer, RolloutTally())
        groups: list[Group] = []
        reasons: dict[str, list[str]] = {}
        number = num_failed = 0
        while len(groups) < num_groups:
            environment = environments[number % len(environments)]
            example = checked_example(environment, number // len(environments) % len(environment))
            try:
                groups.append(await maker.make(example, number, orchestrator.next_step))
            except (RewardError, UnusablePrompt) as error:
                num_failed += 1
                reasons.setdefault(str(error), []).append(example.id)
                if len(reasons[str(error)]) == 1:
                    log.warning("The probe leaves out %s: %s", example.id, error)
                if num_failed == _PROBE_TRIES * num_groups:
                    _tell_repeated(reasons)
                    raise
            number += 1
        _tell_repeated(reasons)
        return groups

    async def scores(self) -> list[float]:
        """Wait for the scores of the sequence that came with the newest weights."""
        return await self.orchestrator.scores()

    async def evaluate(self, version: int) -> EvalResult | None:
        """Evaluate the published weights where it is due."""
        if not self._evaluation.is_due(version, self.orchestrator.spec.max_steps):
            return None
        return await self._evaluation.run(version)

    async def reset(self, ledger: dict[str, Any] | None) -> None:
        """Forget what is under way and go on from the ledger of a batch; None = from the start of the run."""
        await self.orchestrator.reset(ledger)

    async def close(self) -> None:
        """Stop the tasks, the environments and the engine."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.orchestrator.close)
            for environment in self._evaluation.environments:
                stack.push_async_callback(environment.close)


def _tell_repeated(reasons: dict[str, list[str]]) -> None:
    """Say how often the probe met a reason that was told only once."""
    for first, *others in reasons.values():
        if others:
            log.warning("The probe left out %d more prompts for the reason told of %s.", len(others), first)


class LocalFeed:
    """A service in a thread of this process; a Feed.

    Args:
        service: not yet started.
    """

    def __init__(self, service: RolloutService) -> None:
        self._service = service
        self._ledger: dict[str, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._is_up = threading.Event()
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="orchestrator", daemon=True)

    def start(self) -> None:
        """Start the thread and the engine."""
        self._thread.start()
        self._is_up.wait()
        self._call(self._service.reset(self._ledger))
        self._call(self._service.start())

    def publish(self, update: WeightUpdate) -> None:
        """Hand weights to the engine."""
        self._call(self._service.publish(update))

    def next_batch(self, step: int) -> RolloutBatch:
        """Wait for the batch of a step."""
        return self._call(self._service.next_batch(step))

    def probe(self, num_groups: int) -> list[Group]:
        """Sample as training does; see Feed."""
        return self._call(self._service.probe(num_groups))

    def scores(self) -> list[float]:
        """Return the engine's scores of the sequence that came with the newest weights."""
        return self._call(self._service.scores())

    def evaluate(self, version: int) -> EvalResult | None:
        """Evaluate where it is due."""
        return self._call(self._service.evaluate(version))

    def restore(self, ledger: dict[str, Any]) -> None:
        """Go on from a ledger; before start."""
        self._ledger = ledger

    def close(self, *, is_over: bool = True) -> None:
        """Stop the tasks, the engine and the thread, in any case."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("The engine did not end within %.0f s.", _CLOSE_SECONDS)
        elif isinstance(self._end, Exception):
            raise self._end

    # ---- the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._until_closed())
        finally:
            self._end = sys.exc_info()[1] or self._end
            self._is_up.set()

    async def _until_closed(self) -> None:
        """Keep the event loop, and close the service in it, however it ends; a SystemExit in a reward ends it too."""
        self._loop = asyncio.get_running_loop()
        self._is_up.set()
        try:
            await self._stop.wait()
        finally:
            (self._end,) = await asyncio.gather(self._service.close(), return_exceptions=True)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread's loop and wait for it, open to Ctrl-C, which cancels it.

        Raises:
            GeneratorError: the thread is not there, or ends meanwhile.
        """
        try:
            if self._loop is None:
                raise RuntimeError("not started, or closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # also where the loop has ended by itself
            coroutine.close()
            raise self._over() from self._end
        try:
            while not wait([future], timeout=_ALIVE_SECONDS).done:
                if not self._thread.is_alive():
                    coroutine.close()  # it may never have begun
                    raise self._over() from self._end
            return future.result()
        except CancelledError:
            raise self._over() from self._end
        finally:
            future.cancel()

    def _over(self) -> GeneratorError:
        if self._thread.is_alive():
            self._thread.join(timeout=_CLOSE_SECONDS)
        why = "" if self._end is None else f", since its thread ended with {self._end!r}"
        return GeneratorError(f"The feed of rollouts is closed{why}.")
