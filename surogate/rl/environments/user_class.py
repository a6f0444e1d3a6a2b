"""An Environment of the user's own: `path/file.py:Class`, for what a reward function alone cannot do.

The one idea: the class runs in the process of the orchestrator and is trusted; a function of a file is not
(custom.py), it runs in a process that can be ended.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate.errors import ConfigError
from surogate.rl.environments.base import Environment


def is_class(target: str) -> bool:
    """Whether `path/file.py:name` names a class; the file is parsed, not run."""
    place, _, name = target.rpartition(":")
    try:
        body = ast.parse(Path(place).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return False  # custom.check_target says what is wrong
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in body)


def build_user_class(name: str, target: str, args: Mapping[str, Any]) -> Environment:
    """Import a file and build its class as `Class(name, **args)`.

    Args:
        name: of the environment.
        target: `path/file.py:Class`.
        args: of orch.yaml.

    Raises:
        ConfigError: the file cannot be imported, the class is no Environment, or does not take the arguments.
    """
    place, _, class_name = target.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"surogate_user_{Path(place).stem}", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"environment {target!r}: the file cannot be imported: {error}.") from error
    kind = getattr(module, class_name)
    if not (isinstance(kind, type) and issubclass(kind, Environment)):
        raise ConfigError(
            f"environment {target!r}: {class_name} is no Environment; derive it from SingleTurnEnvironment or "
            "MultiTurnEnvironment of surogate.rl.environments, or name a function that scores completions."
        )
    try:
        return kind(name, **args)
    except TypeError as error:
        raise ConfigError(f"environment {target!r} does not take the arguments {dict(args)}: {error}.") from error
