"""A feed over a shared folder: the trainer's calls as files, and an orchestrator elsewhere that answers them.

What is not here: the files (shared_folder.py), and what is answered (orchestrator.py). The one idea: **the trainer
knows all that matters.** Its checkpoint holds the orchestrator's position and its weights are on disk, so an
orchestrator that was killed starts empty, and the trainer tells it where the run stands and asks again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from surogate import errors
from surogate.errors import GeneratorError
from surogate.rl.batch_json import (
    batch_from_json,
    batch_to_json,
    evaluation_from_json,
    evaluation_to_json,
    group_from_json,
    group_to_json,
)
from surogate.rl.evaluation import EvalResult
from surogate.rl.feed import RolloutService
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.shared_folder import STABLE, Pulse, SharedFolder, answer_to, read_json, write_json, write_text
from surogate.rl.types import Group, RolloutBatch

log = logging.getLogger(__name__)

SILENCE_SECONDS = 120.0
"""An orchestrator that gave no sign for so long is reported missing."""

_BEAT_SECONDS = 2.0
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 5.0
_NOTICE_SECONDS = 60.0


class _Replaced(Exception):
    """Another orchestrator answers now."""


class FolderFeed:
    """The trainer's side; a Feed.

    Args:
        path: the transport's folder, which the orchestrator sees too.
        timeout: seconds to wait for an orchestrator, and for an answer of one that is alive.
    """

    def __init__(self, path: Path, timeout: float = 3600.0) -> None:
        self._folder = SharedFolder(path)
        self._pulse = Pulse(self._folder.orchestrator)
        self._timeout = timeout
        self._session = uuid.uuid4().hex
        self._number = 0
        self._orchestrator: str | None = None
        self._ledger: dict[str, Any] | None = None
        self._update: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {}
        """What the orchestrator says of itself; after start."""

    def start(self) -> None:
        """Wait for an orchestrator and tell it where the run stands."""
        self._folder.forget_other_calls(self._session)
        self._greet()

    def restore(self, ledger: dict[str, Any]) -> None:
        """Go on from the ledger of a batch; before start."""
        self._ledger = ledger

    def publish(self, update: WeightUpdate) -> None:
        """Write the weights where the orchestrator finds them, and wait until the engine has them."""
        folder = self._folder.publish(update, self._session)
        self._update = {
            "version": update.version,
            "folder": str(folder.relative_to(self._folder.path)),
            "is_adapter": update.adapter_dir is not None,
            "norm_noise_sigma": update.norm_noise_sigma,
            "probe_ids": list(update.probe_ids),
        }
        self._call("publish", **self._update)
        self._folder.forget_weights(self._session, update.version)

    def next_batch(self, step: int) -> RolloutBatch:
        """Wait for the batch of a step."""
        batch = batch_from_json(self._call("next_batch", step=step))
        self._ledger = batch.ledger
        return batch

    def probe(self, num_groups: int) -> list[Group]:
        """Sample as training does; see Feed."""
        return [group_from_json(value) for value in self._call("probe", num_groups=num_groups)]

    def scores(self) -> list[float]:
        """Return the engine's scores of the sequence that came with the newest weights."""
        scores: list[float] = self._call("scores")
        return scores

    def evaluate(self, version: int) -> EvalResult | None:
        """Evaluate where it is due."""
        value = self._call("evaluate", version=version)
        return None if value is None else evaluation_from_json(value)

    def close(self, *, is_over: bool = True) -> None:
        """Tell the orchestrator that the run is over, or leave it to the trainer that will continue the run."""
        if self._orchestrator is None:
            return
        self._orchestrator = None
        if not is_over:
            log.info("The orchestrator stays for the trainer that continues the run.")
            return
        self._number += 1
        try:
            write_json(self._folder.call(self._session, self._number), {"method": "goodbye", "arguments": {}})
        except GeneratorError as error:
            log.warning("The orchestrator is not told that the run is over. %s", error)

    # ---- calls

    def _call(self, method: str, **arguments: Any) -> Any:
        """Ask, and ask again where the orchestrator was replaced by another one."""
        if self._orchestrator is None:
            raise GeneratorError("The feed of rollouts is closed.")
        while True:
            try:
                return self._ask(method, arguments)
            except _Replaced:
                log.warning("The orchestrator was started anew; it is told where the run stands.")
                self._greet()

    def _greet(self) -> None:
        """Tell whichever orchestrator answers first where the run stands, and deal with that one from now on."""
        while True:
            self._orchestrator = None
            answer = self._exchange("hello", {"ledger": self._ledger})
            self.facts, self._orchestrator = self._result("hello", answer), answer["by"]
            try:
                if self._update is not None:
                    self._ask("publish", self._update)
                return
            except _Replaced:
                continue

    def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        return self._result(method, self._exchange(method, arguments))

    def _result(self, method: str, answer: dict[str, Any]) -> Any:
        if "problem" in answer:
            kind: type[errors.SurogateError] = getattr(errors, answer["kind"])
            raise kind(f"{answer['problem']} (told by the orchestrator, asked for {method})")
        return answer["result"]

    def _exchange(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Write a call, wait for its answer and remove both."""
        self._number += 1
        call = self._folder.call(self._session, self._number)
        answer_path = answer_to(call)
        write_json(call, {"method": method, "arguments": arguments})
        started = noticed = time.monotonic()
        try:
            while (answer := read_json(answer_path)) is None:
                time.sleep(_POLL_SECONDS)
                now = time.monotonic()
                self._check(method, call, now - started)
                if now - noticed > _NOTICE_SECONDS:
                    noticed = now
                    log.info("%s", self._what_is_missing(method))
            return answer
        finally:
            call.unlink(missing_ok=True)
            answer_path.unlink(missing_ok=True)

    def _check(self, method: str, call: Path, waited: float) -> None:
        """Raise where waiting for an answer is of no use."""
        known = self._pulse.look()
        if self._orchestrator is not None and known not in (None, self._orchestrator):
            raise _Replaced
        if not call.exists():
            raise GeneratorError(f"Another trainer has taken over {self._folder.path}. Let only one of them run.")
        if waited > self._timeout:
            raise GeneratorError(f"Given up after {self._timeout:g} s. {self._what_is_missing(method)}")

    def _what_is_missing(self, method: str) -> str:
        silence, folder = self._pulse.silence, self._folder.path
        start_it = f"Start one at {folder} (`surogate grpo-orch orch.yaml`, with the same output_dir)."
        if self._orchestrator is None and not self._pulse.has_changed:
            return f"Waiting for an orchestrator. {start_it}"
        if silence > SILENCE_SECONDS:
            return f"No sign of the orchestrator for {silence:.0f} s, asked for {method}. If it is gone: {start_it}"
        return f"Waiting for the orchestrator, which is alive, to answer {method}."


Handler = Callable[..., Awaitable[Any]]


class FolderServer:
    """The orchestrator's side.

    Args:
        path: the transport's folder.
        handlers: method -> coroutine function that answers it with plain values.
        on_hello: called with the ledger that a trainer starts from; returns the facts that it is told.
    """

    def __init__(self, path: Path, handlers: dict[str, Handler], on_hello: Handler) -> None:
        self._folder = SharedFolder(path)
        self._handlers = {**handlers, "hello": on_hello}
        self._id = uuid.uuid4().hex
        self._session: str | None = None
        self._seen: set[Path] = set()
        self._answers: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer until the trainer says goodbye.

        Raises:
            GeneratorError: another orchestrator has taken over the folder.
        """
        beating = asyncio.create_task(self._beat())
        try:
            while not beating.done():
                paths = set(self._folder.pending_calls())
                self._seen &= paths
                for path in sorted(paths - self._seen):
                    if (call := read_json(path)) is not None:
                        self._seen.add(path)
                        if await self._receive(path, call):
                            return
                await asyncio.sleep(_POLL_SECONDS)
            beating.result()
        finally:
            beating.cancel()
            await asyncio.gather(beating, self._stop_answering(), return_exceptions=True)

    async def _receive(self, path: Path, call: dict[str, Any]) -> bool:
        """Take a call; true where it was the last one."""
        session, method, arguments = path.parent.name, call["method"], call["arguments"]
        if method == "hello":
            log.info("A trainer begins; it stands %s.", "at the start" if arguments["ledger"] is None else "in a run")
            await self._stop_answering()  # what an earlier trainer asked changes nothing any more
            self._session = session
            await self._answer(path, method, arguments)
        elif session != self._session:
            pass  # of a trainer that is gone, or that will greet this orchestrator first
        elif method == "goodbye":
            path.unlink(missing_ok=True)
            return True
        else:
            if "folder" in arguments:  # the trainer may see the shared folder under another path
                arguments["folder"] = str(self._folder.path / arguments["folder"])
            task = asyncio.create_task(self._answer(path, method, arguments))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        return False

    async def _answer(self, call: Path, method: str, arguments: dict[str, Any]) -> None:
        (text,) = await asyncio.gather(self._encoded(method, arguments), return_exceptions=True)
        if isinstance(text, BaseException):
            text = self._problem(text)
        while True:
            try:
                write_text(answer_to(call), text)
                return
            except GeneratorError as error:
                log.warning("%s It is tried again in %g s.", error, _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _encoded(self, method: str, arguments: dict[str, Any]) -> str:
        return json.dumps({"by": self._id, "result": await self._handlers[method](**arguments)})

    def _problem(self, error: BaseException) -> str:
        """Return an error as the trainer raises it again; one that is not meant for users is also written down here."""
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
        if not kinds:
            log.error("A call failed.", exc_info=error)
        problem = str(error) if kinds else f"{type(error).__name__}: {error}."
        return json.dumps({"by": self._id, "problem": problem, "kind": kinds[0] if kinds else "GeneratorError"})

    async def _stop_answering(self) -> None:
        tasks = list(self._answers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        """Give signs of life, until an orchestrator does that began later.

        Each takes the turn after the one that it finds; of two that begin at the same moment the larger id stays. Whose
        file stands there says nothing of who came last: two may read it and then write it one after the other.
        """
        count, turn = 0, 0
        while True:
            known = read_json(self._folder.orchestrator) or {}
            found = (known.get("turn", 0), known.get("id", ""))
            if not turn:
                turn = found[0] + 1
            elif found > (turn, self._id):
                raise GeneratorError(f"Another orchestrator has taken over {self._folder.path}; this one ends.")
            beat = {"id": self._id, "turn": turn, "count": count, "pid": os.getpid()}
            try:
                write_json(self._folder.orchestrator, beat)
            except GeneratorError as error:
                log.warning("%s The trainer sees no sign of life meanwhile.", error)
            count += 1
            await asyncio.sleep(_BEAT_SECONDS)


def update_of(version: int, folder: str, is_adapter: bool, norm_noise_sigma: float) -> WeightUpdate:
    """Return the weights that a trainer published.

    Raises:
        GeneratorError: the folder is not complete.
    """
    path = Path(folder)
    if not (path / STABLE).exists():
        raise GeneratorError(f"{path} is not complete: it holds no {STABLE}.")
    return WeightUpdate(
        version=version,
        adapter_dir=path if is_adapter else None,
        weights_dir=None if is_adapter else path,
        norm_noise_sigma=norm_noise_sigma,
    )


def service_handlers(service: RolloutService) -> dict[str, Handler]:
    """Return the answers of a service, as plain values."""

    async def publish(
        version: int, folder: str, is_adapter: bool, norm_noise_sigma: float, probe_ids: list[int]
    ) -> None:
        update = update_of(version, folder, is_adapter, norm_noise_sigma)
        await service.publish(replace(update, probe_ids=tuple(probe_ids)))

    async def next_batch(step: int) -> Any:
        return batch_to_json(await service.next_batch(step))

    async def probe(num_groups: int) -> Any:
        return [group_to_json(group) for group in await service.probe(num_groups)]

    async def scores() -> Any:
        return await service.scores()

    async def evaluate(version: int) -> Any:
        result = await service.evaluate(version)
        return None if result is None else evaluation_to_json(result)

    handlers: list[Handler] = [publish, next_batch, probe, scores, evaluate]
    return {handler.__name__: handler for handler in handlers}
