"""Names of a model's layers as users know them, and what they say: which are adapters, decoder layers, the LM head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from surogate.errors import ConfigError


def plain_name(name: str) -> str:
    """Leave out what PEFT puts around the name of a module of a transformers model."""
    name = re.sub(r"^base_model\.model\.", "", name)
    return re.sub(r"\.(base_layer|original_module|modules_to_save\.\w+)$", "", name)


def is_adapter(name: str) -> bool:
    """Whether a module is part of a PEFT adapter. Some do not train: MiCA's B, adapters that are only used."""
    return any(part.startswith("lora_") for part in name.split("."))


def head_name(model: nn.Module) -> str | None:
    """Return the name of the LM head, if the model has one."""
    for module in model.modules():
        head = getattr(module, "get_output_embeddings", None)
        if head is not None and (found := head()) is not None:
            return next((plain_name(name) for name, other in model.named_modules() if other is found), None)
    return None


def num_decoder_layers(model: Any) -> int | None:
    """Return how many decoder layers a model says it has; None where it does not say."""
    config = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "num_hidden_layers", None)


def decoder_layers(model: nn.Module, num_layers: int | None) -> list[str]:
    """Return the names of the decoder layers, in order; empty where the model has no list of so many modules."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return [f"{plain_name(name)}.{index}" for index in range(len(module))]
    return []


def matching_names(entry: str, names: Sequence[str], key: str) -> set[str]:
    """Return the layers that an entry means: a name, its end, a module that holds them, or an expression of those.

    Args:
        entry: as a user wrote it.
        names: of the layers.
        key: that it stands under, for messages.

    Raises:
        ConfigError: it is no expression, or means no layer.
    """
    try:
        pattern = re.compile(rf"(.*\.)?({entry})(\..*)?")
    except re.error as error:
        raise ConfigError(f"{key}: {entry} is neither a name nor a regular expression: {error}.") from error
    matching = {name for name in names if pattern.fullmatch(name)}
    if not matching:
        raise ConfigError(
            f"{key}: no layer of this model is named {entry}; there are, for example, {', '.join(names[:3])}."
        )
    return matching
