"""Reading a flat configuration: YAML and overrides -> a typed dataclass, and where each value came from.

Types are jsonargparse's business, key by key, so that all problems are found in one go. What is not here: which keys
exist (flat.py, not_yet.py) and which combinations can run (checks.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surogate.config.checks import contradictions
from surogate.config.flat import SCHEMAS, TrainConfig
from surogate.config.keys import (
    REQUIRED,
    Key,
    accepts_null,
    choices,
    expected,
    keys_of,
    nearest,
    parse_value,
    show_value,
)
from surogate.config.not_yet import ALIASES, NOT_YET, SYNONYMS, not_yet, value_not_yet
from surogate.config.overrides import parse_overrides, set_nested
from surogate.config.parts import SHORT_DTYPES
from surogate.config.yaml_file import KeyPath, YamlFile, parse_yaml, read_yaml
from surogate.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Resolved:
    """A configuration that can run.

    Attributes:
        config: the typed values.
        given: what the user set, by key, defaults left out.
        origins: `file:line` or `command line` of each key in `given`.
    """

    config: TrainConfig
    given: dict[str, Any]
    origins: dict[str, str]


def read_config(mode: str, path: str | Path, overrides: list[str] | None = None) -> Resolved:
    """Read, type and check a flat configuration.

    Args:
        mode: the verb, `sft` or `pt`.
        path: the YAML file.
        overrides: `--key value` or `--key=value`, nested as `--datasets.0.path`.

    Raises:
        ConfigError: all problems of the file and the overrides, one a line.
    """
    schema: type = SCHEMAS[mode]
    reader = _Reader(schema, read_yaml(path))
    reader.apply(overrides or [])
    values = reader.read_keys()
    keys = keys_of(schema)
    complete = {name: values.get(name, _placeholder(key)) for name, key in keys.items()}
    config: TrainConfig = schema(**complete)
    for involved, sentence in contradictions(config, values | reader.later):
        if not reader.failed & set(involved):
            reader.complain(reader.place_of(involved), sentence)
    if reader.problems:
        lines = [text for _, text in sorted(reader.problems, key=lambda problem: problem[0])]
        raise ConfigError("\n".join([f"{len(lines)} problems", *lines] if len(lines) > 1 else lines))
    return Resolved(config, values, {name: reader.where(reader.typed[name]) for name in values})


def likely_verb(path: str | Path) -> str:
    """Return the training verb that a configuration is for, where nobody says it.

    That is pt where the model starts from random weights, or all data is named as text; else sft.

    Raises:
        ConfigError: the file cannot be read.
    """
    values = read_yaml(path).values
    entries = _as_list(values.get("datasets"))
    types = [entry.get("type") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return "pt" if values.get("from_scratch") is True or (types and set(types) == {"text"}) else "sft"


def _placeholder(key: Key) -> Any:
    if key.default is not REQUIRED:
        return key.default
    return [] if typing.get_origin(key.type) is list else ""


@dataclass
class _Reader:
    """Collects values, their origins and every problem.

    Attributes:
        later: keys that have not landed, with the values that were asked for.
        failed: keys whose value is missing or wrong; nothing more is said about them.
        problems: line in the file and text; those of the command line come last.
        typed: for each key, the path under which the user typed it.
    """

    schema: type
    file: YamlFile
    problems: list[tuple[float, str]] = field(default_factory=list)
    overridden: set[KeyPath] = field(default_factory=set)
    later: dict[str, Any] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    typed: dict[str, KeyPath] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, line in self.file.duplicates:
            where = f"{self.file.name}:{line}"
            self.problems.append((line, f"{where}: {show_path(path)} is set twice. Keep one of the lines."))
        for name, key in keys_of(self.schema).items():  # so that overrides can count its parts
            if typing.get_origin(key.type) is list and isinstance(self.file.values.get(name), dict):
                self.file.values[name] = [self.file.values[name]]

    def where(self, path: KeyPath) -> str:
        """Say where a value came from; an override of a part does not move the whole."""
        is_new = path and self.file.line_of(path) == 0
        if is_new or any(path[: len(changed)] == changed for changed in self.overridden):
            return COMMAND_LINE
        return self.file.where(path)

    def complain(self, path: KeyPath, sentence: str) -> None:
        """Add a problem at the place of a key."""
        where = self.where(path)
        line = math.inf if where == COMMAND_LINE else self.file.line_of(path)
        self.problems.append((line, f"{where}: {sentence}"))

    def place_of(self, involved: tuple[str | int, ...]) -> KeyPath:
        """Return the path of the first key that the user typed; a path into a list stands for itself."""
        if any(isinstance(part, int) for part in involved):
            return involved
        return next((self.typed[name] for name in involved if name in self.typed), ())

    def apply(self, arguments: list[str]) -> None:
        """Lay overrides over the file's values."""
        overrides, problems = parse_overrides(arguments)
        for path, text in overrides:
            problem = set_nested(self.file.values, path, text)
            if problem:
                problems.append(problem)
            else:
                self.overridden.add(path)
        self.problems += [(math.inf, f"{COMMAND_LINE}: {problem}") for problem in problems]

    def read_keys(self) -> dict[str, Any]:
        """Return the typed values of all flat keys that the user set."""
        keys = keys_of(self.schema)
        values: dict[str, Any] = {}
        for typed, raw in self.file.values.items():
            name = SYNONYMS.get(str(typed), str(typed))
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

    def _read_unknown(self, name: str, raw: Any, keys: dict[str, Key]) -> None:
        for dotted, path, value in _flatten_unknown(name, raw):
            value = parse_yaml(value) if isinstance(value, str) else value
            sentence = not_yet(dotted, value)
            if sentence is None:
                self.complain(path, _unknown_key(dotted, [*keys, *SYNONYMS, *NOT_YET]))
            elif sentence:
                self.typed[dotted] = path
                self.later[dotted] = value
                self.complain(path, f"{dotted} is refused: {sentence}")

    def _read_value(self, key: Key, raw: Any, path: KeyPath, name: str) -> tuple[bool, Any]:
        """Return (whether it can be used, the typed value); complain where it cannot.

        Args:
            key: what is expected.
            raw: what was typed.
            path: where it was typed.
            name: the key's name without list indices, for the tables of not_yet.py.
        """
        shown = show_path(path)
        if raw is None and not accepts_null(key.type):
            default = "" if key.default is REQUIRED else f" Remove the line to use the default, {key.default}."
            self.complain(path, f"{shown} has no value.{default}")
            return False, None
        item_type = next(iter(typing.get_args(key.type)), None)
        if typing.get_origin(key.type) is list:
            raw = _as_list(raw)
        if dataclasses.is_dataclass(item_type) and isinstance(item_type, type):
            return self._read_list(item_type, raw, path)
        if isinstance(raw, str):
            raw = _as_spelt(raw, choices(key.type))
        asked = parse_yaml(raw) if isinstance(raw, str) else raw
        sentence = value_not_yet(name, asked)
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

    def _read_list(self, item_type: type, raw: Any, path: KeyPath) -> tuple[bool, Any]:
        """Read a list of mappings, each one an `item_type`."""
        keys = keys_of(item_type)
        if not isinstance(raw, list):
            self.complain(path, f"{show_path(path)} must be a list of mappings, got {show_value(raw)}.")
            return False, None
        items = []
        for index, entry in enumerate(raw):
            if not isinstance(entry, dict):
                hint = f"{{path: {entry}}}"
                self.complain((*path, index), f"{show_path((*path, index))} must be a mapping, such as {hint}.")
                continue
            values: dict[str, Any] = {}
            for name, value in entry.items():
                child = (*path, index, str(name))
                if name not in keys:
                    self.complain(child, _unknown_key(show_path(child), keys, str(name)))
                    continue
                known, typed = self._read_value(keys[name], value, child, f"datasets.{name}")
                if known:
                    values[name] = typed
            items.append(item_type(**values))  # also where a key of it failed, to check the rest
        return True, items


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


def show_path(path: KeyPath) -> str:
    """Write a path as a user would: `datasets[1].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _unknown_key(shown: str, known: Any, name: str | None = None) -> str:
    name = name or shown
    if name in ALIASES and name == shown:
        return f"{shown} is not a key here. Use {ALIASES[name]}."
    close = nearest(name.replace("-", "_"), known)
    hint = f"Did you mean {shown.removesuffix(name)}{close}?" if close else "`surogate sft --help` lists all keys."
    return f"{shown} is not a key. {hint}"


def _flatten_unknown(name: str, raw: Any) -> Iterator[tuple[str, KeyPath, Any]]:
    """Yield (dotted name, path, value): `distributed: {num_nodes: 2}` is the contract's distributed.num_nodes."""
    if isinstance(raw, dict) and raw and nearest(f"{name}.{next(iter(raw))}", NOT_YET) and not_yet(name, raw) is None:
        for key, value in raw.items():
            yield f"{name}.{key}", (name, key), value
    else:
        yield name, (name,), raw
