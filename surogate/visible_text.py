"""Text that is not to be trusted, made safe to look at, in a terminal and on a page.

It may hold escape sequences, characters that reverse the reading direction, or half of one; they are shown as signs.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Invisible, but part of how emoji and several scripts are written."""

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format, surrogate, line separator, paragraph separator."""


def visible(text: str) -> str:
    """Return a text with what cannot be seen, or does harm, shown as signs; line ends and tabs stay."""
    return "".join(map(_visible_character, text)) if not text.isprintable() else text


def _visible_character(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
