from __future__ import annotations

from pathlib import Path

import pytest

from surogate.config import recipe
from surogate.config.recipe import Recipe, load_recipe
from surogate.errors import ConfigError


def test_the_bf16_recipe_is_found_in_a_checkout():
    assert load_recipe("bf16") == Recipe(name="bf16", matmul_dtype="bfloat16", gradient_dtype="bfloat16")


def test_the_recipes_of_an_installed_wheel_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(recipe, "_PACKAGE", tmp_path)
    assert load_recipe("mine").name == "mine"


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(ConfigError, match=r"recipe must be one of bf16, got 'fp7'\."):
        load_recipe("fp7")
