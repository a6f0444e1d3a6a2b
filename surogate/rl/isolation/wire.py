"""How two processes that don't trust each other exchange Python values: JSON of plain values, and numbers for the rest.

The one idea: only values of exactly the built-in plain types travel, and arrive as such; an object of any other type
stays where it is and travels as a number that its owner knows it by. So nothing that arrives has a method of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MAX_INT = 1 << 63
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_SEQUENCE_TYPES: dict[str, Callable[[list[Any]], Any]] = {name: type_ for type_, name in _SEQUENCES.items()}


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Turn a value into JSON's types.

    Args:
        value: anything.
        keep: gives the number of an object that stays here.
    """
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -_MAX_INT < value < _MAX_INT else {"int": hex(value)}
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: [encode(item, keep) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    return {"object": keep(value)}


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """Turn JSON's types into the value.

    Args:
        data: what `encode` gave.
        find: gives what stands for a numbered object.

    Raises:
        ValueError, TypeError: `encode` does not give such data.
    """
    if data is None or type(data) in (bool, str, float, int):
        return data
    if type(data) is not dict or len(data) != 1:
        raise ValueError("not an encoded value")
    ((kind, content),) = data.items()
    if kind in _SEQUENCE_TYPES:
        return _SEQUENCE_TYPES[kind]([decode(item, find) for item in content])
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    if kind == "object":
        return find(content)
    raise ValueError(f"an unknown kind of value {kind!r}")
