"""SampledPolicy: the model under training as environments see it: a chat template, a tokenizer and a generator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import DataError
from surogate.rl.generators.protocol import Generator
from surogate.rl.types import Completion, Message


class UnusablePrompt(DataError):
    """A prompt that nothing can be sampled after: its example is left out."""


class PromptTooLong(UnusablePrompt):
    """A prompt that leaves no room for a completion."""


class ActivityClock:
    """How long at least one of several overlapping activities has been under way, in seconds."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block, once where blocks overlap."""
        if not self._running:
            self._since = time.perf_counter()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._seconds += time.perf_counter() - self._since

    def take(self) -> float:
        """Return the seconds since the last call."""
        now = time.perf_counter()
        if self._running:
            self._seconds += now - self._since
            self._since = now
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class SampledPolicy:
    """Renders prompts and samples from the generator.

    Args:
        tokenizer: the model's.
        generator: the engine.
        sampling: of each completion; shortened where a prompt leaves less room.
        max_len: most tokens of a prompt and its completion.
        seed: of the next sample; None = the engine's own randomness.
        clock: counts the time in which something is sampled.
    """

    def __init__(
        self,
        tokenizer: Any,
        generator: Generator,
        sampling: SamplingSpec,
        max_len: int,
        seed: int | None = None,
        clock: ActivityClock | None = None,
    ) -> None:
        self.tokenizer, self._generator = tokenizer, generator
        self._sampling, self._max_len = sampling, max_len
        self._seed = seed
        self._clock = clock or ActivityClock()
        self.num_tokens = 0
        """Tokens sampled so far."""

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Return the tokens of a prompt; see environments.base.Policy."""
        if isinstance(prompt, str):
            # As a text of the training data begins: with the tokenizer's own first token, where it has one.
            return list(self.tokenizer(prompt).input_ids)
        if self.tokenizer.chat_template is None:
            raise DataError(
                "The tokenizer has no chat template, and the environment asks in messages. Use an environment with "
                "plain text prompts, or a tokenizer with a template."
            )
        return list(self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    async def sample(self, prompt_ids: Sequence[int], n: int, stop: Sequence[str] = ()) -> list[Completion]:
        """Sample n completions.

        Raises:
            UnusablePrompt: it has no tokens, or nothing fits behind them.
        """
        if not prompt_ids:
            raise UnusablePrompt("a prompt has no tokens, and the first token of a sequence cannot be sampled")
        room = self._max_len - len(prompt_ids)
        if room < max(1, self._sampling.min_tokens):
            raise PromptTooLong(
                f"a prompt has {len(prompt_ids)} tokens, and prompt and completion together may have {self._max_len}"
            )
        sampling = replace(self._sampling, max_tokens=min(self._sampling.max_tokens, room))
        seed = self._seed
        if self._seed is not None:
            self._seed += 1  # a second turn draws other numbers
        with self._clock.running():
            completions = await self._generator.generate(prompt_ids, n, sampling, stop=stop, seed=seed)
        self.num_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions
