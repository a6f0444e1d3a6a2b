"""The comparison of mathematical answers; runs in a reward worker.

The one idea: it runs in the worker's main thread, where math-verify's own timeouts work, so a completion that takes
forever to parse is wrong and no more.
"""

from __future__ import annotations

import logging

import math_verify
from math_verify import ExprExtractionConfig, LatexExtractionConfig

# An answer that cannot be parsed is wrong, and no event.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_FROM_COMPLETION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
_MAX_LEN = 20_000
"""Characters of a completion's end that are looked at; the answer stands there."""


def score(completions: list[str], answer: list[str]) -> list[float]:
    """Return 1 for each completion whose answer equals the reference, else 0."""
    return [float(is_equal(completion, gold)) for completion, gold in zip(completions, answer, strict=True)]


def is_equal(completion: str, gold: str) -> bool:
    """Compare the answer in a completion with the reference.

    Raises:
        ValueError: the reference is no mathematics.
    """
    wanted = math_verify.parse(f"\\boxed{{{gold}}}")
    if not wanted:
        raise ValueError(f"the reference answer {gold!r} cannot be read as a number or LaTeX")
    given = math_verify.parse(completion[-_MAX_LEN:], extraction_config=_FROM_COMPLETION)
    return bool(math_verify.verify(wanted, given))
