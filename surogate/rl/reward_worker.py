"""The process in which a reward function runs: `python -m surogate.rl.reward_worker PARENT TARGET FOLDER`.

What is not here: its other end (rewards.py). The one idea: requests and answers are lines of JSON on pipes that only
this module knows; what the reward prints goes to standard error, and what it reads is empty.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surogate.foreign import ForeignCode, describe, load_file
from surogate.rl.isolation import lockdown

_MEMORY_BYTES = 4 << 30
"""Address space of a worker that is locked down; the libraries of the built-in rewards map one or two."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


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
            _silence()
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
        _send(answers, {**answer, "token": request["token"]})


def load(target: str) -> Callable[..., Any]:
    """Import a reward.

    Args:
        target: `path/file.py:function` or `package.module:function`.

    Raises:
        AttributeError: there is no such function; and whatever the file raises.
    """
    place, _, name = target.rpartition(":")
    module = load_file(place) if place.endswith(".py") else importlib.import_module(place)
    reward: Callable[..., Any] = getattr(module, name)
    return reward


def _filename(target: str) -> str | None:
    place = target.rpartition(":")[0]
    return str(Path(place).resolve()) if place.endswith(".py") else None


def _silence() -> None:
    """Print nothing from now on: a log could be filled, and one that is a large file already would end the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


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
    """Call a reward with the columns that it takes.

    Raises:
        TypeError: it takes no completions, or what the data does not have; and whatever it raises.
    """
    parameters = list(inspect.signature(reward).parameters.values())
    named = {parameter.name: parameter for parameter in parameters if parameter.kind in _BY_NAME}
    given: dict[str, Any] = {**columns, "completions": completions}
    first: list[Any] = []
    if "completions" not in named:
        given, first = columns, [completions]
        if not parameters or parameters[0].kind not in _BY_PLACE:
            raise TypeError("the reward takes no completions; write it as f(completions, **columns)")
        if parameters[0].name in columns and parameters[0].name in named:
            raise TypeError(
                f"the reward's first parameter is given the completions, and {parameters[0].name} is a column of the "
                "data; write it as f(completions, **columns)"
            )
        named.pop(parameters[0].name, None)
    missing = [name for name, parameter in named.items() if parameter.default is parameter.empty and name not in given]
    if missing:
        raise TypeError(
            f"the reward takes {', '.join(missing)}, and the data has only the columns {', '.join(columns) or 'none'}"
        )
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return reward(*first, **{name: values for name, values in given.items() if takes_all or name in named})


def _plain(rewards: Any) -> list[Any]:
    """Turn rewards into JSON's types; numbers of numpy and torch become Python's."""
    if hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if inspect.iscoroutine(rewards):
        rewards.close()
        raise TypeError("the reward is a coroutine function; write it with def, not async def")
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
