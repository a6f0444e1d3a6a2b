"""Reversing a text character by character: a reward that is never far away, for a first look at training in chat.

The one idea: the reward is the similarity of what was said to the reversed text (Ratcliff and Obershelp, as difflib
computes it), so each character in its place counts.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from surogate.config.parts import DatasetSpec
from surogate.data.sources import open_source
from surogate.errors import DataError
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.environments.prompts import chat
from surogate.rl.types import Example

_TAGGED = re.compile(r"<reversed_text>(.*?)(?:</reversed_text>|\Z)", re.DOTALL)
_WORD = re.compile(r"\b[a-z]{3,9}\b")


@dataclass(frozen=True, kw_only=True)
class ReverseTextArgs:
    """Arguments of `reverse-text`."""

    path: str | None = None
    """File, folder, URL or hub id with the texts. Default: sequences of English words."""
    text_field: str = "text"
    """Column of the texts."""
    num_examples: PositiveInt = 1000
    """Most texts."""
    words: list[PositiveInt] | None = None
    """Fewest and most words of a text, without a path. Default: [2, 5]."""
    seed: int = 0
    """Which texts, without a path."""
    split: Literal["train", "held_out"] = "train"
    """Two parts without a common text."""
    held_out_fraction: OpenUnitInterval = 0.2
    """Share of all texts that is held out; the same number in both parts."""
    system_prompt: str | None = None
    """A first message before each text."""

    def __post_init__(self) -> None:
        if self.words is not None and (len(self.words) != 2 or self.words[0] > self.words[1]):
            raise ValueError(f"words is {self.words}; it must be [fewest, most].")


class ReverseTextEnvironment(SingleTurnEnvironment):
    """Asks for a text in reverse; the reward is the similarity of the answer, from 0 to 1.

    Args:
        name: in metrics.
        args: the texts.
    """

    def __init__(self, name: str, args: ReverseTextArgs) -> None:
        super().__init__(name)
        self._system_prompt = args.system_prompt
        self._texts = _texts(args)

    def __len__(self) -> int:
        return len(self._texts)

    def example(self, index: int) -> Example:
        """Return a text; see Environment.example."""
        text = self._texts[index]
        question = f"Reverse this text character by character, and reply with the reversed text only.\n\n{text}"
        return Example(
            id=f"{self.name}/{index}",
            env=self.name,
            prompt=chat(question, self._system_prompt),
            columns={"text": text, "answer": text[::-1]},
        )

    async def rewards(self, completions: list[str], example: Example) -> list[float]:
        """Measure the similarity of each answer."""
        return [similarity(completion, example.columns["answer"]) for completion in completions]

    def reference(self, example: Example) -> str:
        """Return the reversed text."""
        return str(example.columns["answer"])


def similarity(completion: str, answer: str) -> float:
    """Return 2 x common characters / all characters of both; of what stands in <reversed_text> where that is there."""
    tagged = _TAGGED.search(completion)
    given = (tagged[1] if tagged else completion).strip()
    # The time grows with the product of the lengths, and so long an answer could not reach 0.1.
    if len(given) > 20 * len(answer):
        return 0.0
    return SequenceMatcher(None, given, answer, autojunk=False).ratio()


def _texts(args: ReverseTextArgs) -> list[str]:
    found: dict[str, None] = {}
    for text in _read(args) if args.path is not None else _made(args):
        digest = hashlib.sha256(text.encode()).digest()
        if (int.from_bytes(digest[:8], "big") < args.held_out_fraction * 2**64) == (args.split == "held_out"):
            found[text] = None
            if len(found) == args.num_examples:
                break
    return list(found)


def _read(args: ReverseTextArgs) -> list[str]:
    texts = []
    for row in open_source(DatasetSpec(path=str(args.path))).rows():
        text = row.values.get(args.text_field)
        if text is None or not str(text).strip():
            raise DataError(
                f"{row.origin}: there is no text in {args.text_field!r}; the columns are {', '.join(row.values)}. "
                "Set text_field."
            )
        texts.append(str(text).strip())
    return texts


def _made(args: ReverseTextArgs) -> list[str]:
    rng = random.Random(f"reverse text {args.seed}")
    low, high = args.words or (2, 5)
    # Several times what is asked for: one split of two is kept, and short texts come up twice.
    return [" ".join(rng.choices(_words(), k=rng.randint(low, high))) for _ in range(20 * args.num_examples)]


@cache
def _words() -> list[str]:
    """Return the usual English words of Python's own manual, which every machine has."""
    from pydoc_data.topics import topics

    counts: dict[str, int] = {}
    for text in topics.values():
        for word in _WORD.findall(text):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= 5)
