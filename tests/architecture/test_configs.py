"""Every YAML that we ship can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surogate.config.flat import SCHEMAS
from surogate.config.lower_grpo import to_lightning_grpo
from surogate.config.read import likely_verb, read_config
from surogate.config.read_grpo import read_grpo
from surogate.config.recipe import load_recipe
from surogate.config.yaml_file import read_yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
OF_THREE_FILES = sorted({path.parent for path in CONFIGS if path.name == "orch.yaml"})
OF_ONE_FILE = [path for path in CONFIGS if path.parent not in OF_THREE_FILES]
ROWS = REPOSITORY / "tests/data/factbook.jsonl"


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def verb_of(path: Path) -> str:
    """The folder under configs/ is the verb that runs its files; under configs/slurm the file is."""
    folder = path.relative_to(REPOSITORY / "configs").parts[0]
    return path.stem if folder == "slurm" else folder


def is_submitted(path: Path) -> bool:
    return "slurm" in path.relative_to(REPOSITORY / "configs").parts


def what_a_run_makes_itself(path: Path) -> list[str]:
    """Overrides that put committed files in place of what lies under output/."""
    values = read_yaml(path).values
    made = [key for key in ("model", "tokenizer") if str(values.get(key)).startswith("output/")]
    return [part for key in made for part in (f"--{key}", str(ROWS.parent))] + [
        part
        for key in ("datasets", "validation_datasets")
        for index, spec in enumerate(values.get(key, []))
        if spec["path"].startswith("output/")
        for part in (f"--{key}.{index}.path", str(ROWS))
    ]


def command_for(path: Path) -> str:
    """What starts the run of a file."""
    if path in OF_ONE_FILE:
        return f"surogate {'submit' if is_submitted(path) else verb_of(path)} {name_of(path)}"
    files = [f"--{file} {name_of(path.parent)}/{file}.yaml" for file in ("train", "infer", "orch")]
    return " ".join(["surogate submit grpo" if is_submitted(path) else "surogate grpo", *files])


@pytest.mark.parametrize("path", OF_ONE_FILE, ids=name_of)
def test_a_config_is_read_without_complaint(path: Path):
    verb = verb_of(path)
    assert isinstance(read_config(verb, path, what_a_run_makes_itself(path)).config, SCHEMAS[verb])


@pytest.mark.parametrize("folder", OF_THREE_FILES, ids=name_of)
def test_three_files_of_grpo_are_read_without_complaint(folder: Path):
    resolved = read_grpo(folder / "train.yaml", folder / "infer.yaml", folder / "orch.yaml")
    assert to_lightning_grpo(resolved)["data"]["init_args"]["environments"]


@pytest.mark.parametrize("path", [path for path in OF_ONE_FILE if is_submitted(path)], ids=name_of)
def test_submit_tells_from_a_config_alone_which_verb_it_is_for(path: Path):
    assert likely_verb(path) == verb_of(path)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_header_says_command_hardware_and_expected_result(path: Path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header
    for word in (command_for(path), "Hardware:", "Expected:"):
        assert word in header.group()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=name_of)
def test_a_recipe_is_read_and_named_after_its_file(path: Path):
    assert load_recipe(path.stem).name == path.stem
