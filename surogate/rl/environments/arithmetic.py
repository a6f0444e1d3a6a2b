"""Sums, differences and products of small whole numbers: the environment that a small model learns in minutes.

The one idea: a question belongs to `train` or to `held_out` by a hash of what is asked, where the order of the terms of
a sum or product does not count; so whatever the seeds and sizes, no question of one split, nor its mirror, is in the
other.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, OpenUnitInterval, PositiveInt

from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.types import Example, Message

Operation = Literal["+", "-", "*"]

_SHOTS = (((3, 4), ("+",)), ((9, 2), ("-",)), ((2, 3), ("*",)))
"""The solved examples of a plain prompt; they are questions of no split, since their answers stand in the prompt."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MAX_ENUMERATED = 50_000
"""Up to so many questions, all are made and shuffled; of more, some are drawn."""


@dataclass(frozen=True, kw_only=True)
class ArithmeticArgs:
    """Arguments of `arithmetic`."""

    num_examples: PositiveInt = 1000
    """Most questions; there are fewer where there are not so many different ones."""
    seed: int = 0
    """Which questions, and in which order."""
    split: Literal["train", "held_out"] = "train"
    """Two parts without a common question."""
    held_out_fraction: OpenUnitInterval = 0.2
    """Share of all questions that is held out; the same number in both parts."""
    operations: list[Operation] | None = None
    """Operations to draw from. Default: + only."""
    terms: PositiveInt | list[PositiveInt] = 2
    """Numbers in a question, or [fewest, most]."""
    digits: PositiveInt | list[PositiveInt] = 1
    """Digits of each number, or [fewest, most]."""
    allow_negative: bool = False
    """Ask for results below 0 too."""
    prompt: Literal["plain", "chat"] = "plain"
    """plain: three solved examples and the question as text, for any model; chat: a question in words."""
    partial_credit: NonNegativeFloat = 0.0
    """A wrong number gets this, divided by 1 + its distance from the answer."""

    def __post_init__(self) -> None:
        for name, lowest in (("terms", 2), ("digits", 1)):
            low, high = _range(getattr(self, name), name)
            if not lowest <= low <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {lowest} or more, or [fewest, most].")
        if self.operations == []:
            raise ValueError("operations is empty; give one or more of +, - and *.")
        if self.partial_credit >= 1:
            raise ValueError(f"partial_credit is {self.partial_credit}; it must be below 1, the reward of the answer.")


@dataclass(frozen=True, slots=True)
class Question:
    """A formula such as 3 + 4 * 2."""

    terms: tuple[int, ...]
    operations: tuple[str, ...]

    def __str__(self) -> str:
        rest = (f" {sign} {term}" for sign, term in zip(self.operations, self.terms[1:], strict=True))
        return f"{self.terms[0]}{''.join(rest)}"

    @property
    def answer(self) -> int:
        """Its value; products come before sums."""
        total, factor = 0, self.terms[0]
        for sign, term in zip(self.operations, self.terms[1:], strict=True):
            if sign == "*":
                factor *= term
            else:
                total, factor = total + factor, term if sign == "+" else -term
        return total + factor

    @property
    def key(self) -> str:
        """The same for questions that differ only in the order of the terms of one sum or product."""
        ordered = len(set(self.operations)) > 1 or "-" in self.operations
        return str(self if ordered else Question(tuple(sorted(self.terms)), self.operations))


