from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from surogate.config.parts import DatasetSpec
from surogate.data.sources import SourceRow, open_source
from surogate.errors import DataError

VALUES = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in VALUES)


def rows_of(path: Path, **spec: object) -> list[SourceRow]:
    return list(open_source(DatasetSpec(path=str(path), **spec)).rows())


def write_zstd(path: Path, content: bytes) -> None:
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", None), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", write_zstd)],
)
def test_json_lines_are_read_compressed_or_not(tmp_path: Path, suffix: str, compress: Callable | None) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    content = JSON_LINES.encode()
    if compress is write_zstd:
        write_zstd(path, content)
    else:
        path.write_bytes(compress(content) if compress else content)
    rows = rows_of(path)
    assert [row.values for row in rows] == VALUES
    assert [row.origin for row in rows] == [f"{path}:{line}" for line in (1, 2, 3)]


def write_arrow_file(path: Path, table: pyarrow.Table) -> None:
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path: Path, table: pyarrow.Table) -> None:
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.parquet", lambda path: parquet.write_table(pyarrow.Table.from_pylist(VALUES), path, row_group_size=2)),
        ("file.arrow", lambda path: write_arrow_file(path, pyarrow.Table.from_pylist(VALUES))),
        ("stream.arrow", lambda path: write_arrow_stream(path, pyarrow.Table.from_pylist(VALUES))),
        ("rows.csv", lambda path: path.write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(3)))),
        ("array.json", lambda path: path.write_text("\ufeff" + json.dumps(VALUES, indent=1), encoding="utf-8")),
        ("lines.json", lambda path: path.write_text(JSON_LINES)),
        ("wrapped.json", lambda path: path.write_text(json.dumps({"version": "1", "data": VALUES}))),
        ("indented.json", lambda path: path.write_text(json.dumps({"data": VALUES}, indent=1))),
    ],
)
def test_other_file_types_give_the_same_rows(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    rows = rows_of(tmp_path / name)
    assert [row.values for row in rows] == VALUES
    assert len({row.origin for row in rows}) == 3


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "speech.txt").write_text("first line\n\nsecond line\n")
    (row,) = rows_of(tmp_path / "speech.txt")
    assert str(row.values["text"]) == "first line\n\nsecond line\n"


