"""Corpora for continued pretraining: documents out of packages' files, and what is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surogate.errors import DataError
from surogate.quickstart import corpora
from surogate.quickstart.corpora import factbook_profiles, icd10_codes, main, write_corpus


def write_profile(folder: Path, code: str, name: str, **sections: object) -> None:
    government = {"Country name": {"conventional short form": {"text": name}}}
    path = folder / "somewhere" / f"{code}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"Government": government, **sections}))


def write_codes(folder: Path, *codes: str) -> None:
    """Nested, as the real file is: a category holds its codes."""
    diagnoses = "".join(
        f"<diag><name>{code}</name><desc>Title of {code}</desc>"
        + "".join(f"<diag><name>{code}.{i}</name><desc>Title of {code}.{i}</desc></diag>" for i in range(10))
        + "</diag>"
        for code in codes
    )
    (folder / "icd10c-tabular-May-1.xml").write_text(f"<book><chapter>{diagnoses}</chapter></book>")


def test_a_profile_becomes_lines_of_fields_without_markup(tmp_path):
    write_profile(
        tmp_path,
        "cc",
        "Cura&ccedil;ao",
        Geography={
            "Climate": {"text": "<p>warm</p>"},
            "Area": {"land": {"text": "1"}, "water": {"text": "2"}},
            "X": {},
        },
    )
    training, held_out = factbook_profiles(tmp_path)
    assert training == [
        "Curaçao\n\nGovernment\nCountry name: Curaçao\n\nGeography\nClimate: warm\nArea: 1; 2",
    ]
    assert held_out == []


def test_the_beginnings_of_held_out_countries_are_kept_apart_and_nameless_profiles_left_out(tmp_path):
    write_profile(tmp_path, "no", "Norway", Geography={"Climate": {"text": "x" * 5000}})
    write_profile(tmp_path, "xx", "none")
    write_profile(tmp_path, "se", "Sweden")
    training, held_out = factbook_profiles(tmp_path)
    assert [document.split("\n")[0] for document in training] == ["Sweden"]
    assert held_out[0].startswith("Norway\n")
    assert len(held_out[0]) == corpora.HELD_OUT_LEN


def test_every_code_stands_in_one_document_and_no_category_on_both_sides(tmp_path):
    names = [f"{letter}{i:02}" for letter in "AB" for i in range(40)]
    write_codes(tmp_path, *names)
    sides = [[line for document in side for line in document.split("\n")] for side in icd10_codes(tmp_path)]
    expected = {f"{code}: Title of {code}" for name in names for code in (name, *(f"{name}.{i}" for i in range(10)))}
    assert sorted(sides[0] + sides[1]) == sorted(expected)
    categories = [{line[:3] for line in side} for side in sides]
    assert not categories[0] & categories[1]
    assert len(categories[1]) == 8


def test_no_more_codes_are_held_out_than_a_validation_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "NUM_HELD_OUT_CODES", 7)
    write_codes(tmp_path, *(f"A{i:02}" for i in range(40)))
    training, (held_out,) = icd10_codes(tmp_path)
    assert held_out.count("\n") == 6
    assert sum(document.count("\n") + 1 for document in training) == 36 * 11


def test_codes_are_shuffled_the_same_way_every_time(tmp_path):
    write_codes(tmp_path, *(f"A{i:02}" for i in range(40)))
    training, held_out = icd10_codes(tmp_path)
    assert icd10_codes(tmp_path) == (training, held_out)
    lines = "\n".join(training).split("\n")
    assert lines != sorted(lines)
    assert all(document.count("\n") == corpora.CODES_PER_DOCUMENT - 1 for document in training[:-1])


@pytest.mark.parametrize("name", ["factbook", "icd10"])
def test_a_corpus_is_written_as_a_text_dataset(name, tmp_path, monkeypatch, capsys):
    for country in ("Norway", "Sweden"):
        write_profile(tmp_path, country, country)
    write_codes(tmp_path, *(f"A{i:02}" for i in range(40)))
    monkeypatch.setitem(corpora.CORPORA, name, (str(tmp_path), corpora.CORPORA[name][1]))
    assert main([name, str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    for part in ("train", "held-out"):
        path = tmp_path / "out" / f"{name}-{part}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows and all(list(row) == ["text"] and row["text"] for row in rows)
        assert f"{path}: {len(rows)} documents" in report


def test_a_missing_package_and_a_folder_of_something_else_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(corpora.CORPORA, "icd10", ("pkg://no_such_package/data", icd10_codes))
    assert main(["icd10", str(tmp_path)]) == DataError.exit_code
    assert "the Python package 'no_such_package' is not installed" in capsys.readouterr().err
    monkeypatch.setitem(corpora.CORPORA, "icd10", (str(tmp_path), icd10_codes))
    with pytest.raises(DataError, match="does not hold what icd10 is made of"):
        write_corpus("icd10", tmp_path / "out")
    assert not (tmp_path / "out").exists()
