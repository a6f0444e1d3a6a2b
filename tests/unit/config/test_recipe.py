from __future__ import annotations

from pathlib import Path

import pytest

from surogate.config import recipe
from surogate.config.recipe import Recipe, load_recipe, recipes_dir
from surogate.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    """Write a recipe and return its path."""

    def write_recipe(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_recipe


def test_the_bf16_recipe_changes_nothing():
    assert load_recipe("bf16") == Recipe(name="bf16")
    assert load_recipe("bf16").changes_nothing


def test_every_recipe_that_ships_is_named_like_its_file_and_says_why_and_where_it_runs():
    for path in recipes_dir().glob("*.yaml"):
        assert load_recipe(path.stem).name == path.stem
        comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        assert "Hardware:" in comment


def test_fp8_hybrid_is_transformer_engines_and_nvfp4_the_papers():
    fp8, nvfp4 = load_recipe("fp8_hybrid"), load_recipe("nvfp4")
    assert (fp8.family, fp8.matmul_dtype, fp8.gradient_dtype) == ("float8", "float8_e4m3", "float8_e5m2")
    assert (fp8.scaling, fp8.amax_history, fp8.amax_compute_algo, fp8.margin) == ("delayed", 16, "max", 0)
    assert (nvfp4.family, nvfp4.gradient_dtype, nvfp4.weight_block) == ("nvfp4", "nvfp4", "16x16")
    assert nvfp4.stochastic_rounding and nvfp4.hadamard
    assert 0.1 < nvfp4.unchanged_first_fraction + nvfp4.unchanged_last_fraction < 0.2
    assert not fp8.emulate and not nvfp4.emulate  # never silently


def test_the_recipes_of_an_installed_wheel_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(recipe, "_PACKAGE", tmp_path)
    assert load_recipe("mine").name == "mine"


def test_a_dash_may_stand_for_an_underscore():
    assert load_recipe("fp8-hybrid") == load_recipe("fp8_hybrid")


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(ConfigError, match=r"one of bf16, fp8_hybrid, nvfp4, or the path of a YAML file, got 'fp7'\."):
        load_recipe("fp7")


def test_a_recipe_of_ones_own_is_named_after_its_file_unless_it_says_otherwise(write):
    text = "matmul_dtype: float8_e4m3\ngradient_dtype: float8_e4m3\namax_history: 4\n"
    assert load_recipe(write(text)) == Recipe(
        name="mine", matmul_dtype="float8_e4m3", gradient_dtype="float8_e4m3", amax_history=4
    )
    assert load_recipe(write(f"{text}name: all-e4m3\n")).name == "all-e4m3"


def test_options_win_over_the_file_and_are_checked_like_it():
    assert load_recipe("fp8_hybrid", {"margin": 2, "emulate": True}).margin == 2
    with pytest.raises(ConfigError, match="margin must be a whole number of 0 or more, got -1"):
        load_recipe("fp8_hybrid", {"margin": -1})


def test_numbers_are_what_results_depend_on():
    one, other = load_recipe("fp8_hybrid"), load_recipe("fp8_hybrid", {"emulate": True, "name": "renamed"})
    assert one.numbers() == other.numbers()
    assert one.numbers() != load_recipe("fp8_hybrid", {"margin": 1}).numbers()


FP8 = "matmul_dtype: float8_e4m3\ngradient_dtype: float8_e5m2\n"

WRONG = {
    "matmul_dtipe: nvfp4\n": "matmul_dtipe is not a field. Did you mean matmul_dtype?",
    "zzz: 1\n": "zzz is not a field. There are: name, matmul_dtype",
    "matmul_dtype: fp7\n": "matmul_dtype must be model, float32, bfloat16, float8_e4m3 or nvfp4, got 'fp7'",
    "amax_history: 0\n": "amax_history must be a whole number above 0, got 0",
    "unchanged_modules: 3\n": "unchanged_modules must be a list such as [a, b], got 3",
    "margin: 1\nmargin: 2\n": "mine.yaml:2: margin is set twice",
    "matmul_dtype: float8_e4m3\n": "needs gradient_dtype: float8_e5m2 or float8_e4m3, got model",
    "matmul_dtype: nvfp4\ngradient_dtype: float8_e5m2\n": "matmul_dtype: nvfp4 needs gradient_dtype: nvfp4",
    "hadamard: false\n": "hadamard needs matmul_dtype: nvfp4; this recipe has model",
    f"{FP8}four_over_six: true\n": "four_over_six needs matmul_dtype: nvfp4; this recipe has float8_e4m3",
    "matmul_dtype: nvfp4\ngradient_dtype: nvfp4\nmargin: 1\n": "margin needs matmul_dtype: float8_e4m3",
    "emulate: true\n": "emulate needs matmul_dtype: float8_e4m3 or nvfp4; model runs everywhere",
    f"{FP8}backend: scaled_mm\nemulate: true\n": "backend: scaled_mm asks for the tensor core",
    f"{FP8}unchanged_first_fraction: 0.5\nunchanged_last_fraction: 0.5\n": "leave no layer to compute",
    "unchanged_modules: [q_proj]\n": "unchanged_modules means nothing with matmul_dtype: model",
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.items())
def test_a_recipe_that_says_what_it_does_not_do_is_refused_in_one_sentence(write, text, sentence):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(text))
    assert sentence in str(caught.value)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
