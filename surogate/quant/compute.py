"""Which layers of a model compute in a recipe's numbers, and how they come to.

Every linear layer inside the decoder's list of layers does, trained or frozen, stored in few bits or not; LM head,
embeddings and adapters keep their dtype, and so does what the recipe leaves out or what does not divide. A plain layer
is replaced by RecipeLinear, which has the same parameters under the same names, so that checkpoints and exports stay
those of the plain model; a FrozenQuantLinear gets its `gemm`. What is not here: how products are computed (gemm.py,
compute_fp8.py, compute_nvfp4.py).

The one idea: numbers that the chip has no tensor core for are refused unless emulation was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate import chips
from surogate.config.recipe import Recipe
from surogate.errors import ConfigError, HardwareError
from surogate.quant.compute_fp8 import Fp8Gemm, Fp8Scaling
from surogate.quant.compute_nvfp4 import Nvfp4Gemm
from surogate.quant.experts import StoredExperts
from surogate.quant.gemm import CastGemm, Gemm
from surogate.quant.layer_names import decoder_layers, is_adapter, matching_names, plain_name
from surogate.quant.linear import FrozenQuantLinear


class RecipeLinear(nn.Linear):
    """A linear layer that multiplies by a Gemm.

    Args:
        linear: whose parameters it takes over, the same objects.
        gemm: how it multiplies.
    """

    def __init__(self, linear: nn.Linear, gemm: Gemm) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.gemm = gemm
        self.train(linear.training)

    @override
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.gemm(x, self.weight, self.bias)
        return result


@dataclass(kw_only=True)
class Computation:
    """What a recipe changed.

    Attributes:
        recipe: the recipe.
        native: whether products run on the tensor core.
        layers: names of the layers that compute in it.
        unchanged: why a matrix of the model does not, by name.
        scaling: FP8 scales; None where there are none.
    """

    recipe: Recipe
    native: bool
    layers: list[str] = field(default_factory=list)
    unchanged: dict[str, str] = field(default_factory=dict)
    scaling: Fp8Scaling | None = None

    def __str__(self) -> str:
        how = "" if self.recipe.family == "plain" else ", by scaled_mm" if self.native else ", emulated by dequantising"
        text = (
            f"Recipe {self.recipe.name}: {len(self.layers)} linear layers compute in "
            f"{_said(self.recipe.matmul_dtype)}, their gradients in {_said(self.recipe.gradient_dtype)}{how}"
        )
        return f"{text}; in the dtype of the weights: {_reasons(self.unchanged)}." if self.unchanged else f"{text}."


def _said(dtype: str) -> str:
    return "the dtype of the weights" if dtype == "model" else dtype


def runs_natively(recipe: Recipe, device: torch.device) -> bool:
    """Tell whether a recipe's products run on this device's tensor cores.

    Raises:
        HardwareError: they cannot, and emulation was not asked for.
    """
    if recipe.family == "plain":
        return True
    needed = chips.PRODUCTS[recipe.family]
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    is_native = capability is not None and capability >= needed
    if recipe.backend == "emulate" or (recipe.emulate and not is_native):
        return False
    if not is_native:
        found = f"a {device.type.upper()} has none"
        if capability:
            found = f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        key = "fp4_backend" if recipe.family == "nvfp4" else "backend"
        instead = "recipe_emulate: true" + (f" with {key}: auto" if recipe.backend == "scaled_mm" else "")
        raise HardwareError(
            f"recipe: {recipe.name} computes in {recipe.matmul_dtype} on tensor cores of compute capability "
            f"{needed[0]}.{needed[1]} ({chips.PRODUCT_CHIPS[recipe.family]}), and {found}. "
            f"Set recipe: bf16, or {instead} to compute the same numbers by dequantising, slower than bf16."
        )
    return True


def apply_recipe_(
    model: nn.Module, recipe: Recipe, *, device: torch.device, num_layers: int | None = None
) -> Computation:
    """Let a model's decoder layers compute in a recipe's numbers.

    Args:
        model: changed in place; its parameters stay the same objects.
        recipe: the recipe.
        device: where the model will run.
        num_layers: decoder layers of the model, where it says so.

    Raises:
        HardwareError: the device has no such tensor core, and emulation was not asked for.
        ConfigError: no layer can compute in it, or an entry of `unchanged_modules` matches nothing.
    """
    done = Computation(recipe=recipe, native=runs_natively(recipe, device))
    if recipe.changes_nothing:
        return done
    found = list(_matrices(model))
    done.unchanged = _unchanged(recipe, found, [f"{layer}." for layer in decoder_layers(model, num_layers)])
    chosen = [place for place in found if place.name not in done.unchanged]
    if not chosen:
        raise ConfigError(f"recipe: {recipe.name}: no layer of this model can use it: {_reasons(done.unchanged)}.")
    done.layers = [place.name for place in chosen]
    if recipe.family == "float8":
        done.scaling = Fp8Scaling(done.layers, recipe, device)
    for index, place in enumerate(chosen):
        gemm = _gemm(done, index).train(place.module.training)
        if isinstance(place.module, FrozenQuantLinear):
            place.module.gemm = gemm
        else:
            assert isinstance(place.module, nn.Linear)
            setattr(place.parent, place.attribute, RecipeLinear(place.module, gemm))
    return done


def _gemm(computation: Computation, index: int) -> Gemm:
    recipe = computation.recipe
    if computation.scaling is not None:
        return Fp8Gemm(computation.scaling, index, computation.native)
    if recipe.family == "nvfp4":
        return Nvfp4Gemm(recipe, computation.native)
    dtypes = (recipe.matmul_dtype, recipe.gradient_dtype)
    return CastGemm(*(None if dtype == "model" else getattr(torch, dtype) for dtype in dtypes))


@dataclass(frozen=True)
class _Place:
    """A module that owns a matrix, and where it stands; `name` leaves out what Lightning and PEFT put around it."""

    name: str
    module: nn.Module
    parent: nn.Module
    attribute: str

    @property
    def is_linear(self) -> bool:
        return type(self.module) is nn.Linear or isinstance(self.module, FrozenQuantLinear)


def _matrices(model: nn.Module) -> Iterator[_Place]:
    """Yield what owns matrices, but for embeddings and the adapters' own."""
    for full_name, module in list(model.named_modules()):
        owns = isinstance(module, FrozenQuantLinear | StoredExperts) or any(
            p.ndim > 1 for p in module.parameters(recurse=False)
        )
        if owns and not is_adapter(full_name) and not isinstance(module, nn.Embedding):
            parent, _, attribute = full_name.rpartition(".")
            yield _Place(plain_name(full_name), module, model.get_submodule(parent), attribute)


