"""InProcessVllm: vLLM in the trainer's process, as a Generator. The default on one device.

One thread of its own drives the engine (vllm_thread.py, vllm_session.py) and answers through futures. So coroutines
that generate at the same time share batches, weights are exchanged between two steps, and the event loop never waits
for a step. No child process, no port: nothing of the engine can outlive the trainer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.checks import require_vllm
from surogate.rl.generators.notices import Notices
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_arguments import (
    ModelShape,
    Seeds,
    check_request,
    context_len,
    sampling_arguments,
    scoring_arguments,
)
from surogate.rl.generators.vllm_session import VllmSession
from surogate.rl.generators.vllm_thread import EngineThread
from surogate.rl.types import Completion


class InProcessVllm:
    """A Generator whose engine lives in this process.

    The engine is built by `start`, not here: a process group of the trainer has to exist before it. It serves one
    trainer process.

    Args:
        spec: of infer.yaml.
        model_dir: folder of the model, as the trainer loads it.
        seed: of the sampling where `generate` is not given one.
        timeout: seconds that an answer may take.
        start_timeout: seconds that the start may take.
    """

    def __init__(
        self,
        spec: InferenceSpec,
        model_dir: Path,
        *,
        seed: int = 0,
        timeout: float = 600.0,
        start_timeout: float = 300.0,
    ) -> None:
        self._max_model_len = context_len(spec, ModelShape.read(model_dir))
        self._seed = seed
        self._seeds = Seeds(seed)
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._thread = EngineThread(lambda: VllmSession(spec, model_dir))
        self._notices = Notices("vLLM")

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self._max_model_len

    async def start(self) -> None:
        """Build the engine, in its thread; at once where it runs already."""
        require_vllm()
        self._thread.start()
        await self._answers([self._thread.ready], "start its engine", self._start_timeout)

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
        """Sample n completions; see the protocol."""
        check_request(prompt_ids, sampling.max_tokens, self._max_model_len)
        arguments = sampling_arguments(sampling, stop)
        requests = [{**arguments, "seed": s} for s in self._seeds.draw(n, seed)]
        return await self._request(prompt_ids, requests, f"sample {n} completions of {len(prompt_ids)} tokens")

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Score a sequence; see the protocol."""
        check_request(token_ids, 0, self._max_model_len)
        (logprobs,) = await self._request(token_ids, [scoring_arguments()], f"score {len(token_ids)} tokens")
        return logprobs

    async def load_weights(self, update: WeightUpdate) -> None:
        """Take up new weights once no sequence is being scored; running completions go on with them."""
        noise_seed = self._seed * 1_000_003 + update.version
        await self._call(lambda session: session.load(update, noise_seed), f"load version {update.version}")

    async def sleep(self) -> None:
        """Give the device's memory back; nothing on a CPU."""
        await self._call(VllmSession.sleep, "go to sleep")

    async def wake(self) -> None:
        """Take the memory again."""
        await self._call(VllmSession.wake, "wake up")

    async def close(self) -> None:
        """End the engine; may be called twice, and before `start`."""
        self._thread.close()
        if self._thread.is_started:
            await self._answers([self._thread.ended], "end its engine", self._timeout)

    async def _call(self, function: Callable[[VllmSession], None], what: str) -> None:
        await self._answers([self._thread.call(function)], what, self._timeout)

    async def _request(self, prompt_ids: Sequence[int], requests: Sequence[Mapping[str, Any]], what: str) -> list[Any]:
        tickets = [self._thread.request(prompt_ids, arguments) for arguments in requests]
        try:
            return await self._answers([ticket.answer for ticket in tickets], what, self._timeout)
        finally:
            self._thread.abort([ticket.id for ticket in tickets if not ticket.answer.done()])

    async def _answers(self, futures: Sequence[Future[Any]], what: str, seconds: float) -> list[Any]:
        """Wait for all of them, or for the first that fails."""
        waiting = [asyncio.wrap_future(future) for future in futures]
        with self._notices.waiting(what):
            done, late = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for future in late:
            future.cancel()
        errors = [error for future in done if (error := future.exception()) is not None]
        if errors:
            raise GeneratorError(f"vLLM could not {what}: {errors[0]}") from errors[0]
        if late:
            raise GeneratorError(f"vLLM had {seconds:g} s to {what}, and is not done")
        return [future.result() for future in waiting]
