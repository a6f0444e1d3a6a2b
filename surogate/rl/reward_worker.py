"""The process in which a reward function runs: `python -m surogate.rl.reward_worker PARENT TARGET FOLDER`.

What is not here: its other end (rewards.py). The one idea: requests and answers are lines of JSON on pipes that only
this module knows; what the reward prints goes to standard error, and what it reads is empty.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surogate.rl.isolation import lockdown
from surogate.rl.isolation.foreign import ForeignCode, describe

_MEMORY_BYTES = 8 << 30
"""Address space of a worker that is locked down; the libraries of the built-in rewards map one or two."""


def main() -> None:
    """Load the reward, tell so, and answer requests until there are no more."""
    parent, target, folder = sys.argv[1:]
    lockdown.die_with(int(parent))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    filename = _filename(target)
    reward: Callable[..., Any] | None = None
    with ForeignCode() as loading:
        reward = load(target)
        if folder:
            _lock_down(folder)
    _send(answers, {"error": None if loading.error is None else describe(loading.error, filename)})
    if reward is None or loading.error is not None:
        return
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        with ForeignCode() as scoring:
            answer = {"rewards": _plain(_call(reward, request["completions"], request["columns"]))}
        if scoring.error is not None:
            answer = {"error": describe(scoring.error, filename)}
        _send(answers, answer)


def load(target: str) -> Callable[..., Any]:
    """Import a reward.

    Args:
        target: `path/file.py:function` or `package.module:function`.

    Raises:
        AttributeError: there is no such function; and whatever the file raises.
    """
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        # At the end: a file of the user's must not stand in for a module of Python.
        sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    reward: Callable[..., Any] = getattr(module, name)
    return reward


def _filename(target: str) -> str | None:
    place = target.rpartition(":")[0]
    return str(Path(place).resolve()) if place.endswith(".py") else None


def _lock_down(folder: str) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_CPU)[1]
    bounds = lockdown.Bounds(
        cpu_seconds=1 << 30 if unlimited == resource.RLIM_INFINITY else unlimited, memory_bytes=_MEMORY_BYTES
    )
    installed = [os.path.realpath(path) for path in sys.path if path]
    readable = [*lockdown.interpreter_files(), *installed]
    namespaces = lockdown.can_have_namespaces(folder)
    lockdown.lock_down(bounds, folder, namespaces=namespaces, readable=readable)


def _call(reward: Callable[..., Any], completions: list[str], columns: dict[str, list[Any]]) -> Any:
    """Call a reward with the columns that it takes."""
    parameters = list(inspect.signature(reward).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return reward(completions, **columns)
    taken = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name in taken and parameter.name not in columns
    ]
    if missing:
        raise TypeError(
            f"the reward takes {', '.join(missing)}, and the data has only the columns {', '.join(columns) or 'none'}"
        )
    return reward(completions, **{name: values for name, values in columns.items() if name in taken})


def _plain(rewards: Any) -> list[Any]:
    """Turn rewards into JSON's types; numbers of numpy and torch become Python's."""
    if hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, list | tuple):
        raise TypeError(f"the reward must return a list of numbers, and returned a {type(rewards).__name__}")
    return [_plain_number(reward.item() if hasattr(reward, "item") else reward) for reward in rewards]


def _plain_number(reward: Any) -> Any:
    if isinstance(reward, int) and abs(reward) > sys.float_info.max:
        return math.inf  # JSON would carry it, digit by digit
    return reward if isinstance(reward, int | float) else repr(reward)


def _send(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
