"""The arguments that vLLM's engine has, read from its source: importing vLLM would take seconds, and torch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_CLASSES = ("EngineArgs", "AsyncEngineArgs")


@cache
def vllm_arguments() -> frozenset[str] | None:
    """Return the names of the engine's arguments in the installed version; None where they cannot be told."""
    found = find_spec("vllm")
    if found is None or found.origin is None:
        return None
    try:
        tree = ast.parse((Path(found.origin).parent / "engine/arg_utils.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name in _CLASSES]
    fields = [field.target for body in bodies for field in body if isinstance(field, ast.AnnAssign)]
    return frozenset(f.id for f in fields if isinstance(f, ast.Name) and not f.id.startswith("_")) or None
