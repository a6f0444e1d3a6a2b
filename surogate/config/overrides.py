"""Overrides on the command line: `--key value`, `--key=value`, `--datasets.0.path rows.jsonl`.

What is not here: types. An override is text laid over the values of the file, and is typed with them (read.py).
"""

from __future__ import annotations

from typing import Any

from surogate.config.yaml_file import KeyPath


def parse_overrides(arguments: list[str]) -> tuple[list[tuple[KeyPath, str]], list[str]]:
    """Split arguments into (path, text) pairs, and sentences about those that are not overrides."""
    overrides: list[tuple[KeyPath, str]] = []
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            problems.append(f"{argument!r} stands alone. Overrides are written --key value.")
        elif equals:
            overrides.append((_path(name), text))
        elif rest and not rest[0].startswith("--"):
            overrides.append((_path(name), rest.pop(0)))
        else:
            problems.append(f"--{name} has no value. Write --{name} value, for example --{name} true.")
    return overrides, problems


def _path(name: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def set_nested(values: dict[str, Any], path: KeyPath, text: str, prefix: str = "") -> str | None:
    """Set a value inside nested mappings and lists, in place; one past the end of a list appends.

    Args:
        values: is changed.
        path: where in it.
        text: the value as it was typed.
        prefix: what stood in front of the path on the command line, for the sentence.

    Returns:
        A sentence where the path leads nowhere, else None.
    """
    here: Any = values
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(here, list) and isinstance(part, int) and part <= len(here):
            if part == len(here):
                here.append({})
        elif isinstance(here, dict) and isinstance(part, str):
            if not is_last and here.get(part) is None:
                here[part] = [] if isinstance(path[depth + 1], int) else {}
        else:
            shown = ".".join(map(str, [*([prefix] if prefix else []), *path[: depth + 1]]))
            return f"--{shown} does not exist. List items are counted from 0 and a new one goes at the end."
        if is_last:
            here[part] = text
        else:
            here = here[part]
    return None
