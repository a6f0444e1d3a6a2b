"""Command lines without what nobody else may see."""

from __future__ import annotations

import re

_SECRET = re.compile(r"token$|secret|password|api_?key", re.IGNORECASE)


def without_secrets(arguments: list[str]) -> list[str]:
    """Return a command line with the values of secret options, such as --hub_token, blotted out."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_secret = name.startswith("--") and bool(_SECRET.search(name))
        shown.append("***" if hide_next else f"{name}=***" if is_secret and equals else argument)
        hide_next = is_secret and not equals
    return shown
