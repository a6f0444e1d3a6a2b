"""Tiny random models of many families, each with what is its own: windows, soft caps, sinks, experts, scaled logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny import VOCAB
from transformers import AutoModelForCausalLM, PreTrainedConfig

WINDOW = 8
"""Shorter than the documents of the tests, so that it shows."""

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_MIXTRAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GRANITE = {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}

TRAINED: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen2Moe": {**_QWEN_EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3": {"tie_word_embeddings": True},
    "Qwen3Moe": _QWEN_EXPERTS,
    "Gemma2": {
        **_ALTERNATING,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "Gemma3Text": {**_ALTERNATING, "query_pre_attn_scalar": 8},
    "Mistral": {"sliding_window": WINDOW},
    "Mixtral": _MIXTRAL_EXPERTS,
    "Phi": {"partial_rotary_factor": 0.5},
    "Phi3": {"sliding_window": WINDOW},
    "GptOss": {**_ALTERNATING, **_MIXTRAL_EXPERTS},
    "DeepseekV3": _DEEPSEEK,
    "Granite": _GRANITE,
    "Cohere": {},
    "Olmo2": {},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Starcoder2": {"sliding_window": WINDOW},
    "StableLm": {},
    "Glm4": {},
    "GPTNeoX": {},
    "GPT2": _GPT2,
}
"""Families that train, by the name of their configuration, and how theirs differs from _SHAPE."""

REFUSED: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "Qwen3_5Text": _LINEAR_ATTENTION,
    "Bloom": {},
    "ModernBertDecoder": {"cls_token_id": 1, "sep_token_id": 2},
    "Llama4Text": {**_MIXTRAL_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
}
"""Families whose packed documents cannot be kept apart, or whose head is not a projection."""


def family_config(name: str) -> PreTrainedConfig:
    """A configuration of 2 layers that a CPU trains in a moment."""
    values = {**TRAINED, **REFUSED}[name]
    shape = {} if values is _GPT2 else _SHAPE
    config_class = getattr(transformers, f"{name}Config")
    config: PreTrainedConfig = config_class(**{**shape, **values})
    return config


def save_family(folder: Path, name: str) -> Path:
    """Write a random model of a family as a folder with safetensors."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(name), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
