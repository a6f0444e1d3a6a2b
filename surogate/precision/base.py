"""RecipePrecision: the one Precision plugin of a run, and the base of those that store frozen weights in fewer bits.

It keeps out of the way where Lightning's own 16-bit plugins do harm: they set the global default dtype inside the step
and cast every float of a batch and of the model (advantages, RoPE tables, float32 adapters). Here dtypes are decided
when the model is built (models/dtypes.py) and stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities.types import Steppable
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from surogate.config.recipe import Recipe, load_recipe
from surogate.errors import CheckpointError
from surogate.models.weights import ParameterSource, is_deferred, materialize_, was_stored
from surogate.quant.adapted import add_updates_in_place_
from surogate.quant.compute import apply_recipe_, runs_natively
from surogate.quant.compute_fp8 import Fp8Scaling
from surogate.quant.convert import FrozenLayer, Skip, convert_
from surogate.quant.gemm import Gemm
from surogate.quant.layer_names import num_decoder_layers
from surogate.quant.stored import StorageFormat, StoredWeight

log = logging.getLogger(__name__)

_NUMBERS_KEY = "surogate_precision"


class RecipePrecision(Precision):
    """Run a recipe on weights kept as they are, in the dtype or in the quantised form of their checkpoint.

    Args:
        recipe: name or path of a recipe (recipes/).
        recipe_options: fields of the recipe that differ from the file's, such as `{emulate: true}`.
    """

    precision = "bf16-true"

    defers_loading = False
    """Whether the model should come to `convert_module` on the meta device, to be read tensor by tensor."""

    storage: StorageFormat | None = None
    """What frozen linear weights are stored in."""

    skip = Skip()
    """Which of them are not."""

    def __init__(self, recipe: str = "bf16", recipe_options: dict[str, Any] | None = None) -> None:
        self._recipe_name, self._recipe_options = recipe, recipe_options
        self._scaling: Fp8Scaling | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; read at first use, since jsonargparse hides what a constructor raises among its own attempts."""
        return load_recipe(self._recipe_name, self._recipe_options)

    def check_device(self, device: torch.device) -> None:
        """Refuse a device that cannot run the recipe, before anything is loaded.

        Raises:
            ConfigError: there is no such recipe.
            HardwareError: it has no such tensor core, and emulation was not asked for.
        """
        runs_natively(self.recipe, device)

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Read what is deferred, store what is frozen, and let products compute as the recipe says.

        Returns the same object, since DDP ignores a new one.
        """
        is_incomplete = any(is_deferred(parameter) for parameter in module.parameters())
        if self.storage is not None or is_incomplete or any(was_stored(parameter) for parameter in module.parameters()):
            device = _device_of(module)
            conversion = convert_(
                _model_of(module),
                self.storage,
                self.skip,
                device=device,
                source=ParameterSource(),
                num_layers=num_decoder_layers(_model_of(module)),
                progress=_show_progress,
            )
            if conversion.formats:
                log.info("%s", conversion)
            _keep_from_ddp(module)
        if is_incomplete:
            materialize_(module, torch.device("cpu"))
        if not self.recipe.changes_nothing and not any(isinstance(part, Gemm) for part in module.modules()):
            done = apply_recipe_(
                _model_of(module),
                self.recipe,
                device=_device_of(module),
                num_layers=num_decoder_layers(_model_of(module)),
            )
            self._scaling = done.scaling
            log.info("%s", done)
        add_updates_in_place_(_model_of(module))
        return module

    @override
    def optimizer_step(  # type: ignore[override]
        self, optimizer: Steppable, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Step, and take the next step's FP8 scales from what all ranks have seen in this one."""
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        if self._scaling is not None:
            self._scaling.roll_(lambda values: model.trainer.strategy.reduce(values, reduce_op="max"))
        return result

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Not in state_dict, which Lightning files under the class's name.
        scales = self._scaling.state_dict() if self._scaling else None
        checkpoint[_NUMBERS_KEY] = {**self._numbers(), "recipe": self.recipe.name, "fp8_scales": scales}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a checkpoint's FP8 scales; refuse one that was trained in other numbers.

        Raises:
            CheckpointError: recipe or storage differ.
        """
        trained = checkpoint.get(_NUMBERS_KEY, {})
        for key, now in self._numbers().items():
            if (then := trained.get(key, now)) != now:
                of_recipe = "" if key == "storage" else f" (recipe {trained.get('recipe')})"
                raise CheckpointError(
                    f"The checkpoint was trained with {key} {then}{of_recipe}, and this run has {now}. Set it as it "
                    "was, or start afresh in another output_dir."
                )
        if self._scaling is not None and trained.get("fp8_scales"):
            self._scaling.load_state_dict(trained["fp8_scales"])

    def _numbers(self) -> dict[str, Any]:
        storage = f"{self.storage.name}{self.skip}" if self.storage else "none"
        return {"storage": storage, **self.recipe.numbers()}

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


def _device_of(module: nn.Module) -> torch.device:
    """Return where a LightningModule will run; the CPU where it has no trainer."""
    trainer = getattr(module, "_trainer", None)
    return torch.device("cpu") if trainer is None else trainer.strategy.root_device


def _keep_from_ddp(module: nn.Module) -> None:
    """Let every rank keep the codes and scales that it made: DDP would send those of rank 0 around in each step."""
    stored = {name for name, part in module.named_modules() if isinstance(part, StoredWeight)}
    names = [name for name, _ in module.named_buffers() if name.rpartition(".")[0] in stored]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def _model_of(module: Any) -> nn.Module:
    """Return the transformers or PEFT model inside a LightningModule, so that names of layers begin there."""
    inner = getattr(module, "model", None)
    return inner if isinstance(module, LightningModule) and isinstance(inner, nn.Module) else module


def _show_progress(layers: list[FrozenLayer]) -> Iterator[FrozenLayer]:
    """Iterate with a bar on a terminal that vanishes when it is full."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    is_shown = console.is_terminal and log.isEnabledFor(logging.INFO)
    with Progress(console=console, transient=True, disable=not is_shown) as bar:
        yield from bar.track(layers, description="Reading and storing weights")
