"""Text of a run as HTML: whatever comes from a file passes through here."""

from __future__ import annotations

from collections.abc import Sequence

from surogate.html_page import text

MAX_SHOWN = 1500
"""Characters of a text that is somebody's or a model's."""


def cut(value: object, most: int = MAX_SHOWN) -> str:
    """Return the same of a long text, without its middle."""
    whole = str(value)
    if len(whole) > most:
        left_out = len(whole) - most
        whole = f"{whole[: most // 2]}\n[… {left_out:,} characters left out …]\n{whole[-most // 2 :]}"
    return text(whole)


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], classes: str = "") -> str:
    """Write a table whose first column names the rows; a cell of None stands for what is not set."""
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    body = "\n".join(f'<tr><th scope="row">{text(first)}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in rows)
    parts = f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="{classes}">{parts}</table></div>'


def _cell(value: object) -> str:
    return '<td class="unset">default</td>' if value is None else f"<td>{cut(value, 400)}</td>"
