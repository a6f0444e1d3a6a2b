"""Guessing a number in several turns, told higher or lower: the built-in example of a conversation.

The one idea: the reward falls with every guess that was not needed, so asking in the middle is what is learnt.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

from jsonargparse.typing import PositiveInt

from surogate.rl.environments.multi_turn import Episode, MultiTurnEnvironment
from surogate.rl.environments.prompts import chat
from surogate.rl.types import Example, Message

_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, kw_only=True)
class GuessNumberArgs:
    """Arguments of `guess-number`."""

    num_examples: PositiveInt = 100
    """Numbers to guess; different ones, as long as there are so many."""
    highest: PositiveInt = 20
    """The number lies between 1 and this."""
    max_turns: PositiveInt | None = None
    """Guesses. Default: as many as halving needs."""
    seed: int = 0
    """Which numbers, and in which order."""


class GuessNumberEnvironment(MultiTurnEnvironment):
    """Thinks of a number; 1 for finding it as fast as halving does, less for each further guess, else 0.

    Args:
        name: in metrics.
        args: which numbers.
    """

    def __init__(self, name: str, args: GuessNumberArgs) -> None:
        self._needed = math.floor(math.log2(args.highest)) + 1
        super().__init__(name, args.max_turns or self._needed)
        self._highest = args.highest
        numbers = list(range(1, args.highest + 1))
        random.Random(f"guess number {args.seed}").shuffle(numbers)
        self._numbers = numbers[: args.num_examples]

    def __len__(self) -> int:
        return len(self._numbers)

    def example(self, index: int) -> Example:
        """Return a number to guess; see Environment.example."""
        question = (
            f"I think of a whole number from 1 to {self._highest}. Guess it. Reply with one number only, and I say "
            "higher, lower or correct."
        )
        columns = {"number": self._numbers[index]}
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=chat(question), columns=columns)

    def answer(self, episode: Episode) -> list[Message]:
        """Say higher or lower; nothing once the number was found."""
        number, guess = episode.example.columns["number"], _guess(episode.replies[-1])
        if guess == number:
            return []
        if guess is None:
            return chat("That is no number. Reply with one number only.")
        return chat("Higher." if guess < number else "Lower.")

    def reward(self, episode: Episode) -> float:
        """Return 1 / (1 + guesses beyond those that halving needs), 0 where the number was not found."""
        guesses = [_guess(reply) for reply in episode.replies]
        if episode.example.columns["number"] not in guesses:
            return 0.0
        return 1.0 / (1 + max(0, len(guesses) - self._needed))

    def reference(self, example: Example) -> str:
        """Return the number itself, guessed at once."""
        return str(example.columns["number"])


def _guess(reply: str) -> int | None:
    found = _NUMBER.search(reply)
    return int(found[0]) if found else None