class ArithmeticEnvironment(SingleTurnEnvironment):
    """Asks for the value of a formula; 1 for the right number.

    Args:
        name: in metrics.
        args: what is asked, and how.
    """

    def __init__(self, name: str, args: ArithmeticArgs) -> None:
        super().__init__(name)
        self.args = args
        self.stop = ("\n",) if args.prompt == "plain" else ()
        self._questions = _questions(args)

    def __len__(self) -> int:
        return len(self._questions)

    def example(self, index: int) -> Example:
        """Return a question; see Environment.example."""
        question = self._questions[index]
        columns = {"question": str(question), "answer": question.answer}
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=self._prompt(question), columns=columns)

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Compare the number of each answer with the value of the formula."""
        return [self._reward(completion, example.columns["answer"]) for completion in completions]

    def reference(self, example: Example) -> str:
        """Return the answer as a model would write it."""
        return f" {example.columns['answer']}\n" if self.args.prompt == "plain" else str(example.columns["answer"])

    def _prompt(self, question: Question) -> str | list[Message]:
        if self.args.prompt == "plain":
            shots = (Question(terms, operations) for terms, operations in _SHOTS)
            return "".join(f"{shot} = {shot.answer}\n" for shot in shots) + f"{question} ="
        return [{"role": "user", "content": f"What is {question}? Reply with the number only."}]

    def _reward(self, completion: str, answer: int) -> float:
        given = first_number(completion) if self.args.prompt == "plain" else last_number(completion)
        if given is None:
            return 0.0
        return 1.0 if given == answer else self.args.partial_credit / (1 + abs(given - answer))


def first_number(text: str) -> float | None:
    """Return the first number of the first line; a model that goes on with questions of its own is not heard."""
    found = _NUMBER.search(text.partition("\n")[0])
    return float(found[0]) if found else None


def last_number(text: str) -> float | None:
    """Return the last number, which in a sentence such as `3 + 4 = 7` is the answer."""
    found = _NUMBER.findall(text)
    return float(found[-1]) if found else None


def _range(value: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} is {list(value)}; a range has two numbers, [fewest, most].")
    return value[0], value[1]


def _questions(args: ArithmeticArgs) -> list[Question]:
    """Return different questions of the split, in an order that only the arguments decide."""
    rng = random.Random(f"arithmetic {args.seed}")
    shots = {Question(terms, operations).key for terms, operations in _SHOTS}
    found: dict[Question, None] = {}
    for question in _every_question(args, rng) if _count(args) <= _MAX_ENUMERATED else _draws(args, rng):
        wanted = _is_held_out(question, args.held_out_fraction) == (args.split == "held_out")
        if wanted and question.key not in shots and (args.allow_negative or question.answer >= 0):
            found[question] = None
            if len(found) == args.num_examples:
                break
    return list(found)


def _is_held_out(question: Question, fraction: float) -> bool:
    digest = hashlib.sha256(question.key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _numbers(args: ArithmeticArgs) -> range:
    low, high = _range(args.digits, "digits")
    return range(0 if low == 1 else 10 ** (low - 1), 10**high)


def _count(args: ArithmeticArgs) -> int:
    low, high = _range(args.terms, "terms")
    signs = len(args.operations or ["+"])
    return sum(len(_numbers(args)) ** terms * signs ** (terms - 1) for terms in range(low, high + 1))


def _every_question(args: ArithmeticArgs, rng: random.Random) -> list[Question]:
    low, high = _range(args.terms, "terms")
    every = [
        Question(terms, signs)
        for count in range(low, high + 1)
        for signs in product(dict.fromkeys(args.operations or ["+"]), repeat=count - 1)
        for terms in product(_numbers(args), repeat=count)
    ]
    rng.shuffle(every)
    return every


def _draws(args: ArithmeticArgs, rng: random.Random) -> Iterator[Question]:
    """Yield random questions, some perhaps twice; in the end it gives up, so that the search for more comes to one."""
    low, high = _range(args.terms, "terms")
    digits_low, digits_high = _range(args.digits, "digits")
    for _ in range(max(_MAX_ENUMERATED, 100 * args.num_examples)):
        count = rng.randint(low, high)
        terms = []
        for _ in range(count):
            digits = rng.randint(digits_low, digits_high)
            terms.append(rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits))
        yield Question(tuple(terms), tuple(rng.choice(args.operations or ["+"]) for _ in range(count - 1)))
