"""Every YAML that we ship can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surogate.config.flat import SftConfig
from surogate.config.read import read_config
from surogate.config.recipe import load_recipe
from surogate.config.yaml_file import read_yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
ROWS = REPOSITORY / "tests/data/factbook.jsonl"


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def data_that_a_run_makes_itself(path: Path) -> list[str]:
    """Overrides that put committed rows in place of data under output/."""
    values = read_yaml(path).values
    return [
        part
        for key in ("datasets", "validation_datasets")
        for index, spec in enumerate(values.get(key, []))
        if spec["path"].startswith("output/")
        for part in (f"--{key}.{index}.path", str(ROWS))
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_read_without_complaint(path: Path):
    assert isinstance(read_config("sft", path, data_that_a_run_makes_itself(path)).config, SftConfig)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_header_says_command_hardware_and_expected_result(path: Path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header
    for word in (f"surogate sft {name_of(path)}", "Hardware:", "Expected:"):
        assert word in header.group()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=name_of)
def test_a_recipe_is_read_and_named_after_its_file(path: Path):
    assert load_recipe(path.stem).name == path.stem
