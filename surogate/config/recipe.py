"""Recipes: in which numbers the decoder's matrix products are computed. Data only; quant/compute.py acts on them.

A recipe is a YAML file of the fields below. Three ship with Surogate, in the top-level folder recipes/ (in the wheel as
surogate/recipes/); a user may write his own. How frozen weights are stored is another matter (precision/storage.py).

The one idea: what a field cannot change is refused, so a recipe says no more than it does.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from surogate.config.bounded import PartFraction
from surogate.config.keys import expected, keys_of, nearest, parse_value, show_value
from surogate.config.yaml_file import read_yaml
from surogate.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to compute."""

    name: str
    """What logs and checkpoints call it."""
    matmul_dtype: Literal["model", "float32", "bfloat16", "float8_e4m3", "nvfp4"] = "model"
    """What both operands of the forward products are rounded to; model leaves them as they are."""
    gradient_dtype: Literal["model", "float32", "bfloat16", "float8_e5m2", "float8_e4m3", "nvfp4"] = "model"
    """What the gradients in the backward products are rounded to."""
    scaling: Literal["delayed", "current"] = "delayed"
    """float8: a tensor's scale comes from the largest magnitudes of earlier steps, or from its own."""
    amax_history: PositiveInt = 16
    """float8, delayed: steps looked back on."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """float8, delayed: which of them counts."""
    margin: NonNegativeInt = 0
    """float8: powers of two of headroom above the largest magnitude."""
    weight_block: Literal["16x16", "1x16"] = "16x16"
    """nvfp4: weights that share a scale. In tiles, forward and backward see the same weight."""
    stochastic_rounding: bool = True
    """nvfp4: round gradients up or down at random, so that their mean is right."""
    hadamard: bool = True
    """nvfp4: spread outliers over blocks of 16 tokens before the product that gives the weight's gradient."""
    four_over_six: bool = False
    """nvfp4: let a block of activations end at 4 or at 6, whichever errs less."""
    unchanged_first_fraction: PartFraction = 0.0
    """Share of the decoder layers, at the front, that compute in the dtype of the weights."""
    unchanged_last_fraction: PartFraction = 0.0
    """The same at the end."""
    unchanged_modules: list[str] = field(default_factory=list)
    """Further linear layers that do: names, ends of names or regular expressions of either."""
    backend: Literal["auto", "scaled_mm", "emulate"] = "auto"
    """float8 and nvfp4: torch's scaled_mm on the tensor core, or dequantised operands; auto takes the tensor core."""
    emulate: bool = False
    """Whether auto may emulate where there is no such tensor core. Otherwise the run is refused there."""

    @property
    def family(self) -> Literal["plain", "float8", "nvfp4"]:
        """Which fields matter besides the dtypes."""
        return {"float8_e4m3": "float8", "nvfp4": "nvfp4"}.get(self.matmul_dtype, "plain")  # type: ignore[return-value]

    @property
    def changes_nothing(self) -> bool:
        """Whether every product stays what it is."""
        return self.matmul_dtype == self.gradient_dtype == "model"

    def numbers(self) -> dict[str, Any]:
        """Return the fields that decide about results: not what the recipe is called or what it runs on."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _NO_NUMBERS}


_MAX_MARGIN, _MAX_HISTORY = 8, 4096

_NO_NUMBERS = {"name", "backend", "emulate"}

FIELDS_OF = {
    "float8": ("scaling", "amax_history", "amax_compute_algo", "margin"),
    "nvfp4": ("weight_block", "stochastic_rounding", "hadamard", "four_over_six"),
}
"""The fields that only one family reads."""


def recipes_dir() -> Path:
    """The folder of recipes: inside an installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def load_recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: of one that ships with Surogate (`-` may stand for `_`), or the path of a YAML file.
        options: fields that override those of the file.

    Raises:
        ConfigError: there is no such recipe, a field or value does not exist, or they contradict each other.
    """
    values = {**_file_values(name), **(options or {})}
    keys = keys_of(Recipe)
    typed: dict[str, Any] = {}
    for key, raw in values.items():
        if key not in keys:
            close = nearest(str(key), keys)
            hint = f"Did you mean {close}?" if close else f"There are: {', '.join(keys)}."
            raise ConfigError(f"recipe {name}: {key} is not a field. {hint}")
        try:
            typed[key] = parse_value(keys[key].type, raw)
        except (argparse.ArgumentError, ValueError) as error:
            wanted = expected(keys[key].type)
            raise ConfigError(f"recipe {name}: {key} must be {wanted}, got {show_value(raw)}.") from error
    recipe = Recipe(**{"name": Path(name).stem, **typed})
    for sentence in _contradictions(recipe):
        raise ConfigError(f"recipe {name}: {sentence}")
    return recipe


def _file_values(name: str) -> dict[str, Any]:
    shipped = recipes_dir() / f"{name.replace('-', '_')}.yaml"
    if shipped.parent == recipes_dir() and shipped.is_file():
        return read_yaml(shipped).values
    if Path(name).suffix in (".yaml", ".yml"):
        file = read_yaml(name)
        for path, line in file.duplicates:
            raise ConfigError(f"{name}:{line}: {path[0]} is set twice. Keep one of the lines.")
        return file.values
    known = ", ".join(sorted(file.stem for file in recipes_dir().glob("*.yaml")))
    raise ConfigError(f"recipe must be one of {known}, or the path of a YAML file, got {name!r}.")


_GRADIENTS = {
    "plain": ("model", "float32", "bfloat16"),
    "float8": ("float8_e5m2", "float8_e4m3"),
    "nvfp4": ("nvfp4",),
}


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield sentences about fields that cannot go together, or that nothing would read."""
    allowed = _GRADIENTS[recipe.family]
    if recipe.gradient_dtype not in allowed:
        yield (
            f"matmul_dtype: {recipe.matmul_dtype} needs gradient_dtype: {' or '.join(allowed)}, "
            f"got {recipe.gradient_dtype}."
        )
    defaults = keys_of(Recipe)
    for family, fields in FIELDS_OF.items():
        for key in fields:
            if family != recipe.family and getattr(recipe, key) != defaults[key].default:
                dtype = {"float8": "float8_e4m3", "nvfp4": "nvfp4"}[family]
                yield f"{key} needs matmul_dtype: {dtype}; this recipe has {recipe.matmul_dtype}."
    if recipe.family == "plain" and (recipe.emulate or recipe.backend != "auto"):
        key = "emulate" if recipe.emulate else "backend"
        yield f"{key} needs matmul_dtype: float8_e4m3 or nvfp4; {recipe.matmul_dtype} runs everywhere."
    if recipe.emulate and recipe.backend == "scaled_mm":
        yield "backend: scaled_mm asks for the tensor core, and emulate: true for doing without. Keep one of them."
    if recipe.margin > _MAX_MARGIN:
        yield f"margin is {recipe.margin} powers of two, which leaves nothing of FP8's range; at most {_MAX_MARGIN}."
    if recipe.amax_history > _MAX_HISTORY:
        yield f"amax_history is {recipe.amax_history} steps; at most {_MAX_HISTORY} are kept."
    if recipe.unchanged_first_fraction + recipe.unchanged_last_fraction >= 1:
        yield "unchanged_first_fraction and unchanged_last_fraction leave no layer to compute in the recipe's numbers."
    unchanged = [key for key in defaults if key.startswith("unchanged") and getattr(recipe, key)]
    if recipe.changes_nothing and unchanged:
        yield f"{unchanged[0]} means nothing with matmul_dtype: model, which changes no layer."
