"""What a check of a configuration yields; the checks themselves are in checks.py and the modules beside it."""

from __future__ import annotations

Contradiction = tuple[tuple[str | int, ...], str]
"""The keys involved, or the path of a list's entry; and the sentence."""
