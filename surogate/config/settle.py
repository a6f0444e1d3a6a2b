"""What the three files of `surogate grpo` say together: a key that one leaves out is taken from another.

What is not here: files that disagree (cross_check.py). The one idea: afterwards each file says everything by itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from surogate.config.flat_grpo import GrpoConfig, InferConfig, OrchConfig
from surogate.config.keys import keys_of

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for max_lora_rank."""


def settle(train: GrpoConfig, infer: InferConfig, orch: OrchConfig) -> tuple[GrpoConfig, InferConfig, OrchConfig]:
    """Return the three configurations with every shared key filled in.

    Args:
        train: where the others leave something out, it holds.
        infer: of the engine.
        orch: wins where it says something, and must not differ from what train.yaml says.
    """
    asynchronous = train.max_async_level if orch.max_async_level == "auto" else orch.max_async_level
    train = replace(
        train,
        max_steps=orch.max_steps or train.max_steps,
        output_dir=orch.output_dir or train.output_dir,
        train_seed=train.train_seed if orch.seed is None else orch.seed,
        save_steps=train.save_steps if orch.ckpt.interval is None else orch.ckpt.interval,
        save_total_limit=orch.ckpt.keep_last or train.save_total_limit,
        report_to=orch.report_to or train.report_to,
        max_async_level=asynchronous,
        tokenizer=train.tokenizer or orch.model.tokenizer,
        weight_sync="full" if train.weight_sync == "auto" and why_no_adapter(train, infer, orch) else train.weight_sync,
    )
    trusts = infer.trust_remote_code or train.trust_remote_code or orch.model.trust_remote_code
    policy = replace(
        orch.model, name=orch.model.name or train.model, tokenizer=train.tokenizer, trust_remote_code=trusts
    )
    orch = settle_orch(
        replace(
            orch,
            model=policy,
            seq_len=orch.seq_len or train.sequence_len,
            max_steps=train.max_steps,
            max_async_level=asynchronous,
            seed=train.train_seed,
            output_dir=train.output_dir,
            report_to=train.report_to,
        )
    )
    infer = replace(
        infer,
        model=infer.model or train.model,
        dtype=train.model_dtype or "auto" if infer.dtype == "auto" else infer.dtype,
        max_model_len=infer.max_model_len or orch.seq_len,
        max_lora_rank=infer.max_lora_rank or smallest_rank_for(train),
        trust_remote_code=trusts,
    )
    return train, infer, orch


def settle_orch(orch: OrchConfig) -> OrchConfig:
    """Return orch.yaml with what it takes from no other file filled in: seeds."""
    seed = keys_of(GrpoConfig)["train_seed"].default if orch.seed is None else orch.seed
    sampling_seed = seed if orch.sampling.seed is None else orch.sampling.seed
    return replace(orch, seed=seed, sampling=replace(orch.sampling, seed=sampling_seed))


def why_no_adapter(train: GrpoConfig, infer: InferConfig, orch: OrchConfig) -> tuple[str, str] | None:
    """Return what keeps vLLM from serving the adapter: the key, such as `train.use_dora`, and why.

    Returns:
        None where it can be served.
    """
    if train.use_dora:
        return "train.use_dora", "vLLM cannot serve DoRA adapters"
    if train.modules_to_save:
        return "train.modules_to_save", "vLLM cannot serve modules that are trained whole"
    if train.adapter_path and train.adapter_init_mode == "merge" and orch.client.base_url:
        return (
            "train.adapter_path",
            "the adapter fits a base with adapter_path merged in, which the servers of client.base_url do not have",
        )
    if served_rank(train) > VLLM_RANKS[-1]:
        return "train.lora_rank", f"vLLM serves ranks up to {VLLM_RANKS[-1]}"
    if not infer.enable_lora:
        return "infer.enable_lora", "the engine is told to serve no adapters"
    return None


def served_rank(train: GrpoConfig) -> int:
    """Return the rank of the adapter as it is written: lora_rank, but for adapters that start from something."""
    if train.adapter_path and train.adapter_init_mode == "trainable":
        return _rank_in(train.adapter_path) or train.lora_rank
    changes_base = isinstance(train.init_lora_weights, str) and train.init_lora_weights.startswith(("pissa", "olora"))
    return train.lora_rank * (2 if changes_base else 1)  # written as the difference to its start


def _rank_in(adapter_path: str) -> int | None:
    """Return the rank of an adapter in a local folder; that of a hub repository is found when it is loaded."""
    for folder in (Path(adapter_path), Path(adapter_path) / "adapter"):
        try:
            rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("r")
        except (OSError, ValueError, AttributeError):
            continue
        return rank if isinstance(rank, int) else None
    return None


def smallest_rank_for(train: GrpoConfig) -> int | None:
    """Return the smallest max_lora_rank that holds the adapter, None where there is none."""
    return next((rank for rank in VLLM_RANKS if rank >= served_rank(train)), None)
