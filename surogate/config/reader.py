"""Reading one flat file: YAML and overrides -> typed values, where each came from, and every problem.

Types are jsonargparse's business, key by key, so that all problems are found in one go. What is not here: which keys
exist (flat.py, flat_grpo.py), which are known and rejected (not_yet.py), and which combinations can run (checks.py).

The one idea: a key inside a mapping or a list is a key like any other. It has a place, a type and a nearest neighbour,
and is called as a user would write it: `loss.type`, `datasets[1].path`.
"""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from surogate.config.contradiction import Contradiction
from surogate.config.keys import (
    REQUIRED,
    Key,
    accepts_null,
    choices,
    example_of,
    expected,
    item_schema,
    keys_of,
    nearest,
    parse_value,
    show_value,
)
from surogate.config.not_yet import Contract
from surogate.config.overrides import set_nested
from surogate.config.parts import SHORT_DTYPES
from surogate.config.yaml_file import KeyPath, YamlFile, parse_yaml

COMMAND_LINE = "command line"


@dataclass
class Reader:
    """Collects values, their origins and every problem.

    Attributes:
        schema: the keys.
        file: what was typed; overrides change its values.
        contract: what may be typed besides.
        command_line: how the place of an override is called.
        later: keys that have not landed, with the values that were asked for.
        nested: values of keys inside mappings and lists, by the name that a user would write.
        failed: keys whose value is missing or wrong; nothing more is said about them.
        problems: line in the file and text; those of the command line come last.
        typed: for each key, the path under which the user typed it.
    """

    schema: type
    file: YamlFile
    contract: Contract
    command_line: str = COMMAND_LINE
    problems: list[tuple[float, str]] = field(default_factory=list)
    overridden: set[KeyPath] = field(default_factory=set)
    later: dict[str, Any] = field(default_factory=dict)
    nested: dict[str, Any] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    typed: dict[str, KeyPath] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, line in self.file.duplicates:
            where = f"{self.file.name}:{line}"
            self.problems.append((line, f"{where}: {show_path(path)} is set twice. Keep one of the lines."))
        _wrap_single_entries_(self.schema, self.file.values)  # so that overrides can count them

    def where(self, path: KeyPath) -> str:
        """Say where a value came from; an override of a part does not move the whole."""
        is_new = path and self.file.line_of(path) == 0
        is_added = path not in self.file.lines and any(changed[: len(path)] == path for changed in self.overridden)
        if is_new or is_added or any(path[: len(changed)] == changed for changed in self.overridden):
            return self.command_line
        return self.file.where(path)

    def complain(self, path: KeyPath, sentence: str) -> None:
        """Add a problem at the place of a key."""
        where = self.where(path)
        line = math.inf if where == self.command_line else self.file.line_of(path)
        self.problems.append((line, f"{where}: {sentence}"))

    def place_of(self, involved: tuple[str | int, ...]) -> KeyPath:
        """Return the path of the first key that the user typed; a path into a list stands for itself."""
        if any(isinstance(part, int) for part in involved):
            return involved
        return next((self.typed[name] for name in involved if name in self.typed), ())

    def check(self, contradictions: Iterable[Contradiction]) -> None:
        """Add what cannot run, but for keys of which something was said already."""
        for involved, sentence in contradictions:
            if not self.failed & set(involved):
                self.complain(self.place_of(involved), sentence)

    def override(self, overrides: list[tuple[KeyPath, str]], prefix: str = "") -> None:
        """Lay (path, text) pairs over the file's values.

        Args:
            overrides: paths inside this file.
            prefix: what stands in front of them on the command line, such as `train`.
        """
        for path, text in overrides:
            problem = set_nested(self.file.values, path, text, prefix)
            if problem:
                self.problems.append((math.inf, f"{COMMAND_LINE}: {problem}"))
            else:
                self.overridden.add(path)

    def read_keys(self) -> dict[str, Any]:
        """Return the typed values of all flat keys that the user set."""
        keys = keys_of(self.schema)
        values: dict[str, Any] = {}
        for typed, raw in self.file.values.items():
            name = self.contract.synonyms.get(str(typed), str(typed))
            if name not in keys:
                self._read_unknown(str(typed), raw, keys)
                continue
            known, value = self._read_value(keys[name], raw, (typed,), name)
            if not known:
                self.failed.add(name)
            elif name in values and values[name] != value:
                other = show_path(self.typed[name])
                self.complain((typed,), f"{typed} and {other} mean the same and differ. Keep one of them.")
            else:
                values[name] = value
                self.typed.setdefault(name, (typed,))
        for name, key in keys.items():
            if key.default is REQUIRED and name not in self.file.values:
                self.failed.add(name)
                self.complain((), f"{name} is missing. {key.summary}")
        return values

    def build(self, values: dict[str, Any]) -> Any:
        """Return the schema filled in, with placeholders where something required is missing."""
        keys = keys_of(self.schema)
        return self.schema(**{name: values.get(name, _placeholder(key)) for name, key in keys.items()})

    def _read_unknown(self, name: str, raw: Any, keys: dict[str, Key]) -> None:
        for dotted, path, value in self._flatten_unknown(name, raw):
            if not self._rejected_by_name(dotted, path, value):
                known = [*keys, *self.contract.synonyms, *self.contract.later]
                self.complain(path, self._unknown_key(dotted, known))

    def _rejected_by_name(self, name: str, path: KeyPath, raw: Any) -> bool:
        """Whether a key is one that has not landed; complain where its value asks for something."""
        value = parse_yaml(raw) if isinstance(raw, str) else raw
        sentence = self.contract.not_yet(name, value)
        if sentence:
            self.typed[name] = path
            self.later[name] = value
            self.complain(path, f"{name} is refused: {sentence}")
        return sentence is not None

    def _read_value(self, key: Key, raw: Any, path: KeyPath, name: str) -> tuple[bool, Any]:
        """Return (whether it can be used, the typed value); complain where it cannot.

        Args:
            key: what is expected.
            raw: what was typed.
            path: where it was typed.
            name: the key's name without list indices, for the tables of values that are rejected.
        """
        shown = show_path(path)
        schema = item_schema(key.type)
        if raw is None and not accepts_null(key.type):
            default = "" if key.default is REQUIRED or schema else f", {show_value(key.default)}"
            advice = "" if key.default is REQUIRED else f" Remove the line to use the default{default}."
            self.complain(path, f"{shown} has no value.{advice}")
            return False, None
        if typing.get_origin(key.type) is list:
            raw = _as_list(raw)
        if schema:
            read = self._read_list if typing.get_origin(key.type) is list else self._read_mapping
            return read(schema, raw, path, name)
        if isinstance(raw, str):
            raw = _as_spelt(raw, choices(key.type))
        asked = parse_yaml(raw) if isinstance(raw, str) else raw
        sentence = self.contract.value_not_yet(name, asked)
        if sentence:
            shown_value = asked if isinstance(asked, str) else show_value(asked)
            self.complain(path, f"{shown}: {shown_value} is refused: {sentence}")
            self.later[name] = asked
            return False, None
        try:
            return True, parse_value(key.type, raw)
        except (argparse.ArgumentError, ValueError):
            self.complain(path, f"{shown} must be {expected(key.type)}, got {show_value(raw)}.")
            return False, None

    def _read_list(self, schema: type, raw: Any, path: KeyPath, name: str) -> tuple[bool, Any]:
        """Read a list of mappings, each one of a schema."""
        if not isinstance(raw, list):
            self.complain(path, f"{show_path(path)} must be a list of mappings, got {show_value(raw)}.")
            return False, None
        items = []
        for index, entry in enumerate(raw):
            known, item = self._read_mapping(schema, entry, (*path, index), name)
            if known:
                items.append(item)
        return True, items

    def _read_mapping(self, schema: type, raw: Any, path: KeyPath, name: str) -> tuple[bool, Any]:
        """Read a mapping of a schema; it is there also where a key of it failed, to check the rest."""
        raw = parse_yaml(raw) if isinstance(raw, str) else raw
        if not isinstance(raw, dict):
            hint = f"{{{next(iter(keys_of(schema)))}: {raw}}}" if isinstance(path[-1], int) else example_of(schema)
            self.complain(path, f"{show_path(path)} must be a mapping, such as {hint}.")
            return False, None
        keys = keys_of(schema)
        values: dict[str, Any] = {}
        self.typed[show_path(path)] = path
        for typed, value in raw.items():
            child = (*path, str(typed))
            shown, dotted = show_path(child), f"{name}.{typed}"
            self.typed[shown] = child
            if str(typed) not in keys:
                if not self._rejected_by_name(dotted, child, value):
                    self.complain(child, self._unknown_key(shown, keys, str(typed)))
                continue
            known, item = self._read_value(keys[str(typed)], value, child, dotted)
            if known:
                values[str(typed)] = self.nested[shown] = item
            else:
                self.failed.add(shown)
        return True, schema(**values)

    def _unknown_key(self, shown: str, known: Iterable[str], name: str | None = None) -> str:
        name = name or shown
        if name == shown and name in self.contract.aliases:
            return f"{shown} is not a key here. Use {self.contract.aliases[name]}."
        if name == shown and name in self.contract.elsewhere:
            return f"{shown} is not a key here. It belongs in {self.contract.elsewhere[name]}."
        close = nearest(name.replace("-", "_"), known)
        hint = f"Did you mean {shown.removesuffix(name)}{close}?" if close else self.contract.advice
        return f"{shown} is not a key. {hint}"

    def _flatten_unknown(self, name: str, raw: Any) -> Iterator[tuple[str, KeyPath, Any]]:
        """Yield (dotted name, path, value): `distributed: {num_nodes: 2}` is the contract's distributed.num_nodes."""
        is_family = isinstance(raw, dict) and raw and nearest(f"{name}.{next(iter(raw))}", self.contract.later)
        if is_family and self.contract.not_yet(name, raw) is None:
            for key, value in raw.items():
                yield f"{name}.{key}", (name, key), value
        else:
            yield name, (name,), raw


