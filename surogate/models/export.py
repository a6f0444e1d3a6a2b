"""Writing a complete model folder that transformers and vLLM load: weights, configuration, tokenizer.

What is not here: adapters (lora.py) and merging them (merge.py). The one idea: a folder is written beside its place and
moved there when it is whole, so that nobody ever loads half a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from surogate.run_folder import draft_folder


def save_model(model: Any, folder: Path, tokenizer: Any, state: dict[str, Tensor] | None = None) -> None:
    """Put a model and its tokenizer where a folder may already be.

    Args:
        model: a transformers model, as it trains.
        folder: a complete model folder afterwards.
        tokenizer: the model's own, with its chat template.
        state: its weights, where the model itself holds only a share of them.
    """
    with draft_folder(folder) as draft:
        write_model(model, draft, tokenizer, state)


def write_model(model: Any, folder: Path, tokenizer: Any, state: dict[str, Tensor] | None = None) -> None:
    """Write a model and its tokenizer into a folder; see save_model."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    generation = model.generation_config
    if generation is not None and _only_sampling_is_set(generation):
        generation.do_sample = (
            True  # transformers loads such a file, which several model families ship, but writes none
        )
    trained_without_cache = model.config.use_cache
    model.config.use_cache = True
    try:
        model.save_pretrained(str(folder), state_dict=state)
    finally:
        model.config.use_cache = trained_without_cache
    tokenizer.save_pretrained(str(folder))


def _only_sampling_is_set(generation: Any) -> bool:
    """Whether a temperature or the like stands there while do_sample is off."""
    try:
        generation.validate(strict=True)
    except ValueError:
        return not generation.do_sample
    return False


def adopt_special_tokens_(model: Any, tokenizer: Any) -> None:
    """Let a new model begin, end and pad with its tokenizer's tokens, as configurations of trained models say."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            setattr(config, key, getattr(tokenizer, key))
