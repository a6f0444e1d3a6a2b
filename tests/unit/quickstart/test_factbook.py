"""Questions out of factbook profiles, and their split by country."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surogate.errors import DataError
from surogate.quickstart.factbook import read_questions, split_by_country, write_jsonl


def write_profile(folder: Path, code: str, name: str, tld: str, adjective: str) -> None:
    profile: dict[str, Any] = {
        "Government": {"Country name": {"conventional short form": {"text": name}}},
        "Communications": {"Internet country code": {"text": tld}},
        "People and Society": {"Nationality": {"noun": {"text": "x"}, "adjective": {"text": adjective}}},
    }
    path = folder / "somewhere" / f"{code}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(profile))


def test_markup_remarks_and_alternatives_are_taken_off_an_answer(tmp_path):
    write_profile(tmp_path, "cc", "Cura&ccedil;ao", "<p>.cw</p>", "Curacaoan; Dutch")
    write_profile(tmp_path, "sa", "Saudi Arabia", ".sa", "Saudi or Saudi Arabian")
    first, second, third, fourth = read_questions(tmp_path)
    assert (first.country, first.instruction, first.output) == (
        "Curaçao",
        "What is the Internet country code of Curaçao?",
        ".cw",
    )
    assert second.output == "Curacaoan"
    assert (third.output, fourth.output) == (".sa", "Saudi")


def test_a_field_without_a_short_answer_makes_no_question(tmp_path):
    write_profile(tmp_path, "aa", "Atlantis", "none (see Pacific)", "none")
    write_profile(tmp_path, "ok", "Norway", ".no", "NA")
    assert [question.country for question in read_questions(tmp_path)] == ["Norway"]


def test_a_folder_without_profiles_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no country profile"):
        read_questions(tmp_path)


def test_no_country_is_on_both_sides_of_the_split(tmp_path):
    for i in range(20):
        write_profile(tmp_path, f"c{i}", f"Land {i}", ".aa", "Landish")
    questions = read_questions(tmp_path)
    training, held_out = split_by_country(questions, 5, seed=3)
    assert len({question.country for question in held_out}) == 5
    assert not {question.country for question in held_out} & {question.country for question in training}
    assert sorted(training + held_out, key=str) == sorted(questions, key=str)


def test_the_seed_decides_the_split(tmp_path):
    for i in range(20):
        write_profile(tmp_path, f"c{i}", f"Land {i}", ".aa", "Landish")
    questions = read_questions(tmp_path)
    assert split_by_country(questions, 5, seed=1) == split_by_country(questions, 5, seed=1)
    assert split_by_country(questions, 5, seed=1) != split_by_country(questions, 5, seed=2)


def test_questions_are_written_as_an_instruction_dataset(tmp_path):
    write_profile(tmp_path, "cw", "Curaçao", ".cw", "Curacaoan")
    write_jsonl(tmp_path / "data" / "train.jsonl", read_questions(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "country": "Curaçao",
        "topic": "country code",
        "instruction": "What is the Internet country code of Curaçao?",
        "output": ".cw",
    }
