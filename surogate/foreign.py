"""Somebody else's code, such as a user's reward or a test of a data set: importing a file of it, and running a block.

What is not here: keeping it from anything (rl/isolation). The one idea: such code may raise anything, SystemExit
included, and what it raises is a result, not an end. Little is imported, since the sandbox's processes load this.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import ModuleType, TracebackType

_MAX_LEN = 400
"""Characters of a message."""


class ForeignCode:
    """A block whose exception is kept instead of going on.

    Attributes:
        error: what was raised, None where nothing was.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> ForeignCode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


def describe(error: BaseException, filename: str | None = None) -> str:
    """Say an exception in one line: type, message, and the last line of a file that was reached, where a file is named.

    Args:
        error: any exception.
        filename: as the code of interest was compiled.
    """
    said = ForeignCode()
    text = ""
    with said:
        text = " ".join(str(error).split())
    message = f"{type(error).__name__}: {text[:_MAX_LEN]}" if text else type(error).__name__
    if filename is None:
        return message
    if isinstance(error, SyntaxError) and error.filename == filename:
        return f"{message} (line {error.lineno})"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    return f"{message} (line {lines[-1].lineno}: {(lines[-1].line or '').strip()})" if lines else message


def load_file(path: str) -> ModuleType:
    """Import a file, once a process; whatever it raises goes on.

    The module gets a name that no other has, and is found by it, as dataclasses and pickle need. The file's folder
    stays on the path, for its neighbours; at the end, since they must not stand in for a module of Python.
    """
    import hashlib
    import importlib.util

    place = os.path.realpath(path)
    folder, file = os.path.split(place)
    stem = "".join(letter if letter.isalnum() else "_" for letter in file.removesuffix(".py"))
    name = f"surogate_user_{stem}_{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with ForeignCode() as loading:
        spec.loader.exec_module(module)
    if loading.error is not None:
        del sys.modules[name]
        raise loading.error
    return module
