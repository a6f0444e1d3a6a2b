from __future__ import annotations

from pathlib import Path

from surogate.config.yaml_file import read_yaml


def test_keys_and_list_items_know_their_line(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("# comment\na: 1\nb:\n  - c: 2\n    d: 3\n  - e\n")
    file = read_yaml(path)
    assert file.values == {"a": 1, "b": [{"c": 2, "d": 3}, "e"]}
    assert [file.line_of(key) for key in [("a",), ("b",), ("b", 0, "d"), ("b", 1)]] == [2, 3, 5, 6]


def test_what_has_no_line_of_its_own_takes_that_of_what_holds_it(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("a:\n  b: 1\n")
    file = read_yaml(path)
    assert file.where(("a", "missing", 3)) == f"{path}:1"
    assert file.where(("missing",)) == str(path)


def test_a_file_with_one_key_and_no_value_is_a_mapping(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("model:\n")
    assert read_yaml(path).values == {"model": None}
