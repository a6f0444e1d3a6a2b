"""YAML files with the line of every key. Shared by the flat and the nested form.

Values come from jsonargparse's own loader, which reads 2e-4 as a number and constructs no Python objects; the line
numbers and the duplicate keys, which a loader forgets, come from the same text composed once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from surogate.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlFile:
    """One parsed file.

    Attributes:
        name: path of the file as the user typed it.
        values: the mapping at its top.
        lines: line of each key and list item, by its path.
        duplicates: paths of keys that appear more than once, with the line of the later one.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    duplicates: list[tuple[KeyPath, int]]

    def line_of(self, path: KeyPath) -> int:
        """Return the line of a key, or of the nearest thing around it that has one; 0 for the whole file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def where(self, path: KeyPath) -> str:
        """Say `file:line` of a key."""
        line = self.line_of(path)
        return f"{self.name}:{line}" if line else self.name


def read_yaml(path: str | Path) -> YamlFile:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not a text file in UTF-8.") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = get_loader("yaml")(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}.") from error
    if node is None:
        return YamlFile(name, {}, {}, [])
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name} must hold `key: value` lines.")
    if not isinstance(values, dict):  # jsonargparse hands back the text where no key has a value
        values = {key.value: None for key, _ in node.value}
    _keep_clock_times_(node, values)
    lines: dict[KeyPath, int] = {}
    duplicates: list[tuple[KeyPath, int]] = []
    _index_lines(node, (), lines, duplicates)
    return YamlFile(name, values, lines, duplicates)


def parse_yaml(text: str) -> Any:
    """Parse a value typed on the command line."""
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        return text


def _keep_clock_times_(node: yaml.Node, values: Any) -> None:
    """Put `24:00:00` back where YAML 1.1 has read it as a number to the base of 60."""
    if isinstance(node, yaml.MappingNode) and isinstance(values, dict):
        children = [(key.value, child) for key, child in node.value]
    elif isinstance(node, yaml.SequenceNode) and isinstance(values, list):
        children = list(enumerate(node.value))
    else:
        return
    for key, child in children:
        if isinstance(child, yaml.ScalarNode) and child.style is None and isinstance(_item(values, key), int | float):
            if ":" in child.value:
                values[key] = child.value
        else:
            _keep_clock_times_(child, _item(values, key))


def _item(values: Any, key: Any) -> Any:
    return values[key] if isinstance(values, list) else values.get(key)


def _index_lines(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], duplicates: list[tuple[KeyPath, int]]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value)
            line = key.start_mark.line + 1
            if child in lines:
                duplicates.append((child, line))
            lines[child] = line
            _index_lines(value, child, lines, duplicates)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _index_lines(item, (*path, index), lines, duplicates)
