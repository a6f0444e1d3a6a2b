"""Sampling in vLLM on a CPU: functions that leave the rest of the process alone, and numbers that can be drawn again.

vLLM 0.32's CPU sampler draws from the process's random numbers even where each request has its own, so that a trainer
in the same process would depend on what is sampled beside it; asking for log-probabilities makes torch.compile build a
one-line function, which needs a C++ compiler and 3 to 5 s; and a prompt that is computed in parts (a long one, or one
whose keys and values are computed anew under new weights) ends the engine, since the token that is sampled after each
part is thrown away by setting a generator back, which torch's generators of a CPU cannot do. On a GPU nothing of this
is in the way.

Legend: B requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor


def install() -> None:
    """Put the functions of this file in the place of vLLM's, in this process; before an engine is built."""
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    _put(sampler, batched_count_greater_than=count_at_least)
    if TopKTopPSampler.forward_cpu is not sample:
        _ORIGINAL["forward_cpu"] = TopKTopPSampler.forward_cpu
        _put(TopKTopPSampler, forward_cpu=sample)
        _ORIGINAL["__post_init__"] = CachedRequestState.__post_init__
        _put(CachedRequestState, __post_init__=_prepare_request)


_ORIGINAL: dict[str, Any] = {}
"""What vLLM had in their place."""


def _put(owner: object, **functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        setattr(owner, name, function)


class RequestGenerator(torch.Generator):
    """The random numbers of a request, each a function of the seed and its place, so that it can be set back.

    vLLM sets it back by 4 for each token that it throws away, as a GPU's generators count.
    """

    num_drawn = 0

    def get_offset(self) -> int:
        """Return the place, as vLLM counts it."""
        return _OFFSET_OF_DRAW * self.num_drawn

    def set_offset(self, offset: int) -> Self:
        """Go to a place."""
        self.num_drawn = offset // _OFFSET_OF_DRAW
        return self

    def draw(self) -> int:
        """Return the next number, 31 bits: the output of SplitMix64 (doi:10.1145/2714064.2660195) at the place."""
        self.num_drawn += 1
        state = (self.initial_seed() + self.num_drawn * 0x9E3779B97F4A7C15) & _64_BITS
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _64_BITS
        return (state ^ (state >> 31)) >> 33


_64_BITS = 2**64 - 1
_OFFSET_OF_DRAW = 4


def _prepare_request(request: Any) -> None:
    """Give a request that has a generator one that can be set back; then what vLLM does with a new request."""
    if request.generator is not None:
        seed = request.generator.initial_seed()
        request.generator = RequestGenerator()
        request.generator.manual_seed(seed)
    _ORIGINAL["__post_init__"](request)


def count_at_least(x_BV: Tensor, values_B1: Tensor) -> Tensor:
    """Return (B,): how many entries of a row reach its value; the value's rank."""
    return (x_BV >= values_B1).sum(-1)


def sample(
    sampler: Any, logits_BV: Tensor, generators: dict[int, RequestGenerator], k: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sample a token of each row with vLLM's own operator, seeded by the row's generator alone.

    Args:
        sampler: vLLM's, which this is a method of.
        generators: of the rows that have one; where one has none, vLLM's function does all of it.
        k: top_k of each row, or None where none has one.
        p: top_p likewise.

    Returns:
        (B,) token ids and (B, V) log-probabilities of what was sampled from.
    """
    num_rows = logits_BV.shape[0]
    if len(generators) != num_rows or sampler.logprobs_mode != "processed_logprobs" or sampler.use_fp64_gumbel:
        return _ORIGINAL["forward_cpu"](sampler, logits_BV, generators, k, p)
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    logits_BV = apply_top_k_top_p(logits_BV, k, p)
    seeds_B = torch.tensor([generators[row].draw() for row in range(num_rows)])
    tokens_B = torch.ops._C.fused_gumbel_argmax(logits_BV.float(), seeds_B)
    return tokens_B, logits_BV.log_softmax(dim=-1, dtype=torch.float32)
