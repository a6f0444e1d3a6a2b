"""RecipePrecision: the one Precision plugin of a run, and the base of those that store frozen weights in fewer bits.

It keeps out of the way where Lightning's own 16-bit plugins do harm: they set the global default dtype inside the step
and cast every float of a batch and of the model (advantages, RoPE tables, float32 adapters). Here dtypes are decided
when the model is built (models/dtypes.py) and stay.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from typing_extensions import override

from surogate.config.recipe import load_recipe
from surogate.models.weights import is_deferred, materialize_


class RecipePrecision(Precision):
    """Run a recipe on weights kept as they are.

    Args:
        recipe: name or path of a recipe (recipes/).
    """

    precision = "bf16-true"

    defers_loading = False
    """Whether the model should come to `convert_module` on the meta device, to be read tensor by tensor."""

    def __init__(self, recipe: str = "bf16") -> None:
        self.recipe = load_recipe(recipe)

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Read what is still deferred; returns the same object, since DDP ignores a new one."""
        if any(is_deferred(parameter) for parameter in module.parameters()):
            materialize_(module, torch.device("cpu"), self.place)
        return module

    def place(self, owner: nn.Module, name: str, values: torch.Tensor) -> bool:
        """Store a frozen tensor in this plugin's format; False keeps it as a plain parameter."""
        return False

    @override
    def convert_input(self, data: Any) -> Any:
        return data

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def tensor_init_context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def module_init_context(self) -> AbstractContextManager[Any]:
        return nullcontext()
