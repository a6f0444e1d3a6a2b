"""An Environment of the user's own: `path/file.py:Class`, for what a reward function alone cannot do.

The one idea: the class runs in the process of the orchestrator and is trusted; a function of a file is not
(custom.py), it runs in a process that can be ended.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import Any

from surogate.config.user_file import failure, import_user_file
from surogate.errors import ConfigError, SurogateError
from surogate.foreign import ForeignCode
from surogate.rl.environments.base import Environment


def build_user_class(name: str, target: str, args: Mapping[str, Any]) -> Environment:
    """Import a file and build its class as `Class(name, **args)`.

    Args:
        name: of the environment.
        target: `path/file.py:Class`.
        args: of orch.yaml.

    Raises:
        ConfigError: the file cannot be imported, the class is no Environment, or cannot be built with the arguments.
        SurogateError: what its constructor says so.
    """
    place, _, class_name = target.rpartition(":")
    kind = getattr(import_user_file(place, f"environment {target!r}"), class_name)
    if not (isinstance(kind, type) and issubclass(kind, Environment)):
        raise ConfigError(
            f"environment {target!r}: {class_name} is no Environment; derive it from SingleTurnEnvironment or "
            "MultiTurnEnvironment of surogate.rl.environments, or name a function that scores completions."
        )
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ConfigError(f"environment {target!r}: {class_name} lacks {', '.join(missing)}, which it must define.")
    building = ForeignCode()
    environment: Any = None
    with building:
        environment = kind(name, **args)
        len(environment)
    if building.error is not None:
        raise _refusal(building.error, environment, target, args)
    if getattr(environment, "name", None) != name:
        raise ConfigError(
            f"environment {target!r}: its name is {getattr(environment, 'name', None)!r} and must be {name!r}, the one "
            "that it was built with; let __init__ call super().__init__(name)."
        )
    assert isinstance(environment, Environment)
    return environment


def _refusal(error: BaseException, environment: Any, target: str, args: Mapping[str, Any]) -> BaseException:
    if isinstance(error, SurogateError):
        return error
    place, _, class_name = target.rpartition(":")
    reached = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if environment is None and isinstance(error, TypeError) and os.path.realpath(place) not in reached:
        return ConfigError(f"environment {target!r} does not take the arguments {dict(args)}: {error}.")
    what = "cannot be built" if environment is None else "has no length"
    return failure(error, f"environment {target!r}: {class_name} {what}", place)
