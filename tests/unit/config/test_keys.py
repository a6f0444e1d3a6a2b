from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from jsonargparse.typing import PositiveInt

from surogate.config.bounded import AtLeastOne, PlainNumbers, PortNumber, PositiveFraction
from surogate.config.flat import GROUPS, SftConfig
from surogate.config.flat_grpo import ENTRIES_GRPO, GROUPS_GRPO, SCHEMAS_GRPO, GrpoConfig
from surogate.config.keys import (
    REQUIRED,
    accepts_null,
    choices,
    example_of,
    expanded,
    expected,
    item_schema,
    keys_of,
    nearest,
    type_name,
)
from surogate.config.parts import DatasetSpec
from surogate.config.parts_grpo import EnvSpec, InferenceSpec, LossSpec, OrchestratorSpec, RolloutBatchSpec

MANUALS = [SftConfig, DatasetSpec, *SCHEMAS_GRPO.values(), *ENTRIES_GRPO.values()]
MANUALS += [InferenceSpec, OrchestratorSpec, RolloutBatchSpec]


@pytest.mark.parametrize("schema", MANUALS)
def test_every_key_has_a_manual_that_ends_with_a_full_stop(schema):
    assert [key.name for key in expanded(schema).values() if not key.manual.endswith((".", "..."))] == []


def test_the_groups_hold_every_key_once():
    grouped = [name for schema in GROUPS.values() for name in keys_of(schema)]
    assert sorted(grouped) == sorted(keys_of(SftConfig))


@pytest.mark.parametrize("file", SCHEMAS_GRPO)
def test_the_groups_of_each_file_of_grpo_hold_every_key_once(file):
    grouped = [name for schema in GROUPS_GRPO[file].values() for name in keys_of(schema)]
    assert sorted(grouped) == sorted(keys_of(SCHEMAS_GRPO[file]))


def test_keys_inside_a_mapping_stand_in_its_place():
    keys = expanded(GrpoConfig)
    assert keys["loss.type"].default == "aipo"
    assert "loss" not in keys
    assert (item_schema(LossSpec), item_schema(list[EnvSpec]), item_schema(list[str])) == (LossSpec, EnvSpec, None)
    assert (example_of(EnvSpec), example_of(LossSpec)) == ("{id: reverse-text}", "{type: aipo}")


def test_numbers_of_a_spec_are_plain():
    @dataclass(frozen=True)
    class Spec(PlainNumbers):
        count: int = 1
        share: float | None = None
        is_on: bool = True

    spec = Spec(PositiveInt(3), AtLeastOne(2), True)
    assert [type(value) for value in (spec.count, spec.share, spec.is_on)] == [int, float, bool]
    assert spec == Spec(3, 2.0, True)


def test_a_key_is_described_from_the_schema():
    schema = keys_of(SftConfig)
    assert schema["model"].default is REQUIRED
    assert schema["lora_target_modules"].default == ["all"]
    assert keys_of(DatasetSpec)["weight"].manual.startswith("How often rows are drawn")


@pytest.mark.parametrize(
    ("type_", "name", "sentence"),
    [
        (PositiveInt, "int > 0", "a whole number above 0"),
        (PositiveInt | None, "int > 0 or null", "a whole number above 0"),
        (Literal["a", "b", "c"], "a, b or c", "a, b or c"),
        (PositiveInt | Literal["auto"], "int > 0 or auto", "a whole number above 0 or auto"),
        (list[str], "list of str", "a list such as [a, b]"),
        (dict[str, Any] | None, "mapping or null", "a mapping"),
        (bool | str, "bool or str", "true or false or text"),
        (PortNumber, "int 1 to 65535", "a whole number from 1 to 65535"),
        (PositiveFraction, "float above 0 to 1", "a number above 0, at most 1"),
        (AtLeastOne, "float >= 1", "a number of 1 or more"),
        (list[EnvSpec], "list of mappings", "a list of mappings, such as [{id: reverse-text}]"),
    ],
)
def test_types_have_words_for_tables_and_for_sentences(type_, name, sentence):
    assert (type_name(type_), expected(type_)) == (name, sentence)


def test_the_words_that_a_type_allows_are_found_inside_unions():
    assert choices(PositiveInt | Literal["auto"] | None) == ("auto",)


def test_null_is_accepted_only_where_the_type_says_so():
    assert accepts_null(str | None)
    assert not accepts_null(str | int)


def test_the_nearest_name_is_found_and_a_distant_one_is_not():
    assert nearest("learnign_rate", ["learning_rate", "lora_rank"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate"]) is None
