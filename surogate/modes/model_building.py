"""The model of a run, as it comes to the strategy: read or deferred, with its adapter or its frozen parts.

What is not here: sharding it (models/shards.py), storing it in few bits (the precision plugins), and what it must
satisfy (model_checks.py).
"""

from __future__ import annotations

import logging
import os
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.models import export, lora
from surogate.models.freeze import freeze_
from surogate.models.hidden import base_model
from surogate.models.load import load_model, quantisation_of
from surogate.models.prequantised import check_can_train
from surogate.modes.model_checks import check_trained_dtype
from surogate.modes.sharding import ShardedStrategy

_say = rank_zero_only(logging.getLogger(__name__).warning)


def build_model(
    model_spec: ModelSpec, lora_spec: LoraSpec, optim_spec: OptimSpec, trainer: pl.Trainer, tokenizer: Any
) -> Any:
    """Build the model that a run trains; the same on every rank.

    Args:
        model_spec: which weights.
        lora_spec: the adapter on top.
        optim_spec: says whether the weights may be float16.
        trainer: whose precision plugin and strategy say whether weights are read later, part by part.
        tokenizer: of the data; a new model takes its special tokens. May be None.

    Raises:
        ModelError: it cannot be read, or not be trained.
    """
    is_quantised = _is_quantised(model_spec, lora_spec, trainer)
    wants_meta = is_quantised or getattr(trainer.precision_plugin, "defers_loading", False)
    defer = wants_meta and lora_spec.enabled and not lora.needs_base_weights(lora_spec)
    if is_quantised and lora_spec.enabled and not defer:
        _say(
            f"This adapter starts from the weights of {model_spec.source}, so all of them are dequantised "
            "once; layers that the start changes (init_lora_weights, adapter_path) stay so."
        )
    torch.manual_seed(run_seed())  # of random weights
    defer = defer or isinstance(trainer.strategy, ShardedStrategy)
    model: Any = load_model(model_spec, trainer.strategy.root_device, defer=defer)
    if lora_spec.enabled:
        for limit in lora.vllm_limits(lora_spec):
            _say(limit)
        torch.manual_seed(run_seed())
        model = lora.inject(model, lora_spec, model_spec.source)
    else:
        freeze_(model, model_spec.freeze_modules)
        check_trained_dtype(model, model_spec.source, optim_spec.master_dtype)
    if model_spec.from_scratch and tokenizer is not None:
        export.adopt_special_tokens_(model, tokenizer)
    if model_spec.recompute:
        base_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def run_seed() -> int:
    """Return the seed that Lightning's seed_everything set for this run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _is_quantised(model_spec: ModelSpec, lora_spec: LoraSpec, trainer: pl.Trainer) -> bool:
    """Whether the checkpoint is quantised; refuses what cannot be done with it."""
    method = quantisation_of(model_spec)
    if method is not None and trainer.state.fn == TrainerFn.FITTING:
        storage = getattr(trainer.precision_plugin, "storage", None)
        check_can_train(model_spec, method, adapter=lora_spec.enabled, storage=storage.name if storage else None)
    return method is not None
