"""Keeping modules as they are while the rest of a model trains.

The one idea: a weight is a tensor, not a name. An LM head that is tied to the embeddings is the same tensor, so the two
freeze together, and this is said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from surogate.errors import ModelError

logger = logging.getLogger(__name__)


def freeze_(model: Any, names: Sequence[str]) -> None:
    """Freeze modules of a model.

    Args:
        model: a transformers model; changed in place.
        names: of modules, whole (`model.layers.0.mlp`) or their ends (`embed_tokens`, `layers.0`); `embeddings` and
            `lm_head` also mean what the model's family calls otherwise.

    Raises:
        ModelError: a name matches no module with weights, or nothing is left to train.
    """
    for name in names:
        found = modules_called(model, name)
        for module in found:
            module.requires_grad_(False)
        _say_what_is_tied(model, name, found)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"freeze_modules: [{', '.join(names)}] leaves nothing to train.")


def modules_called(model: Any, name: str) -> list[nn.Module]:
    """Find the modules that an entry of freeze_modules means.

    Raises:
        ModelError: there is none.
    """
    named = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
    if not named and name == "embeddings":
        named = [model.get_input_embeddings()]
    if not named and name == "lm_head":
        named = [model.get_output_embeddings()]
    found = [module for module in named if any(True for _ in module.parameters())]
    if not found:
        raise ModelError(f"freeze_modules: the model has no module named {name}. It has: {_outline(model)}.")
    return found


def _say_what_is_tied(model: nn.Module, name: str, frozen: Sequence[nn.Module]) -> None:
    inside = {id(module) for top in frozen for module in top.modules()}
    weights = {id(parameter) for module in frozen for parameter in module.parameters()}
    tied = [
        path
        for path, module in model.named_modules()
        if id(module) not in inside and weights & {id(p) for p in module.parameters(recurse=False)}
    ]
    if tied:
        logger.info("freeze_modules: %s shares its weight with %s, which stays frozen too.", name, ", ".join(tied))


def _outline(model: nn.Module) -> str:
    """Name the modules of the first two levels, and one of each kind inside the layers."""
    paths = [path for path, _ in model.named_modules() if path and path.count(".") <= 1]
    leaves = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    return ", ".join([*paths, *sorted(leaf for leaf in leaves if leaf and not leaf.isdigit() and leaf not in paths)])
