"""Short word problems with whole-number answers, made from templates: what `math` asks where no data is given.

The one idea: as in arithmetic.py a problem belongs to `train` or `held_out` by a hash of what must be computed; names
and things don't count, so the same sums in another dress are not in the other split.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Literal

_NAMES = ("Ada", "Bruno", "Chidi", "Dalia", "Emil", "Farah", "Goran", "Hana", "Iris", "Jonas", "Keiko", "Luis")
_THINGS = ("apples", "books", "marbles", "pencils", "stamps", "postcards", "buttons", "shells", "tickets", "candles")

_Numbers = tuple[int, ...]
_Template = tuple[str, Callable[[random.Random], _Numbers], Callable[[_Numbers], int]]


def _up_to(*limits: int) -> Callable[[random.Random], _Numbers]:
    return lambda rng: tuple(rng.randint(2, limit) for limit in limits)


def _with_rest(rng: random.Random) -> _Numbers:
    boxes, each = rng.randint(2, 12), rng.randint(3, 15)
    return boxes, each, rng.randint(1, boxes * each - 1)


def _even_share(rng: random.Random) -> _Numbers:
    friends, each = rng.randint(2, 9), rng.randint(2, 12)
    return friends * each, friends


_TEMPLATES: tuple[_Template, ...] = (
    ("{a} has {0} {things}. {b} gives {a} {1} more. How many {things} does {a} have now?", _up_to(60, 60), sum),
    (
        "{a} fills {0} boxes with {1} {things} each. How many {things} are in the boxes?",
        _up_to(12, 15),
        lambda n: n[0] * n[1],
    ),
    (
        "{a} buys {0} boxes of {1} {things} and gives {2} of the {things} to {b}. How many {things} does {a} keep?",
        _with_rest,
        lambda n: n[0] * n[1] - n[2],
    ),
    (
        "{a} shares {0} {things} equally among {1} friends. How many {things} does each friend get?",
        _even_share,
        lambda n: n[0] // n[1],
    ),
    (
        "{a} has {0} {things} and {b} has {1} times as many. How many {things} do they have together?",
        _up_to(20, 6),
        lambda n: n[0] * (n[1] + 1),
    ),
    (
        "A shop sells {0} {things} on Monday, {1} more than that on Tuesday, and as many on Wednesday as on both days "
        "together. How many {things} does it sell on Wednesday?",
        _up_to(30, 20),
        lambda n: 2 * n[0] + n[1],
    ),
    (
        "{a} saves {0} coins each week. After {1} weeks {a} spends {0} coins on {things}. How many coins are left?",
        _up_to(15, 12),
        lambda n: n[0] * (n[1] - 1),
    ),
    (
        "A train has {0} cars with {1} seats each. {2} seats are taken. How many seats are free?",
        _with_rest,
        lambda n: n[0] * n[1] - n[2],
    ),
)


def word_problems(
    num_examples: int, seed: int, split: Literal["train", "held_out"], held_out_fraction: float
) -> list[tuple[str, int]]:
    """Make different problems with their answers, in an order that only the arguments decide.

    Returns:
        At most num_examples; fewer where there are not so many.
    """
    rng = random.Random(f"word problems {seed}")
    found: dict[tuple[int, _Numbers], tuple[str, int]] = {}
    for _ in range(100 * num_examples):
        if len(found) == num_examples:
            break
        which = rng.randrange(len(_TEMPLATES))
        text, draw, answer = _TEMPLATES[which]
        numbers = draw(rng)
        one, other = rng.sample(_NAMES, 2)
        things = rng.choice(_THINGS)
        digest = hashlib.sha256(f"{which} {numbers}".encode()).digest()
        is_held_out = int.from_bytes(digest[:8], "big") < held_out_fraction * 2**64
        if is_held_out == (split == "held_out") and (which, numbers) not in found:
            found[which, numbers] = text.format(*numbers, a=one, b=other, things=things), answer(numbers)
    return list(found.values())
