"""Two corpora for continued pretraining, geographic and medical, made from public-domain files in Python packages.

    python -m surogate.quickstart.corpora factbook output/pt/data
    python -m surogate.quickstart.corpora icd10 output/pt/data

What is not here: questions with short answers (factbook.py). The one idea: whole countries and whole categories of
diagnoses are held out, so no held-out text has a near copy in training, and the same files come out every time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from surogate.errors import DataError, SurogateError
from surogate.locations import resolve
from surogate.quickstart import factbook

HELD_OUT_COUNTRIES = {
    *("Bangladesh", "Canada", "Cuba", "Ghana", "Jordan", "Kazakhstan"),
    *("Kenya", "New Zealand", "Norway", "Peru", "Portugal", "Vietnam"),
}
HELD_OUT_LEN = 2000
"""Characters of a held-out profile, from its beginning: validation takes seconds on a CPU."""

ICD10_LOCATION = "pkg://simple_icd_10_cm/data"
HELD_OUT_FRACTION = 0.1
"""Of all categories."""
NUM_HELD_OUT_CODES = 250
"""Of these categories, for the same reason."""
CODES_PER_DOCUMENT = 100
"""About 1,800 tokens, so that splitting them into rows leaves little padding."""

Split = tuple[list[str], list[str]]
"""Training and held-out documents."""


def factbook_profiles(folder: Path) -> Split:
    """Turn each country's profile into a document of `field: text` lines."""
    training, held_out = [], []
    for path in sorted(folder.glob("*/*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        country = factbook.country_of(profile)
        document = "\n".join([country, *_lines(profile)])
        if country in HELD_OUT_COUNTRIES:
            held_out.append(document[:HELD_OUT_LEN])
        elif country:
            training.append(document)
    return training, held_out


def _lines(profile: dict[str, Any]) -> Iterator[str]:
    for section, fields in profile.items():
        yield f"\n{section}"
        for field, value in fields.items():
            text = "; ".join(filter(None, _texts(value)))
            if text:
                yield f"{field}: {text}"


def _texts(value: Any) -> Iterator[str]:
    """Yield the text of a field, or of each of its parts."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield factbook.plain(value["text"])
        else:
            for part in value.values():
                yield from _texts(part)


def icd10_codes(folder: Path) -> Split:
    """Shuffle all `code: title` lines, which are trivial to predict in book order, and group them into documents."""
    codes = [line for path in sorted(folder.glob("icd10c-tabular-*.xml")) for line in _code_lines(path)]
    shuffle = random.Random(0)
    categories = sorted({_category(line) for line in codes})
    held_out = set(shuffle.sample(categories, int(HELD_OUT_FRACTION * len(categories))))
    shuffle.shuffle(codes)
    training = [line for line in codes if _category(line) not in held_out]
    return _grouped(training), _grouped([line for line in codes if _category(line) in held_out][:NUM_HELD_OUT_CODES])


def _code_lines(path: Path) -> Iterator[str]:
    for diagnosis in ElementTree.parse(path).iter("diag"):
        yield f"{diagnosis.findtext('name')}: {diagnosis.findtext('desc')}"


def _category(line: str) -> str:
    """The three characters in front of the dot, shared by the variants of one diagnosis."""
    return line[:3]


def _grouped(lines: Sequence[str]) -> list[str]:
    return ["\n".join(lines[start : start + CODES_PER_DOCUMENT]) for start in range(0, len(lines), CODES_PER_DOCUMENT)]


CORPORA = {"factbook": (factbook.LOCATION, factbook_profiles), "icd10": (ICD10_LOCATION, icd10_codes)}
"""Name -> where its package keeps the files, and what makes documents of them."""


def write_corpus(name: str, folder: Path) -> None:
    """Write `NAME-train.jsonl` and `NAME-held-out.jsonl`, one document a line.

    Raises:
        DataError: the package is not installed, or holds something else.
    """
    location, make = CORPORA[name]
    parts = dict(zip(("train", "held-out"), make(Path(resolve(location))), strict=True))
    if not all(parts.values()):
        raise DataError(f"{location} does not hold what {name} is made of; install requirements/quickstart.lock.")
    folder.mkdir(parents=True, exist_ok=True)
    for part, documents in parts.items():
        path = folder / f"{name}-{part}.jsonl"
        rows = [json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents]
        path.write_text("".join(rows), encoding="utf-8")
        print(f"{path}: {len(documents)} documents, {path.stat().st_size / 1e6:.2f} MB")


def main(argv: list[str]) -> int:
    """Write a corpus."""
    parser = argparse.ArgumentParser(prog="python -m surogate.quickstart.corpora", description="Write a corpus.")
    parser.add_argument("name", choices=CORPORA)
    parser.add_argument("folder", type=Path, help="where the two .jsonl files go")
    arguments = parser.parse_args(argv)
    try:
        write_corpus(arguments.name, arguments.folder)
    except SurogateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
