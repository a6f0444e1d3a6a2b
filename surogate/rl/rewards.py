"""RewardWorker: a reward function in processes of its own, which may be slow, raise, hang or die.

What is not here: what runs in the process (reward_worker.py). The one idea: a reward is somebody else's code, so it can
be killed without the run noticing more than one lost answer; the next call starts a fresh process.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from surogate.errors import DataError
from surogate.rl.child_process import ChildProcess
from surogate.rl.environments.base import RewardError, checked_rewards
from surogate.rl.isolation.scratch import ScratchFolder
from surogate.rl.sandbox import require_isolation

_START_SECONDS = 120.0
"""Longest time to import a reward; a library on a cold disk takes its time."""
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Environment variables of a process that is locked down; others may hold secrets."""

_MAX_ANSWER = 16 << 20
"""Bytes of an answer; those of a thousand rewards are 20 thousand."""

REPEATABLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
"""Environment variables of such a process: threads would stay outside the lockdown, and sets keep their order."""


MAX_PROCESSES = 16
"""Of a reward of our own, which computes and so gains nothing from more processes than CPUs."""


class RewardLost(RewardError):
    """A reward that gave no answer: it hung, its process ended, or said something else."""


class RewardWorker:
    """Calls a reward function `f(completions, **columns) -> list[float]`.

    Each column is a list with a value for each completion. All calls belong to one event loop.

    Args:
        target: `path/file.py:function` or `package.module:function`.
        name: of the environment, in messages.
        timeout_seconds: longest time of a call; a process that takes longer is killed.
        num_processes: calls at a time.
        isolated: lock the process down before it sees a completion: no network, no files but Python's.

    Raises:
        HardwareError: `isolated`, and this machine cannot.
    """

    def __init__(
        self,
        target: str,
        name: str,
        *,
        timeout_seconds: float = 60.0,
        num_processes: int = 1,
        isolated: bool = False,
    ) -> None:
        if isolated:
            require_isolation()
        self._target, self._name, self._timeout = target, name, timeout_seconds
        self._isolated = isolated
        self._folder: ScratchFolder | None = None
        self._slots = asyncio.Semaphore(num_processes)
        self._idle: list[ChildProcess] = []

    async def score(self, completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[float]:
        """Return the reward of each completion.

        Raises:
            RewardLost: no answer in time, or none at all.
            RewardError: the reward raised (with its type, message and line), or did not return a finite number each.
            DataError: a column holds what cannot be handed to another process.
        """
        try:
            asked = {
                "token": (token := secrets.token_hex(8)),
                "completions": list(completions),
                "columns": dict(columns),
            }
            request = json.dumps(asked).encode() + b"\n"
        except TypeError as error:
            raise DataError(
                f"{self._name}: a column cannot be handed to the reward: {error}. Store text, numbers, lists of them."
            ) from error
        async with self._slots:
            answer = await self._ask(self._idle.pop() if self._idle else await self._start(), request, token)
        if "error" in answer:
            raise RewardError(f"{self._name}: the reward {self._target} raised {answer['error']}")
        return checked_rewards(answer["rewards"], completions, self._name)

    async def score_each(self, completions: Sequence[str], columns: Mapping[str, Any]) -> list[float]:
        """Return the reward of each completion, scored in a call of its own; 0 for one that gets no answer.

        Args:
            completions: of one example.
            columns: a value each, the same for all.

        Raises:
            RewardError, DataError: as `score`.
        """

        async def one(completion: str) -> float:
            try:
                return (await self.score([completion], {name: [value] for name, value in columns.items()}))[0]
            except RewardLost:
                return 0.0

        # All are waited for, so that none goes on behind the back of whoever hears of another's failure.
        scored = await asyncio.gather(*map(one, completions), return_exceptions=True)
        for result in scored:
            if isinstance(result, BaseException):
                raise result
        return [reward for reward in scored if isinstance(reward, float)]

    async def close(self) -> None:
        """End all processes; a later call starts new ones."""
        while self._idle:
            await self._idle.pop().end()
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove)
            self._folder = None

    async def _ask(self, process: ChildProcess, request: bytes, token: str) -> dict[str, Any]:
        answered = False
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._exchange(process, request, token)
                answered = True
        except TimeoutError:
            raise RewardLost(
                f"{self._name}: the reward {self._target} gave no answer within {self._timeout:g} s and was ended."
            ) from None
        finally:
            if answered:
                self._idle.append(process)
            else:
                await process.end()
        return answer

    async def _start(self) -> ChildProcess:
        folder = ""
        environment = dict(os.environ)
        if self._isolated:
            self._folder = self._folder or ScratchFolder("surogate-reward-")
            folder = self._folder.name
            environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
            environment |= REPEATABLE
        # -P keeps the current folder's modules from standing in for Python's.
        module = ["-P", "-m", "surogate.rl.reward_worker"]
        command = [sys.executable, *module, str(os.getpid()), self._target, folder]
        process = ChildProcess(command, environment, stdin=subprocess.PIPE)
        ready = False
        try:
            async with asyncio.timeout(_START_SECONDS):
                error = (await self._exchange(process, b""))["error"]
            if error is not None:
                raise RewardError(f"{self._name}: the reward {self._target} cannot be loaded: {error}")
            ready = True
        except TimeoutError:
            raise RewardError(
                f"{self._name}: loading the reward {self._target} took more than {_START_SECONDS:g} s."
            ) from None
        except RewardLost as error:  # it is not an answer that is lost, so nobody may take it for a wrong one
            raise RewardError(f"{self._name}: the reward {self._target} did not come up: {error}") from error
        finally:
            if not ready:
                await process.end()
        return process

    async def _exchange(self, process: ChildProcess, request: bytes, token: str | None = None) -> dict[str, Any]:
        line = b""
        with suppress(BrokenPipeError):
            await process.write(request)
            line = await process.read_line(_MAX_ANSWER)
        what = f"{self._name}: the process of the reward {self._target}"
        if len(line) > _MAX_ANSWER:
            raise RewardLost(f"{what} answered with more than {_MAX_ANSWER >> 20} MiB.")
        if not line.endswith(b"\n"):
            raise RewardLost(f"{what} ended with exit code {await process.wait()}.")
        # What it scores may run in it and speak in its place; what was said too much must not answer the next request.
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
        if not isinstance(answer, dict) or not answer.keys() & {"error", "rewards"} or answer.get("token") != token:
            raise RewardLost(f"{what} said something that is no answer.")
        return answer
