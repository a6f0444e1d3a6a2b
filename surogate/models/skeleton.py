"""A model without weights, to ask whether it has what a configuration names, before anything is tokenised or loaded."""

from __future__ import annotations

from typing import Any

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models import lora
from surogate.models.freeze import modules_called
from surogate.models.load import load_config


def check_module_names(model: ModelSpec, adapter: LoraSpec) -> None:
    """Refuse names of modules that the model does not have.

    Args:
        model: which model, and which of its modules stay frozen.
        adapter: which of its layers are adapted or trained whole; one that goes on training brings its own.

    Raises:
        ModelError: there is no such model, or none of its modules has such a name.
    """
    named = adapter.modules_to_save or adapter.target_modules != ["all"] if adapter.enabled else model.freeze_modules
    goes_on = adapter.adapter_path is not None and adapter.adapter_init_mode == "trainable"
    if not named or goes_on:
        return
    bare = skeleton(model)
    if adapter.enabled:
        lora.target_names(bare, adapter.target_modules)
        lora.checked_modules_to_save(bare, adapter.modules_to_save)
    else:
        for name in model.freeze_modules:
            modules_called(bare, name)


def skeleton(spec: ModelSpec) -> Any:
    """Return the model of a spec on the meta device, buffers and all."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
