"""`file.py:name`: a function or class of a user's own, found without running the file, and imported.

The one idea: whatever is wrong with a user's file is one sentence with the file, the line and the key that names it.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from surogate.config.keys import nearest
from surogate.errors import ConfigError
from surogate.foreign import ForeignCode, describe, load_file


def is_file_target(target: str) -> bool:
    """Whether `path/file.py:name` is meant, and not an id or `package.module:name`."""
    return target.rpartition(":")[0].endswith(".py")


def why_missing(target: str) -> str | None:
    """Return what keeps `path/file.py:name` from being found, as a sentence; None where it is there.

    The file is parsed, not run.
    """
    place, _, name = target.rpartition(":")
    if not Path(place).is_file():
        return f"there is no file {place!r} (looked in {Path.cwd()})."
    try:
        body = ast.parse(Path(place).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError) as error:
        return f"{place} is not Python: {error}."
    names = set(_names(body))
    if name in names or "*" in names:
        return None
    own = sorted(node.name for node in _statements(body) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    close = nearest(name, own)
    hint = f" Did you mean {close!r}?" if close else ""
    return f"{place} has no function {name!r}.{hint} It has: {', '.join(own) or 'none'}."


def names_class(target: str) -> bool:
    """Whether `path/file.py:name` names a class; the file is parsed, not run."""
    place, _, name = target.rpartition(":")
    try:
        body = ast.parse(Path(place).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return False  # why_missing says what is wrong
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in _statements(body))


def import_user_file(place: str, subject: str) -> ModuleType:
    """Import a file of the user's; once a process.

    Args:
        place: its path.
        subject: what names it, at the beginning of messages.

    Raises:
        ConfigError: the file raises something, whatever it is.
    """
    loading = ForeignCode()
    module = None
    with loading:
        module = load_file(place)
    if module is None or loading.error is not None:
        raise failure(loading.error, f"{subject}: {place} cannot be imported", place)
    return module


def failure(error: BaseException | None, what: str, place: str) -> BaseException:
    """Return what code of a user's raised as an error for the user, or the exception itself where it ends the program.

    Args:
        error: that was raised.
        what: failed, as the beginning of a sentence.
        place: the user's file.
    """
    assert error is not None
    if not isinstance(error, Exception | SystemExit):
        return error  # the user's own Ctrl-C
    told = ConfigError(f"{what}: {describe(error, os.path.realpath(place))}.")
    told.__cause__ = error
    return told


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that define names of the module, also those within `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for inner in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, inner, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that a module defines; `*` where it imports all names of another."""
    for node in _statements(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name))