def _unchanged(recipe: Recipe, places: list[_Place], prefixes: list[str]) -> dict[str, str]:
    """Return why matrices keep their dtype, by name."""
    first = round(recipe.unchanged_first_fraction * len(prefixes))
    last = round(recipe.unchanged_last_fraction * len(prefixes))
    outer = tuple(prefixes[:first] + prefixes[len(prefixes) - last :])
    names = [place.name for place in places]
    key = f"recipe {recipe.name}: unchanged_modules"
    named = {name for entry in recipe.unchanged_modules for name in matching_names(entry, names, key)}
    reasons = {}
    for place in places:
        if not place.name.startswith(tuple(prefixes)):
            reasons[place.name] = "outside the decoder layers"
        elif not place.is_linear:
            reasons[place.name] = f"a {type(place.module).__name__}"
        elif place.name in named or place.name.startswith(outer):
            reasons[place.name] = "left out by the recipe"
        elif recipe.family != "plain" and (misfit := _misfit(place.module)):
            reasons[place.name] = misfit
    return reasons


def _misfit(linear: nn.Module) -> str | None:
    """Return why a layer's shape does not fit tensor cores and blocks of 16, or None."""
    rows, columns = int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]
    return f"{rows} x {columns} is not made of 16s" if rows % 16 or columns % 16 else None


def _reasons(unchanged: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, why in unchanged.items():
        by_reason.setdefault(why, []).append(name)
    parts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        parts.append(f"{', '.join(names[:2])}{more} ({why})")
    return "; ".join(parts) or "it has no linear layers"