def test_a_folder_is_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "inner" / "c.json").write_text('[{"n": 3}]')
    (tmp_path / "README.md").write_text("not data")
    assert [row.values["n"] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_samples_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(JSON_LINES + "broken\n")
    assert [row.values for row in rows_of(tmp_path / "rows.jsonl", samples=2)] == VALUES[:2]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", '{"a": 1}\n\n{"a": \n', r"rows\.jsonl:3: broken JSON line"),
        ("rows.jsonl", '{"a": 1}\n[1, 2]\n', r"rows\.jsonl:2: a row must be a JSON object of columns, got list"),
        ("rows.json", '[\n{"a": 1},\n{"a" 2}\n]', r"rows\.json:3: broken JSON"),
        ("rows.json", '[{"a": 1}, 7]', r"rows\.json:row 2: a row must be a JSON object"),
        ("rows.json", '{"data": [\n{"a": 1},\n{"a" 2}\n]}', r"rows\.json:3: broken JSON"),
        ("rows.json", '{"a": 1}\n{"a" 2}', r"rows\.json:2: broken JSON line"),
        ("rows.csv", "a,b\n1,2\n3\n", r"rows\.csv:3: the row has not the 2 fields"),
        ("rows.parquet", "no parquet", "broken parquet file"),
        ("rows.arrow", "no arrow", "broken arrow file"),
        ("rows.jsonl.gz", "no gzip", "cannot be read"),
        ("rows.jsonl", "", "the data set is empty"),
        ("rows.pkl", "x", "unknown file type. Allowed are .jsonl"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        rows_of(tmp_path / name)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        rows_of(tmp_path / "rows.jsonl")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data file"):
        rows_of(tmp_path)


def test_a_hub_data_set_that_cannot_be_loaded_is_refused_with_what_was_asked_for() -> None:
    with pytest.raises(DataError, match=r"'nobody/nothing' is no local path.*split 'train'"):
        open_source(DatasetSpec(path="nobody/nothing"))


def test_a_json_file_of_one_conversation_is_one_row(tmp_path: Path) -> None:
    row = {"id": 1, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (tmp_path / "row.json").write_text(json.dumps(row, indent=1))
    assert [row.values for row in rows_of(tmp_path / "row.json")] == [row]


def a_folder(root: Path, *names: str) -> Path:
    """Write files of one row each, which holds the file's name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"n": name}
        if path.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n")
    return root


@pytest.mark.parametrize(
    ("names", "spec", "expected"),
    [
        (["train.jsonl", "test.jsonl", "validation.jsonl"], {}, ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], {"split": "test"}, ["test.jsonl"]),
        (["train.jsonl", "val.jsonl"], {"split": "validation"}, ["val.jsonl"]),
        (["gsm_train.jsonl", "gsm_test.jsonl"], {}, ["gsm_train.jsonl"]),
        (["train.jsonl", "extra.jsonl"], {}, ["train.jsonl"]),
        (["crash-test-reports.jsonl", "b.jsonl"], {}, ["b.jsonl", "crash-test-reports.jsonl"]),
        (
            ["test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
            {},
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ),
        (["gsm-test-00000-of-00001.jsonl", "gsm-train-00000-of-00001.jsonl"], {}, ["gsm-train-00000-of-00001.jsonl"]),
        (["train_sft.jsonl", "train_gen.jsonl"], {"split": "train_sft"}, ["train_sft.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], {}, ["train/a.jsonl"]),
        (["de/train.jsonl", "en/train.jsonl", "en/test.jsonl"], {"subset": "en"}, ["train.jsonl"]),
    ],
)
def test_a_folder_of_splits_gives_the_files_of_one(
    tmp_path: Path, names: list[str], spec: dict[str, str], expected: list[str]
) -> None:
    rows = rows_of(a_folder(tmp_path, *names), **spec)
    inside = tmp_path / spec.get("subset", "")
    assert [row.origin.rpartition(":")[0] for row in rows] == [str(inside / name) for name in expected]


@pytest.mark.parametrize(
    ("names", "spec", "sentence"),
    [
        (["test.jsonl", "dev.jsonl"], {}, "split is 'train', but no file is named after it.*test, validation"),
        (["a.jsonl"], {"split": "test"}, "split is 'test', but no file is named after it.*no split"),
        (["train.jsonl"], {"split": "train[:10]"}, r"split is 'train\[:10\]'"),
        (["train.jsonl"], {"subset": "en"}, "subset is 'en', but there is no folder"),
    ],
)
def test_a_split_or_subset_that_a_folder_has_not_is_refused(
    tmp_path: Path, names: list[str], spec: dict[str, str], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        rows_of(a_folder(tmp_path, *names), **spec)


@pytest.mark.parametrize("spec", [{"split": "test"}, {"subset": "en"}])
def test_a_split_or_subset_of_one_file_is_refused(tmp_path: Path, spec: dict[str, str]) -> None:
    with pytest.raises(DataError, match="this is one file; split and subset choose within hub ids and folders only"):
        rows_of(a_folder(tmp_path, "rows.jsonl") / "rows.jsonl", **spec)


def test_the_files_that_a_split_leaves_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="surogate")
    rows_of(a_folder(tmp_path, "train.jsonl", "test.jsonl"))
    assert "split train is 1 of the folder's 2 files" in caplog.text


def test_hidden_files_and_files_about_the_data_are_not_rows(tmp_path: Path) -> None:
    others = [".hidden.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "README.txt", "dataset_infos.json"]
    rows = rows_of(a_folder(tmp_path, "a.jsonl", *others))
    assert [row.values["n"] for row in rows] == ["a.jsonl"]


def test_a_saved_data_set_is_read_with_its_splits(tmp_path: Path) -> None:
    import datasets

    train = datasets.Dataset.from_list(VALUES)
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=train.select([2])).save_to_disk(tmp_path / "two")
    assert [row.values for row in rows_of(tmp_path / "one")] == VALUES
    assert [row.values for row in rows_of(tmp_path / "two")] == VALUES
    assert [row.values for row in rows_of(tmp_path / "two", split="test")] == VALUES[2:]
    with pytest.raises(DataError, match=r"split is 'dev', but no file is named after it.*test, train"):
        rows_of(tmp_path / "two", split="dev")


def fingerprint_of(path: Path, **spec: object) -> str:
    return open_source(DatasetSpec(path=str(path), **spec)).fingerprint


def test_the_fingerprint_is_that_of_contents_and_names_and_not_of_place_time_or_samples(tmp_path: Path) -> None:
    first, second = (
        a_folder(tmp_path / "first", "a.jsonl", "b.jsonl"),
        a_folder(tmp_path / "second", "b.jsonl", "a.jsonl"),
    )
    os.utime(second / "a.jsonl", (1, 1))
    (second / "README.md").write_text("about")
    assert fingerprint_of(first) == fingerprint_of(second) == fingerprint_of(first, samples=1)
    assert fingerprint_of(first / "a.jsonl") == fingerprint_of(second / "a.jsonl") != fingerprint_of(first)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "train.jsonl").write_text('{"n": "trail.jsonl"}\n'),
        lambda folder: a_folder(folder, "train-2.jsonl"),
        lambda folder: (folder / "train.jsonl").rename(folder / "train-0.jsonl"),
        lambda folder: (folder / "train.jsonl").rename(folder / "train.json"),
    ],
)
def test_the_fingerprint_changes_with_contents_and_files(tmp_path: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint_of(a_folder(tmp_path, "train.jsonl", "test.jsonl"))
    change(tmp_path)
    assert fingerprint_of(tmp_path) != before


def test_the_fingerprint_is_that_of_the_chosen_files(tmp_path: Path) -> None:
    a_folder(tmp_path, "en/train.jsonl", "en/test.jsonl", "de/train.jsonl")
    splits = [fingerprint_of(tmp_path, split=split) for split in ("train", "test")]
    assert len({*splits, fingerprint_of(tmp_path, subset="en"), fingerprint_of(tmp_path, subset="de")}) == 4
    before = fingerprint_of(tmp_path, subset="en")
    a_folder(tmp_path, "en/test-2.jsonl")
    assert fingerprint_of(tmp_path, subset="en") == before


def test_a_source_is_read_on_demand_and_again(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(JSON_LINES + "broken\n")
    source = open_source(DatasetSpec(path=str(tmp_path / "rows.jsonl")))
    assert source.columns() == ["question", "answer"]
    rows = source.rows()
    assert [next(rows).values for _ in VALUES] == VALUES
    assert next(source.rows()).values == VALUES[0]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: broken JSON line"):
        next(rows)


def test_a_column_of_structs_keeps_the_nulls_of_messages_and_loses_those_filled_in_below(tmp_path: Path) -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"city": "Rome"}}},
        {"function": {"name": "g", "arguments": {"n": 1}}},
    ]
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]} for call in calls]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "rows.parquet")
    assert [row.values for row in rows_of(tmp_path / "rows.parquet")] == [{"messages": messages}]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_of_many_batches_keep_their_order(tmp_path: Path, kind: str) -> None:
    table = pyarrow.table({"n": range(1000)})
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=300)
    else:
        write_arrow_file(path, table)
    rows = rows_of(path)
    assert [row.values["n"] for row in rows] == list(range(1000))
    assert rows[-1].origin == f"{path}:row 1000"
