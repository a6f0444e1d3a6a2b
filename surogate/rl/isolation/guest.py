"""What runs inside a sandbox: a program, the functions of a solution, or the tests of one.

The one idea: tests never run in the interpreter of the solution that they judge. The process of the tests holds no code
of the solution; it calls the solution's functions over two pipes, and gets plain values back (wire.py). Both processes
are locked down before the first foreign line runs.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from surogate.foreign import ForeignCode, describe
from surogate.rl.isolation import landlock, lockdown
from surogate.rl.isolation.wire import decode, encode

_MAX_LINE = 4 << 20
"""Bytes of a message; a solution that says more at once has failed."""


def main(task_fd: int) -> None:
    """Read a task as JSON from a file descriptor, lock this process down and do it."""
    with open(task_fd, "rb") as file:
        task = json.load(file)
    lockdown.die_with(task["parent"])
    if task["role"] == "probe":
        probe(task["folder"])
        return
    os.environ.update(HOME=task["folder"], TMPDIR=task["folder"], PATH="")
    bounds = lockdown.Bounds(**task["bounds"])
    readable = lockdown.interpreter_files()
    lockdown.lock_down(bounds, task["folder"], namespaces=task["namespaces"], readable=readable)
    {"program": run_program, "solution": serve_solution, "tests": run_tests}[task["role"]](task)


def probe(folder: str) -> None:
    """Print what this machine offers."""
    found = {
        "landlock": landlock.abi() > 0,
        "seccomp": lockdown.can_have_seccomp(),
        "namespaces": lockdown.can_have_namespaces(folder),
    }
    print(json.dumps(found))


def run_program(task: Mapping[str, Any]) -> None:
    """Run a program as __main__, with this process's standard input and output."""
    exec(compile(task["code"], "<program>", "exec"), {"__name__": "__main__", "__builtins__": builtins})


def serve_solution(task: Mapping[str, Any]) -> NoReturn:
    """Load a solution and do what the process of the tests asks of its functions."""
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    requests, answers = os.fdopen(task["requests"], "rb"), os.fdopen(task["answers"], "wb")
    namespace: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}
    with ForeignCode() as loading:
        exec(compile(task["code"], "<solution>", "exec"), namespace)
    if loading.error is None:
        public = {name: value for name, value in namespace.items() if not name.startswith("_")}
        first: dict[str, Any] = {"value": encode(public, keep)}
    else:
        first = {"error": [type(loading.error).__name__, describe(loading.error, "<solution>")]}
    _send(answers, first)
    for line in requests:
        request = json.loads(line)
        with ForeignCode() as attempt:
            arguments = decode(request["arguments"], objects.__getitem__)
            value = _perform(request["do"], objects[request["object"]], arguments)
            answer = {"value": encode(value, keep), "arguments": encode(arguments, keep)}
        if attempt.error is not None:
            answer = {"error": [type(attempt.error).__name__, describe(attempt.error)]}
        _send(answers, answer)
    os._exit(0)


def _perform(do: str, target: Any, arguments: list[Any]) -> Any:
    if do == "call":
        positional, named = arguments
        return target(*positional, **named)
    simple: dict[str, Callable[..., Any]] = {
        "get": getattr,
        "item": lambda x, key: x[key],
        "len": len,
        "iterate": iter,
        "next": next,
    }
    return simple[do](target, *arguments)


def run_tests(task: Mapping[str, Any]) -> None:
    """Run tests one after the other and report each as a line of JSON on standard output."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    loading = ForeignCode()
    with loading:
        solution = _Solution(task["requests"], task["answers"])
        names = solution.names()
        meant = set(task["functions"])
        for name, value in names.items():
            # A solution's own abs, or its own math, must not decide what `abs(f(1) - math.pi) < 1e-6` means.
            if name in sys.stdlib_module_names and name not in meant:
                namespace[name] = importlib.import_module(name)
            elif not hasattr(builtins, name) or name in meant:
                namespace[name] = value
    for test in task["tests"]:
        attempt = ForeignCode()
        with attempt:
            if loading.error is not None:
                raise loading.error
            exec(compile(test, "<test>", "exec"), namespace)
        error = None if attempt.error is None else describe(attempt.error)
        report.write(json.dumps({"passed": error is None, "error": error}) + "\n")
        report.flush()
    report.close()
    sys.stdout.flush()
    os._exit(0)


class _Solution:
    """The solution's process, as the tests see it."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = os.fdopen(requests, "wb"), os.fdopen(answers, "rb")

    def names(self) -> dict[str, Any]:
        """Return what the solution defines."""
        names = self._receive([])
        if type(names) is not dict or not all(type(name) is str and name.isidentifier() for name in names):
            raise ValueError("the solution's process did not tell its names")
        return names

    def ask(self, do: str, target: int, *arguments: Any) -> Any:
        """Let the solution's process do something with one of its objects."""
        sent = list(arguments)
        _send(self._requests, {"do": do, "object": target, "arguments": encode(sent, _number)})
        return self._receive(sent)

    def _receive(self, sent: list[Any]) -> Any:
        line = self._answers.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise RuntimeError("the solution's process ended, or said too much")
        answer = json.loads(line)
        if "error" in answer:
            raise _exception(*answer["error"])
        if sent and sent[0]:
            _update(sent[0], decode(answer["arguments"], self._remote)[0])
        return decode(answer["value"], self._remote)

    def _remote(self, number: int) -> _Remote:
        return _Remote(self, int(number))


class _Remote:
    """An object of the solution: it can be called, asked and iterated over, and equals nothing but itself."""

    def __init__(self, solution: _Solution, number: int) -> None:
        self.__dict__.update(_solution=solution, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._solution.ask("call", self._number, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._solution.ask("get", self._number, name)

    def __getitem__(self, key: Any) -> Any:
        return self._solution.ask("item", self._number, key)

    def __len__(self) -> int:
        return int(self._solution.ask("len", self._number))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._solution.ask("iterate", self._number)
        while True:
            try:
                item = self._solution.ask("next", iterator._number)
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return self._solution.ask("next", self._number)

    def __bool__(self) -> bool:
        raise TypeError("an object of the solution is neither true nor false here")


def _number(value: Any) -> int:
    if type(value) is _Remote:
        return int(value._number)
    raise TypeError(f"a test can pass plain values to a solution, and no {type(value).__name__}")


def _update(arguments: Any, changed: Any) -> None:
    """Give lists, dicts and sets that were passed the content that the solution left in them."""
    for before, after in zip(arguments, changed, strict=True) if type(arguments) is list else ():
        if type(before) is not type(after):
            continue
        if type(before) is list:
            before[:] = after
        elif type(before) in (dict, set) and before != after:
            before.clear()
            before.update(after)


def _exception(name: Any, message: Any) -> BaseException:
    """Return the built-in exception of that name, so that a test can expect it."""
    kind = getattr(builtins, str(name), None)
    text = str(message).partition(": ")[2] or str(message)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(text)
    return RuntimeError(f"the solution raised {message}")


def _send(file: Any, message: Mapping[str, Any]) -> None:
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()
