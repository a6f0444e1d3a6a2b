from __future__ import annotations

import json

import pytest

from surogate.rl.isolation.wire import decode, encode


def refuse(value: object) -> int:
    raise AssertionError(f"{value!r} is plain")


def through(value: object) -> object:
    return decode(json.loads(json.dumps(encode(value, refuse))), refuse)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**63), 10**40, 1.5, "é\ud800", b"\x00\xff", 2j, [], (), {}, set(), frozenset({1}),
        [1, (2, {"a": [3]})], {(1, 2): {3}}, {"list": 1},
    ],
)  # fmt: skip
def test_plain_values_come_out_as_they_went_in(value: object):
    assert through(value) == value
    assert type(through(value)) is type(value)


def test_infinite_numbers_pass():
    assert through(float("inf")) == float("inf")


def test_an_object_of_another_type_travels_as_its_number_even_where_it_is_a_kind_of_int():
    class Sly(int):
        pass

    kept: list[object] = []
    sly = Sly(3)
    data = encode([sly], lambda value: kept.append(value) or len(kept) - 1)
    assert data == {"list": [{"object": 0}]}
    assert decode(data, lambda number: f"#{number}") == ["#0"]
    assert kept == [sly]


@pytest.mark.parametrize("data", [[], {}, {"list": [1], "tuple": [1]}, {"code": "x"}, {"dict": [[1]]}, {"int": "q"}])
def test_what_is_no_encoded_value_is_refused(data: object):
    with pytest.raises((ValueError, TypeError)):
        decode(data, refuse)
