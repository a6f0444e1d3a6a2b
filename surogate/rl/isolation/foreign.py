"""ForeignCode: a block that runs somebody else's code, such as a user's reward or a test of a data set.

The one idea: such code may raise anything, SystemExit included, and what it raises is a result, not an end.
"""

from __future__ import annotations

import traceback
from types import TracebackType

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
