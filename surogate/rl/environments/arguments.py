"""Arguments of an environment: the mapping under `args:` in orch.yaml, checked against a dataclass.

What is not here: which environments there are (registry.py). The one idea: an argument's name, type, default and manual
stand once, in the environment's dataclass; every problem of a mapping is reported at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError

from surogate.config.keys import expected, keys_of, nearest, parse_value, show_value
from surogate.errors import ConfigError

T = TypeVar("T")


def read_arguments(schema: type[T], args: Mapping[str, Any], env_id: str) -> T:
    """Turn the arguments of an environment into its dataclass.

    Args:
        schema: a dataclass; fields without a default are required.
        args: as the user typed them.
        env_id: in messages.

    Raises:
        ConfigError: an argument is unknown, missing or of a wrong type, or the dataclass refuses it.
    """
    fields: type = schema
    keys = keys_of(fields)
    problems, values = [], {}
    for name, raw in args.items():
        if name not in keys:
            close = nearest(str(name), keys)
            hint = f" Did you mean {close!r}?" if close else ""
            problems.append(f"{name!r} is no argument of it.{hint} Allowed: {', '.join(keys) or 'none'}.")
            continue
        try:
            values[name] = parse_value(keys[name].type, raw)
        except (ArgumentError, argparse.ArgumentError, TypeError, ValueError):
            problems.append(f"{name} is {show_value(raw)}; it must be {expected(keys[name].type)}.")
    missing = [
        field.name
        for field in dataclasses.fields(fields)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name not in args
    ]
    if missing:
        problems.append(f"{', '.join(missing)} must be set.")
    if not problems:
        try:
            return schema(**values)
        except ValueError as error:
            problems.append(str(error))
    raise ConfigError("\n".join(f"environment {env_id!r}: {problem}" for problem in problems))
