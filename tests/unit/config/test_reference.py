from __future__ import annotations

from pathlib import Path

from surogate.config.environments import ENVIRONMENTS
from surogate.config.flat import DataKeys, DataRunKeys, RunKeys, SftConfig
from surogate.config.flat_grpo import ENTRIES_GRPO, SCHEMAS_GRPO
from surogate.config.keys import expanded, keys_of
from surogate.config.not_yet_grpo import NOT_YET_GRPO
from surogate.config.reference import reference

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/config.md"


def test_the_committed_page_is_the_generated_one():
    assert PAGE.read_text() == reference(), "run: python -m surogate.config.reference > docs/reference/config.md"


def test_every_key_has_a_row():
    rows = reference().splitlines()
    assert [name for name in expanded(SftConfig) if not any(row.startswith(f"| `{name}` |") for row in rows)] == []


def test_every_key_of_the_three_files_has_a_row():
    rows = reference().splitlines()
    names = [name for schema in (*SCHEMAS_GRPO.values(), *ENTRIES_GRPO.values()) for name in expanded(schema)]
    assert [name for name in names if not any(row.startswith(f"| `{name}` |") for row in rows)] == []


def test_every_key_that_train_yaml_lacks_is_named_as_rejected():
    rejected = {*keys_of(DataKeys), *keys_of(DataRunKeys)} - {*keys_of(RunKeys)}
    assert rejected <= NOT_YET_GRPO["train"].keys()
    assert [name for name in rejected if f"`{name}: " not in reference()] == []


def test_every_environment_is_listed():
    assert [name for name in ENVIRONMENTS if f"- `{name}`: " not in reference()] == []
