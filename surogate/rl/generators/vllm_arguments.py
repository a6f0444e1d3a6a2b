"""What vLLM is told: arguments of its engine, of a request, and of the environment, for both forms of the generator.

Nothing here imports vLLM, so a command line can build the server's without paying for the import. The one idea: both
forms get the same values from here, and each trap of vLLM 0.32 that is a matter of settings has its guard here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import GeneratorError

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin while they wait take the core from the trainer: 6.5 s against 3.8 s with one of two cores busy.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Set where the user has not: what vLLM and its libraries read when they are imported."""

ALWAYS = {
    # The worker lives in the engine's process: nothing of it can be left behind, and weights need no serialisation.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Set in any case; the generator relies on it."""

WORKER_EXTENSION = "surogate.rl.generators.vllm_worker.WorkerExtension"
CPU_BLOCK_SIZE = 32
"""Tokens of a block of the KV cache. vLLM's default on a CPU, 128, shares no prompt shorter than that."""
MAX_DEFAULT_KV_BYTES = 2 << 30
_SPARE_BLOCKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What config.json says about a model, as far as the engine's arguments depend on it.

    Attributes:
        max_positions: longest sequence.
        kv_elements: numbers in the KV cache for each token; 0 = cannot be told.
    """

    max_positions: int | None
    kv_elements: int

    @classmethod
    def read(cls, model_dir: Path) -> ModelShape:
        """Read a model's folder.

        Raises:
            GeneratorError: it has no config.json.
        """
        path = model_dir / "config.json"
        if not path.is_file():
            raise GeneratorError(f"{model_dir} has no config.json: the generator needs a model's folder")
        top = json.loads(path.read_text())
        config = top.get("text_config", top)
        heads = config.get("num_attention_heads", 0)
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else 0)
        return cls(
            max_positions=config.get("max_position_embeddings"),
            kv_elements=2 * config.get("num_hidden_layers", 0) * kv_heads * head_dim,
        )


def context_len(spec: InferenceSpec, shape: ModelShape) -> int:
    """Return the most tokens of a prompt and its completion.

    Raises:
        GeneratorError: the model cannot address them.
    """
    if spec.max_model_len is None:
        if shape.max_positions is None:
            raise GeneratorError("set max_model_len: the model's config.json does not tell its longest sequence")
        return shape.max_positions
    if shape.max_positions is not None and spec.max_model_len > shape.max_positions:
        raise GeneratorError(
            f"max_model_len is {spec.max_model_len}, and the model addresses at most {shape.max_positions}"
        )
    return spec.max_model_len


def engine_environment(spec: InferenceSpec, shape: ModelShape) -> dict[str, str]:
    """Return the environment variables to set in any case.

    The engine gets one token more than the generator offers (`engine_arguments`); where that is one more than the model
    addresses, vLLM wants to be told that it is meant. The position is never computed.
    """
    longer = context_len(spec, shape) == shape.max_positions
    return {**ALWAYS, **({"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"} if longer else {})}


def engine_arguments(spec: InferenceSpec, model_dir: Path, *, has_gpu: bool) -> dict[str, Any]:
    """Return the arguments of vLLM's engine (`vllm.engine.arg_utils.EngineArgs`).

    Args:
        model_dir: the folder to serve.
        has_gpu: vLLM runs on a GPU.
    """
    shape = ModelShape.read(model_dir)
    max_len = context_len(spec, shape)
    arguments: dict[str, Any] = {
        "model": str(model_dir),
        "dtype": _dtype(spec, has_gpu),
        # one more: scoring a full sequence samples a token after it
        "max_model_len": max_len + 1,
        "max_num_seqs": spec.max_num_seqs,
        "kv_cache_dtype": spec.kv_cache_dtype,
        "enforce_eager": spec.enforce_eager,
        "trust_remote_code": spec.trust_remote_code,
        "enable_prefix_caching": spec.enable_prefix_caching,
        "seed": spec.seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # log_softmax(logits / temperature), which is what the trainer computes; the default ignores the temperature
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": WORKER_EXTENSION,
    }
    if spec.tp > 1:
        arguments["tensor_parallel_size"] = spec.tp
    if spec.enable_lora:
        max_loras = max(2, spec.max_loras)
        rank = spec.max_lora_rank or 16
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": max_loras, "max_cpu_loras": max_loras}
    if has_gpu:
        arguments["gpu_memory_utilization"] = spec.gpu_memory_utilization
    else:
        arguments["block_size"] = CPU_BLOCK_SIZE
    if spec.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(spec.kv_cache_gib * 2**30)
    elif not has_gpu:
        # without a number vLLM reserves a share of all memory of the machine
        arguments["kv_cache_memory_bytes"] = kv_cache_bytes(shape, max_len, spec.max_num_seqs)
    return arguments | spec.vllm


def _dtype(spec: InferenceSpec, has_gpu: bool) -> str:
    """`auto` is what the model's folder says on a GPU; on a CPU float32, since few of them multiply bfloat16 well."""
    return "float32" if spec.dtype == "auto" and not has_gpu else spec.dtype


def kv_cache_bytes(shape: ModelShape, max_len: int, num_seqs: int) -> int:
    """Return the memory that num_seqs full sequences need in float32: at most 2 GiB, but at least one sequence's."""
    if not shape.kv_elements:
        return MAX_DEFAULT_KV_BYTES
    block_bytes = 4 * shape.kv_elements * CPU_BLOCK_SIZE
    blocks = math.ceil((max_len + 1) / CPU_BLOCK_SIZE)
    one, every = blocks + _SPARE_BLOCKS, blocks * num_seqs + _SPARE_BLOCKS
    return max(one * block_bytes, min(every * block_bytes, MAX_DEFAULT_KV_BYTES))


def sampling_arguments(sampling: SamplingSpec, stop: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `vllm.SamplingParams`, without the seed.

    Everything that changes the distribution is named, so that nothing comes from the model's generation_config.json.
    Temperature 0 is spelled top_k = 1: the same token, but drawn from the request's own random numbers, where vLLM's
    greedy rows advance the process's.
    """
    is_greedy = sampling.temperature == 0
    return {
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": 1.0 if is_greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 1 if is_greedy else max(sampling.top_k, 0),
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(stop),
        "detokenize": bool(stop),
        "logprobs": 0,
    }


def scoring_arguments() -> dict[str, Any]:
    """Return the arguments of a request whose prompt is scored; the one token that vLLM insists on is thrown away."""
    sampling = SamplingSpec(max_tokens=1)
    return {**sampling_arguments(sampling, ()), "prompt_logprobs": 0, "seed": 0}


class Seeds:
    """Seeds of requests: the same ones for the same seed, and never the process's own random numbers."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def draw(self, n: int, seed: int | None) -> list[int]:
        """Return n seeds, from `seed` or, without one, the next of this engine's."""
        rng = self._rng if seed is None else np.random.default_rng(seed)
        return [int(s) for s in rng.integers(0, 2**31 - 1, n)]


def check_request(prompt_ids: Sequence[int], max_tokens: int, max_len: int) -> None:
    """Make sure that a request fits; vLLM would cut the completion short without a word.

    Raises:
        GeneratorError: it does not.
    """
    if not prompt_ids:
        raise GeneratorError("the prompt has no tokens; the generator needs at least one")
    if len(prompt_ids) + max_tokens > max_len:
        raise GeneratorError(
            f"a prompt of {len(prompt_ids)} tokens and max_tokens {max_tokens} do not fit into the generator's "
            f"max_model_len of {max_len}"
        )


def token_versions(spans: Sequence[Any] | None, num_tokens: int, *, has_adapter: bool) -> list[int]:
    """Return the policy version of each token from vLLM's spans of `version_name`s.

    Args:
        spans: mappings or objects with version, start and end.
        num_tokens: sampled.
        has_adapter: the request went to an adapter, and not to the base.

    Raises:
        GeneratorError: a token has none.
    """
    versions: list[int] = []
    for span in spans or ():
        name, start, end = (_field(span, key) for key in ("version", "start", "end"))
        base, _, adapter = str(name).partition("+")
        if start == len(versions) and base.isdigit() and adapter.isdigit():
            versions += [int(adapter if has_adapter else base)] * (end - start)
    if len(versions) != num_tokens:
        raise GeneratorError(f"vLLM told the weight version of {len(versions)} of {num_tokens} tokens: {spans}")
    return versions


def _field(span: Any, key: str) -> Any:
    return span[key] if isinstance(span, Mapping) else getattr(span, key)


def version_name(base: int, adapter: int) -> str:
    """Return what an engine is told its weights are: requests to the base keep its version when an adapter comes."""
    return f"{base}+{adapter}"
