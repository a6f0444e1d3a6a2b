"""SampledPolicy: the model under training as environments see it: a chat template, a tokenizer and a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import DataError
from surogate.rl.clocks import SamplingClock
from surogate.rl.generators.protocol import Generator
from surogate.rl.rendering import prompt_tokens
from surogate.rl.types import Completion, Message


class UnusablePrompt(DataError):
    """A prompt that nothing can be sampled after: its example is left out."""


class PromptTooLong(UnusablePrompt):
    """A prompt that leaves no room for a completion."""


class SampledPolicy:
    """Renders prompts and samples from the generator.

    Args:
        tokenizer: the model's.
        generator: the engine.
        sampling: of each completion; shortened where a prompt leaves less room.
        max_len: most tokens of a prompt and its completion.
        seed: of the next sample; None = the engine's own randomness.
        clock: counts the time in which something is sampled, and the tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        generator: Generator,
        sampling: SamplingSpec,
        max_len: int,
        seed: int | None = None,
        clock: SamplingClock | None = None,
    ) -> None:
        self.tokenizer, self._generator = tokenizer, generator
        self._sampling, self._max_len = sampling, max_len
        self._seed = seed
        self._clock = clock or SamplingClock()

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]:
        """Options of the chat template."""
        return self._sampling.chat_template_kwargs

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Return the tokens of a prompt; see environments.base.Policy."""
        return prompt_tokens(self.tokenizer, prompt, self.chat_template_kwargs)

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
            completions = await self._generator.generate(prompt_ids, n, sampling, stop=stop, seed=seed, asker=self)
            self._clock.answer(sum(len(completion.token_ids) for completion in completions))
        return completions