def show_path(path: KeyPath) -> str:
    """Write a path as a user would: `datasets[1].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _placeholder(key: Key) -> Any:
    if key.default is not REQUIRED:
        return key.default
    return [] if typing.get_origin(key.type) is list else ""


def _wrap_single_entries_(schema: type, values: dict[str, Any]) -> None:
    """Put one mapping where a list of them is expected into a list, at any depth."""
    for name, key in keys_of(schema).items():
        inner, value = item_schema(key.type), values.get(name)
        if not inner or not isinstance(value, dict):
            continue
        _wrap_single_entries_(inner, value)
        if typing.get_origin(key.type) is list:
            values[name] = [value]


def _as_list(raw: Any) -> Any:
    """Put what stands alone where a list is expected, one mapping or one word, into a list."""
    value = parse_yaml(raw) if isinstance(raw, str) else raw
    if isinstance(value, dict):
        return [value]
    return [raw] if isinstance(value, str) and value else value


def _as_spelt(word: str, allowed: tuple[str, ...]) -> str:
    """Return the allowed word that is meant: `-` may stand for `_`, and a dtype may be written short or long."""
    spellings = (word.replace("-", "_"), _DTYPES.get(word, word))
    return next((spelling for spelling in spellings if spelling in allowed), word)


_DTYPES = SHORT_DTYPES | {long: short for short, long in SHORT_DTYPES.items()}
