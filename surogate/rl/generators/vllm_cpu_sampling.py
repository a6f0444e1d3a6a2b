"""Sampling in vLLM on a CPU: two functions that leave the rest of the process alone.

vLLM 0.32's CPU sampler draws from the process's random numbers even where each request has its own, so that a trainer
in the same process would depend on what is sampled beside it; and asking for log-probabilities makes torch.compile
build a one-line function, which needs a C++ compiler and 3 to 5 s. On a GPU neither is in the way.

Legend: B requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """Put the functions of this file in the place of vLLM's, in this process; before an engine is built."""
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    _put(sampler, batched_count_greater_than=count_at_least)
    if TopKTopPSampler.forward_cpu is not sample:
        _ORIGINAL["forward_cpu"] = TopKTopPSampler.forward_cpu
        _put(TopKTopPSampler, forward_cpu=sample)


_ORIGINAL: dict[str, Any] = {}
"""What vLLM had in their place."""


def _put(owner: object, **functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        setattr(owner, name, function)


def count_at_least(x_BV: Tensor, values_B1: Tensor) -> Tensor:
    """Return (B,): how many entries of a row reach its value; the value's rank."""
    return (x_BV >= values_B1).sum(-1)


def sample(
    sampler: Any, logits_BV: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
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
    seeds_B = torch.cat([torch.randint(2**31, (1,), generator=generators[row]) for row in range(num_rows)])
    tokens_B = torch.ops._C.fused_gumbel_argmax(logits_BV.float(), seeds_B)
    return tokens_B, logits_BV.log_softmax(dim=-1, dtype=torch.float32)
