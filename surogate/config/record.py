"""surogate.yaml: the flat configuration as it was resolved, with the origin of every value beside it.

It holds what the user set and nothing else, so that it reruns under `surogate sft` with the same meaning.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from surogate.config.read import Resolved

SECRET_KEYS = {"hub_token"}
"""Keys that no file may hold."""


def to_yaml(resolved: Resolved[Any], verb: str) -> str:
    """Write a resolved configuration as YAML, secrets left out."""
    lines = [f"# What `surogate {verb}` was asked for; every other key has its default."]
    for key, value in resolved.given.items():
        if key not in SECRET_KEYS:
            first, *rest = _dump(key, value).splitlines()
            lines += [f"{first}  # {resolved.origins[key]}", *rest]
    return "\n".join(lines) + "\n"


def _dump(key: str, value: Any) -> str:
    plain = _plain(value)
    if isinstance(value, str) and "\n" in value:
        return f"{key}: {json.dumps(value, ensure_ascii=False)}"  # on one line, so that a comment can follow
    if isinstance(plain, list) and any(isinstance(item, dict) for item in plain):
        text: str = yaml.safe_dump({key: plain}, **_STYLE)
        return text
    flow: str = yaml.safe_dump({key: plain}, **_STYLE, default_flow_style=True)
    return flow.strip().removeprefix("{").removesuffix("}")


_STYLE: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 10_000}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        default = type(value)()
        changed = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: _plain(item) for name, item in changed.items() if item != getattr(default, name)}
    return value
