"""FakeGenerator: a Generator without a model, for unit tests of what is built around one. Never used in a run.

The one idea: it keeps the protocol's promises (versions, deadlines, errors) and does what a test tells it beside them.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.types import Completion

Script = Callable[[list[int], int], list[list[int]]]
"""(prompt ids, n) -> token ids of n completions."""


@dataclass(kw_only=True)
class FakeGenerator:
    """A generator that samples uniformly, or what a script says.

    Attributes:
        script: what to answer; None draws tokens uniformly, up to max_tokens.
        vocab_size: of the uniform draws; log-probabilities are -log of it there, and -1 for a script.
        max_model_len: most tokens of a prompt and its completion.
        seconds: that a completion takes; weights loaded meanwhile sample its second half.
        failures: errors of the next calls of `generate`, one a call; None lets a call through.
        eos_id: ends a drawn completion.
        version: of the current weights.
        loads: every update, in order.
        prompts: every prompt that was asked, in order.
        num_running: completions on their way.
        is_asleep, is_started, is_closed: what was called.
    """

    script: Script | None = None
    vocab_size: int = 16
    max_model_len: int = 1024
    seconds: float = 0.0
    failures: deque[Exception | None] = field(default_factory=deque)
    eos_id: int = 0
    seed: int = 0
    version: int = 0
    loads: list[WeightUpdate] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    num_running: int = 0
    is_asleep: bool = False
    is_started: bool = False
    is_closed: bool = False

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    async def start(self) -> None:
        """Start."""
        self.is_started = True

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
        """Answer with n completions."""
        self._check()
        if len(prompt_ids) + sampling.max_tokens > self.max_model_len:
            raise GeneratorError(f"{len(prompt_ids)} + {sampling.max_tokens} tokens exceed {self.max_model_len}")
        self.prompts.append(list(prompt_ids))
        if self.failures and (failure := self.failures.popleft()) is not None:
            raise failure
        rng = self._rng if seed is None else random.Random(seed)
        answers = self._draw(rng, n, sampling) if self.script is None else self.script(list(prompt_ids), n)
        first = self.version
        self.num_running += n
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.num_running -= n
        self._check()
        return [self._completion(ids, sampling, first) for ids in answers]

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of a uniform draw for each token but the first."""
        self._check()
        return [self._logprob] * (len(token_ids) - 1)

    async def load_weights(self, update: WeightUpdate) -> None:
        """Take note of an update."""
        self._check()
        self.loads.append(update)
        self.version = update.version

    async def sleep(self) -> None:
        """Sleep."""
        if self.num_running:
            raise GeneratorError("the generator was put to sleep while it was generating")
        self.is_asleep = True

    async def wake(self) -> None:
        """Wake."""
        self.is_asleep = False

    async def close(self) -> None:
        """Close."""
        self.is_closed = True

    @property
    def _logprob(self) -> float:
        return -math.log(self.vocab_size) if self.script is None else -1.0

    def _check(self) -> None:
        for is_wrong, what in (
            (not self.is_started, "has not been started"),
            (self.is_closed, "is closed"),
            (self.is_asleep, "is asleep"),
        ):
            if is_wrong:
                raise GeneratorError(f"the generator {what}")

    def _draw(self, rng: random.Random, n: int, sampling: SamplingSpec) -> list[list[int]]:
        answers = []
        for _ in range(n):
            ids: list[int] = []
            while len(ids) < sampling.max_tokens and self.eos_id not in ids:
                ids.append(rng.randrange(self.vocab_size))
            answers.append(ids)
        return answers

    def _completion(self, ids: list[int], sampling: SamplingSpec, first: int) -> Completion:
        half = len(ids) if first == self.version else len(ids) // 2
        return Completion(
            token_ids=ids,
            logprobs=[self._logprob] * len(ids),
            versions=[first] * half + [self.version] * (len(ids) - half),
            finish_reason="length" if len(ids) == sampling.max_tokens and self.eos_id not in ids else "stop",
        )
