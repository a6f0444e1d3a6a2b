"""Generator: what the orchestrator asks of an engine. Token ids in, token ids, log-probabilities and versions out.

The one idea: a policy has a version, the number of optimizer steps behind its weights. An engine holds one version at a
time, and tells for each token which one sampled it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from surogate.config.parts_grpo import SamplingSpec
from surogate.rl.types import Completion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """New weights of the policy, in one of three forms.

    Attributes:
        version: optimizer steps behind them.
        adapter_dir: a folder in PEFT's format; the engine's base stays.
        weights_dir: a folder with complete merged weights (model.safetensors), for an engine in another process.
        tensors: gives (name in the checkpoint, merged weight) one at a time, for an engine in this process. Yields the
            LM head also where it is tied.
        norm_noise_sigma: standard deviation of the noise that the engine adds to its norm weights; 0 = none.
        probe_ids: a sequence that is scored with them before anything else is sampled, to see that they arrived; the
            orchestrator's business, an engine does not look at it.
    """

    version: int
    adapter_dir: Path | None = None
    weights_dir: Path | None = None
    tensors: Callable[[], Iterator[tuple[str, Tensor]]] | None = field(default=None, repr=False)
    norm_noise_sigma: float = 0.0
    probe_ids: tuple[int, ...] = ()


class Generator(Protocol):
    """An engine that samples from the policy.

    All methods are coroutines of one event loop. Cancelling a `generate` stops its sampling. Every method raises
    `GeneratorError` with a sentence when the engine is gone, refuses or does not answer in time.
    """

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together."""
        ...

    async def start(self) -> None:
        """Bring the engine up; at once where it runs already."""
        ...

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
        """Sample n completions of a prompt with the current weights.

        Args:
            prompt_ids: at least one token; with max_tokens at most max_model_len.
            n: completions.
            sampling: its temp_scheduler and seed are not looked at.
            stop: texts that end a completion; it includes the token in which they end.
            seed: makes the sampling repeatable where the engine can; None = its own randomness.
            asker: whose prompts begin alike, such as a group or a conversation. Of several servers it always gets the
                same, which has computed the beginning already.
        """
        ...

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return log p(token | tokens before it) at temperature 1, with the current weights, of all but the first."""
        ...

    async def load_weights(self, update: WeightUpdate) -> None:
        """Take up new weights between two tokens, and forget what was cached of the old ones.

        Raises:
            GeneratorError: the engine refuses them.
        """
        ...

    async def sleep(self) -> None:
        """Give the device's memory to the trainer; nothing is generated until `wake`."""
        ...

    async def wake(self) -> None:
        """Take the memory back."""
        ...

    async def close(self) -> None:
        """End the engine and every process of it; may be called twice."""
        ...
