"""Combinations that cannot run within infer.yaml, and arguments of vLLM that would spoil a run. No torch, no vLLM.

Each check yields the keys involved, as the user knows them, and one sentence that says what to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from surogate.config.contradiction import Contradiction
from surogate.config.flat_grpo import InferConfig
from surogate.config.keys import keys_of, nearest
from surogate.config.settle import VLLM_RANKS
from surogate.config.vllm_names import vllm_arguments


def infer_contradictions(config: InferConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield every reason why infer.yaml cannot run; see checks.contradictions."""
    if config.max_lora_rank is not None and config.max_lora_rank not in VLLM_RANKS:
        yield (
            ("max_lora_rank",),
            f"max_lora_rank must be one of {', '.join(map(str, VLLM_RANKS))}, as vLLM wants it, got "
            f"{config.max_lora_rank}.",
        )
    yield from _vllm(config.vllm)


def _vllm(arguments: dict[str, Any]) -> Iterator[Contradiction]:
    for key in sorted(arguments.keys() & _ENGINE_NAMES.keys()):
        yield ("vllm",), f"vllm.{key} is set by {_ENGINE_NAMES[key]}. Use that."
    for key in sorted(arguments.keys() & _SET_BY_US.keys()):
        yield ("vllm",), f"vllm.{key} cannot be chosen: {_SET_BY_US[key]}. Remove it."
    if why := _LOAD_FORMATS.get(str(arguments.get("load_format"))):
        yield ("vllm",), f"vllm.load_format: {arguments['load_format']} is refused: {why}. Remove it."
    if arguments and (known := vllm_arguments()) is not None:
        for key in sorted(arguments.keys() - known - _ENGINE_NAMES.keys()):
            hint = f"Did you mean {close}?" if (close := nearest(key.replace("-", "_"), known)) else "Remove it."
            yield ("vllm",), f"vllm.{key} is no argument of the engine of the vLLM that is installed. {hint}"


_ENGINE_NAMES = {
    **{
        key: key
        for key in keys_of(InferConfig)
        if key not in ("tp", "dp", "kv_cache_gib", "host", "port", "vllm", "model")
    },
    "model": "model",
    "tensor_parallel_size": "tp",
    "data_parallel_size": "dp",
    "kv_cache_memory_bytes": "kv_cache_gib",
}
"""Arguments of vLLM that have keys of their own."""

_SET_BY_US = {
    "logprobs_mode": "probabilities must be those that were sampled from",
    "worker_extension_cls": "weights reach the engine through it",
    "async_scheduling": "tokens would be labelled with the weights before those that sampled them",
    **dict.fromkeys(
        ("speculative_config", "spec_method", "spec_model", "spec_tokens"),
        "a draft would keep the weights that it began with, and whether drafted tokens get the trainer's "
        "log-probabilities has not been shown",
    ),
    **dict.fromkeys(
        ("quantization", "quantization_config"),
        "the engine would sample from rounded weights, which are not those that train; a model that is published "
        "quantised needs no argument",
    ),
    **dict.fromkeys(
        ("logits_processors", "watermark_config"),
        "tokens would come from another distribution than the one that trains",
    ),
    "kv_sharing_fast_prefill": "the tokens of a given text would not be scored, and so the weights not be checked",
}
"""Arguments of vLLM that the run relies on, or that would spoil its log-probabilities or weights, and why."""

_LOAD_FORMATS = {
    "dummy": "the engine would make its weights up",
    "bitsandbytes": "the engine would sample from rounded weights, which are not those that train",
}
"""Ways of loading the base that change it."""


def infer_alone(config: InferConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield the same where no train.yaml completes it."""
    yield from infer_contradictions(config, given)
    if config.model is None:
        yield ("model",), "model is missing. Name the one that train.yaml names."
