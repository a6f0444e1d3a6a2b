"""What is known about each key of a schema: type, default and manual, the words for them, and how a value is typed.

Everything is read from the schema itself: types from annotations, manuals from attribute docstrings. What is not here:
keys that no schema holds (not_yet.py), and the reading of a file (read.py).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jsonargparse import ArgumentParser
from jsonargparse import typing as restricted

from surogate.config.bounded import AtLeastOne, PartFraction, PortNumber, PositiveFraction, StepLimit

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class Key:
    """One key of a schema."""

    name: str
    type: Any
    default: Any
    """REQUIRED where there is none."""
    manual: str

    @property
    def summary(self) -> str:
        """First line of the manual."""
        return self.manual.splitlines()[0]


@cache
def keys_of(schema: type) -> dict[str, Key]:
    """Describe each field of a schema, in its order of definition, bases first."""
    hints = typing.get_type_hints(schema)
    manuals: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        manuals |= _attribute_docstrings(base)
    return {
        field.name: Key(field.name, hints[field.name], _default(field), manuals.get(field.name, ""))
        for field in dataclasses.fields(schema)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _attribute_docstrings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        attribute.target.id: inspect.cleandoc(doc.value.value)
        for attribute, doc in zip(body.body, body.body[1:], strict=False)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def item_schema(type_: Any) -> type | None:
    """Return the schema of a key that is a mapping of keys of its own, or a list of such mappings; else None."""
    item = next(iter(typing.get_args(type_)), None) if typing.get_origin(type_) is list else type_
    return item if isinstance(item, type) and dataclasses.is_dataclass(item) else None


def expanded(schema: type, prefix: str = "") -> dict[str, Key]:
    """Describe each key of a schema, those inside mappings in place of the mapping: `loss.type`, `loss.adv_tau`."""
    keys: dict[str, Key] = {}
    for key in keys_of(schema).values():
        inner = None if typing.get_origin(key.type) is list else item_schema(key.type)
        name = f"{prefix}{key.name}"
        keys |= expanded(inner, f"{name}.") if inner else {name: dataclasses.replace(key, name=name)}
    return keys


def example_of(schema: type) -> str:
    """Write a mapping of a schema with a value for its first key, as an example."""
    key = next(key for key in keys_of(schema).values() if key.name in _EXAMPLES or isinstance(key.default, str))
    return f"{{{key.name}: {_EXAMPLES.get(key.name, key.default)}}}"


_EXAMPLES = {"path": "rows.jsonl", "id": "reverse-text", "enabled": "true", "max_tokens": "512", "interval": "50",
    "timeout": "600", "online_difficulty_filtering": "true", "name": "org/model"}  # fmt: skip

_TYPE_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("bool", "true or false"),
    int: ("int", "a whole number"),
    float: ("float", "a number"),
    str: ("str", "text"),
    type(None): ("null", "null"),
    restricted.PositiveInt: ("int > 0", "a whole number above 0"),
    restricted.NonNegativeInt: ("int >= 0", "a whole number of 0 or more"),
    StepLimit: ("int > 0 or -1", "a whole number above 0, or -1"),
    restricted.PositiveFloat: ("float > 0", "a number above 0"),
    restricted.NonNegativeFloat: ("float >= 0", "a number of 0 or more"),
    restricted.ClosedUnitInterval: ("float 0 to 1", "a number from 0 to 1"),
    restricted.OpenUnitInterval: ("float between 0 and 1", "a number between 0 and 1, without them"),
    PartFraction: ("float 0 to below 1", "a number from 0 to below 1"),
    PositiveFraction: ("float above 0 to 1", "a number above 0, at most 1"),
    AtLeastOne: ("float >= 1", "a number of 1 or more"),
    PortNumber: ("int 1 to 65535", "a whole number from 1 to 65535"),
    restricted.NotEmptyStr: ("str", "text that is not empty"),
}


def type_name(type_: Any) -> str:
    """Name a type for a table: `int > 0`, `adamw or sgd`, `list of str`."""
    return _joined(_type_words(type_, 0))


def expected(type_: Any) -> str:
    """Name a type inside a sentence: `a whole number above 0`."""
    return _joined(word for word in _type_words(type_, 1) if word != "null")


def _joined(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _type_words(type_: Any, form: int) -> list[str]:
    if type_ in _TYPE_WORDS:
        return [_TYPE_WORDS[type_][form]]
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is Literal:
        return list(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return [word for arg in args for word in _type_words(arg, form)]
    if origin is list:
        schema = item_schema(type_)
        if schema:
            return [("list of mappings", f"a list of mappings, such as [{example_of(schema)}]")[form]]
        example = ", ".join(choices(args[0])) or "a, b"
        return [(f"list of {type_name(args[0])}", f"a list such as [{example}]")[form]]
    return [("mapping", "a mapping")[form]]


def choices(type_: Any) -> tuple[str, ...]:
    """Return the words that a type allows by name."""
    if typing.get_origin(type_) is Literal:
        return typing.get_args(type_)
    return tuple(word for arg in typing.get_args(type_) for word in choices(arg))


def accepts_null(type_: Any) -> bool:
    """Whether `null` is a value of the type."""
    return type_ is type(None) or (
        typing.get_origin(type_) in (typing.Union, types.UnionType) and any(map(accepts_null, typing.get_args(type_)))
    )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one most resembles, or None."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def show_default(key: Key) -> str:
    """Write a key's default for a reader."""
    if key.default is REQUIRED or key.default == "":
        return "required"
    if key.default is None:
        return "not set"
    if isinstance(key.default, dict):
        return "{}"
    if isinstance(key.default, list):
        return f"[{', '.join(map(str, key.default))}]"
    return str(key.default).lower() if isinstance(key.default, bool) else str(key.default)


def parse_value(type_: Any, raw: Any) -> Any:
    """Turn a value into a type, by jsonargparse, and into plain Python numbers.

    Raises:
        ArgumentError: it does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=type_)
    value = parser.parse_object({"value": raw}).value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) if isinstance(value, int) else float(value)
    return str(value) if isinstance(value, str) else value


def show_value(value: Any) -> str:
    """Write a value as it stands in YAML; text in quotes, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
