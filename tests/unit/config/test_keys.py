from __future__ import annotations

from typing import Any, Literal

import pytest
from jsonargparse.typing import PositiveInt

from surogate.config.flat import GROUPS, SftConfig
from surogate.config.keys import REQUIRED, accepts_null, choices, expected, keys_of, nearest, type_name
from surogate.config.parts import DatasetSpec


@pytest.mark.parametrize("schema", [SftConfig, DatasetSpec])
def test_every_key_has_a_manual_that_ends_with_a_full_stop(schema):
    assert [key.name for key in keys_of(schema).values() if not key.manual.endswith((".", "..."))] == []


def test_the_groups_hold_every_key_once():
    grouped = [name for schema in GROUPS.values() for name in keys_of(schema)]
    assert sorted(grouped) == sorted(keys_of(SftConfig))


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
