"""Recipes: how matrix products compute. Data only; the plugins in surogate/precision act on them.

The YAML files live in the top-level folder recipes/ and ship inside the wheel as surogate/recipes/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from surogate.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to compute."""

    name: str
    matmul_dtype: Literal["bfloat16"] = "bfloat16"
    """Dtype of the operands of forward matrix products."""
    gradient_dtype: Literal["bfloat16"] = "bfloat16"
    """Dtype of the operands of backward matrix products."""


def recipes_dir() -> Path:
    """The folder of recipes: inside an installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def load_recipe(name: str) -> Recipe:
    """Read a recipe that ships with Surogate.

    Raises:
        ConfigError: there is no recipe of that name.
    """
    path = recipes_dir() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in recipes_dir().glob("*.yaml")))
        raise ConfigError(f"recipe must be one of {known}, got {name!r}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    return Recipe(**parser.parse_path(path).as_dict())
