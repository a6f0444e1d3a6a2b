"""Reading a flat configuration: a file and overrides -> a typed dataclass, and where each value came from.

What is not here: how one file is read (reader.py), and the three files of `surogate grpo` together (read_grpo.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from surogate.config.checks import contradictions
from surogate.config.checks_grpo import orch_alone, orch_contradictions, train_alone
from surogate.config.checks_infer import infer_alone
from surogate.config.contradiction import Contradiction
from surogate.config.flat import SCHEMAS
from surogate.config.flat_grpo import SCHEMAS_GRPO
from surogate.config.not_yet import ROWS, Contract
from surogate.config.not_yet_grpo import CONTRACTS_GRPO
from surogate.config.overrides import parse_overrides
from surogate.config.reader import COMMAND_LINE, Reader
from surogate.config.settle import settle_orch
from surogate.config.yaml_file import parse_yaml, read_yaml
from surogate.errors import ConfigError

ConfigT = TypeVar("ConfigT")
ConfigT_co = TypeVar("ConfigT_co", covariant=True)


@dataclass(frozen=True)
class Resolved(Generic[ConfigT_co]):
    """A configuration that can run.

    Attributes:
        config: the typed values.
        given: what the user set, by key, defaults left out.
        origins: `file:line` or `command line` of each key in `given`.
    """

    config: ConfigT_co
    given: dict[str, Any]
    origins: dict[str, str]


@dataclass(frozen=True)
class _Mode:
    """Keys, what else may be typed, what cannot run, and what a key that was left out takes from others."""

    schema: type
    contract: Contract
    contradictions: Callable[[Any, dict[str, Any]], Iterator[Contradiction]]
    settle: Callable[[Any], Any] = lambda config: config


_MODES = {
    **{verb: _Mode(schema, ROWS, contradictions) for verb, schema in SCHEMAS.items()},
    "grpo-train": _Mode(SCHEMAS_GRPO["train"], CONTRACTS_GRPO["train"], train_alone),
    "grpo-infer": _Mode(SCHEMAS_GRPO["infer"], CONTRACTS_GRPO["infer"], infer_alone),
    "grpo-orch": _Mode(SCHEMAS_GRPO["orch"], CONTRACTS_GRPO["orch"], orch_alone, settle_orch),
    "env-check": _Mode(SCHEMAS_GRPO["orch"], CONTRACTS_GRPO["orch"], orch_contradictions),
}


def read_config(mode: str, path: str | Path, overrides: list[str] | None = None) -> Resolved[Any]:
    """Read, type and check a flat configuration.

    Args:
        mode: the verb, `sft`, `pt`, or one of `grpo-train`, `grpo-infer` and `grpo-orch` for a file by itself.
        path: the YAML file.
        overrides: `--key value` or `--key=value`, nested as `--datasets.0.path`.

    Raises:
        ConfigError: all problems of the file and the overrides, one a line.
    """
    schema, contract, check = _MODES[mode].schema, _MODES[mode].contract, _MODES[mode].contradictions
    reader = Reader(schema, read_yaml(path), contract)
    parsed, problems = parse_overrides(overrides or [])
    reader.override(parsed)
    values = reader.read_keys()
    config = reader.build(values)
    reader.check(check(config, values | reader.nested | reader.later))
    found = [*reader.problems, *((math.inf, f"{COMMAND_LINE}: {problem}") for problem in problems)]
    raise_problems([text for _, text in sorted(found, key=lambda problem: problem[0])])
    return resolved(reader, _MODES[mode].settle(config), values)


def resolved(reader: Reader, config: ConfigT, values: dict[str, Any]) -> Resolved[ConfigT]:
    """Return a configuration with the place of each value that the user set."""
    return Resolved(config, values, {name: reader.where(reader.typed[name]) for name in values})


def raise_problems(lines: list[str]) -> None:
    """Raise all problems together, where there are any.

    Raises:
        ConfigError: one problem a line.
    """
    if lines:
        raise ConfigError("\n".join([f"{len(lines)} problems", *lines] if len(lines) > 1 else lines))


def likely_verb(path: str | Path) -> str:
    """Return the training verb that a configuration is for, where nobody says it.

    That is pt where the model starts from random weights, or all data is named as text; else sft.

    Raises:
        ConfigError: the file cannot be read.
    """
    values = read_yaml(path).values
    entries = values.get("datasets")
    entries = parse_yaml(entries) if isinstance(entries, str) else entries
    entries = [entries] if isinstance(entries, dict) else entries
    types = [entry.get("type") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return "pt" if values.get("from_scratch") is True or (types and set(types) == {"text"}) else "sft"
