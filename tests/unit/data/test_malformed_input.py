"""Whatever a file holds: rows come out, or one sentence that names the file; never a traceback, never a hang."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from surogate.config.parts import DatasetSpec
from surogate.data.formats import Conversation, detect_type, document_text, to_conversation
from surogate.data.sources import open_source
from surogate.errors import SurogateError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
DEEP = b"[" * 100_000
TOO_DEEP = b'{"a": ' * 150 + b"1" + b"}" * 150
PAST_C_STACK = b'{"a":' * 200_000
LONG = b"x" * 10_000_000


def read_all(path: Path, **spec: Any) -> list[Conversation | str]:
    """Read every row as its type says."""
    source = open_source(DatasetSpec(path=str(path), **spec))
    detected = detect_type(source.columns(), DatasetSpec(path=str(path), **spec))
    if detected.type == "text":
        return [str(document_text(row, detected)) for row in source.rows()]
    return [to_conversation(row, detected) for row in source.rows()]


def assert_refused(path: Path, sentence: str, **spec: Any) -> None:
    with pytest.raises(SurogateError, match=sentence) as error:
        read_all(path, **spec)
    said = str(error.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 1000


BROKEN_FILES = [
    ("empty.jsonl", b"", "the data set is empty"),
    ("blank.jsonl", b"\n \r\n\t\n", "the data set is empty"),
    ("bom.jsonl", b"\xef\xbb\xbf", "the data set is empty|broken JSON line"),
    ("cut.jsonl", b'{"text": "a"}\n{"text": ', r":2: broken JSON line"),
    ("unclosed.jsonl", b'{"text": "a}\n', r":1: broken JSON line: Invalid control character at column 13"),
    ("open.jsonl", b'{"text": "a}', r":1: broken JSON line: Unterminated string"),
    ("single.jsonl", b"{'text': 'a'}\n", r":1: broken JSON line"),
    ("comma.jsonl", b'{"text": "a",}\n', r":1: broken JSON line"),
    ("two.jsonl", b'{"text": "a"} {"text": "b"}\n', r":1: broken JSON line: Extra data"),
    ("list.jsonl", b'["text"]\n', r":1: a row must be a JSON object of columns, got list"),
    ("number.jsonl", b'{"text": "a"}\n7\n', r":2: a row must be a JSON object of columns, got int"),
    ("null.jsonl", b"null\n", r":1: a row must be a JSON object of columns, got NoneType"),
    ("nul.jsonl", b'{"text": "a\x00b"}\n', r":1: broken JSON line: Invalid control character"),
    ("zeros.jsonl", b"\x00" * 4096, r":1: broken JSON line"),
    ("latin.jsonl", '{"text": "é"}\n'.encode("latin-1"), r":1: the line is not UTF-8 text"),
    ("later.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r":2: the line is not UTF-8 text"),
    ("utf16.jsonl", '{"text": "a"}\n'.encode("utf-16"), r":1: the line is not UTF-8 text"),
    ("raw-surrogate.jsonl", b'{"text": "\xed\xa0\x80"}\n', r":1: the line is not UTF-8 text"),
    ("surrogate.jsonl", b'{"text": "\\ud800"}\n', r":1: broken JSON line: \\ud800 is half of a surrogate pair"),
    ("key.jsonl", b'{"text": "a", "\\uDC00": 1}\n', r":1: broken JSON line: \\udc00 is half of a surrogate pair"),
    ("deep.jsonl", DEEP, r":1: broken JSON line: it nests too deeply"),
    ("deep-object.jsonl", PAST_C_STACK, r":1: broken JSON line: it nests too deeply"),
    ("too-deep.jsonl", TOO_DEEP, r":1: broken JSON line: it nests too deeply"),
    ("digits.jsonl", b'{"text": ' + b"7" * 5000 + b"}\n", r":1: broken JSON line: .*digits"),
    ("long.jsonl", b'{"text": "' + LONG, r":1: broken JSON line: Unterminated string"),
    ("binary.jsonl", bytes(range(255, -1, -1)) * 8, r":1: the line is not UTF-8 text"),
    ("empty.json", b"", "the data set is empty"),
    ("cut.json", b'[{"text": "a"},\n{"text"', r":2: broken JSON"),
    ("nothing.json", b"[]", "the data set is empty"),
    ("scalar.json", b'"text"', "a row must be a JSON object"),
    ("mixed.json", b'[{"text": "a"}, ["b"]]', "row 2: a row must be a JSON object"),
    ("latin.json", '{"text": "é"}'.encode("latin-1"), "not UTF-8 text"),
    ("deep.json", DEEP, "it nests too deeply"),
    ("surrogate.json", b'[{"text": "\\ud83d"}]', "half of a surrogate pair"),
    ("lines.json", b'{"text": "a"}\n{"text": 1', r":2: broken JSON line"),
    ("empty.csv", b"", "the data set is empty"),
    ("header.csv", b"text\n", "the data set is empty"),
    ("short.csv", b"text,b\nx\n", r":2: the row has not the 2 fields"),
    ("more.csv", b"text,b\nx,y,z\n", r":2: the row has not the 2 fields"),
    ("quote.csv", b'text,b\n"x,y\n', "broken CSV: unexpected end of data"),
    ("inner-quote.csv", b'text,b\n"x"y,z\n', r":2: broken CSV"),
    ("twice.csv", b"text,text\nx,y\n", r":1: the header names column 'text' twice"),
    ("utf16.csv", "text,b\nx,y\n".encode("utf-16"), "not UTF-8 text"),
    ("latin.csv", "text\né\n".encode("latin-1"), "not UTF-8 text"),
    ("nul.csv", b"\x00" * 100, "does not recognise the columns|empty"),
    ("semicolon.csv", b"question;answer\na;b\n", "does not recognise the columns question;answer"),
    ("long.csv", LONG + b"\nx\n", "does not recognise the columns"),
    ("lines.csv", b'"a\nb"\nx\n', "does not recognise the columns a b"),
    ("empty.txt", b"", "the data set is empty"),
    ("blank.txt", b" \n\n\t", "the data set is empty"),
    ("latin.txt", "é".encode("latin-1"), "not UTF-8 text"),
    ("utf16.txt", "text".encode("utf-16"), "not UTF-8 text"),
    ("empty.parquet", b"", "broken parquet file"),
    ("text.parquet", b"PAR1 not really PAR1", "broken parquet file"),
    ("empty.arrow", b"", "broken arrow file"),
    ("magic.arrow", b"ARROW1", "broken arrow file"),
    ("text.arrow", b"not an arrow file at all", "broken arrow file"),
    ("empty.jsonl.gz", b"", "the data set is empty|cannot be read"),
    ("plain.jsonl.gz", b'{"text": "a"}\n', "cannot be read"),
    ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 100)[:-12], "cannot be read"),
    ("plain.jsonl.bz2", b'{"text": "a"}\n', "cannot be read"),
    ("cut.jsonl.bz2", bz2.compress(b'{"text": "a"}\n' * 100)[:-12], "cannot be read"),
    ("plain.jsonl.xz", b'{"text": "a"}\n', "cannot be read"),
    ("cut.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 100)[:-12], "cannot be read"),
    ("plain.jsonl.zst", b'{"text": "a"}\n', "cannot be read"),
    ("plain.parquet.gz", b"PAR1", "cannot be read"),
    ("rows.tsv", b"text\na\n", "unknown file type"),
    ("rows", b'{"text": "a"}\n', "unknown file type"),
    ("rows.gz", gzip.compress(b'{"text": "a"}\n'), "unknown file type"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BROKEN_FILES, ids=[name for name, _, _ in BROKEN_FILES])
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, sentence)


CONVERSATION = {"type": "conversation"}
INSTRUCTION = {"type": "instruction"}
BROKEN_ROWS = [
    ({}, {}, "does not recognise the columns .none."),
    ({}, {"a": 1}, "does not recognise the columns a"),
    ({"type": "text"}, {"body": "a"}, "text_field is 'text', but the row has only the columns body"),
    ({"type": "text"}, {"text": None}, "'text' must be text, got NoneType"),
    ({"type": "text"}, {"text": 7}, "'text' must be text, got int"),
    ({"type": "text"}, {"text": ["a"]}, "'text' must be text, got list"),
    (INSTRUCTION, {"instruction": "a"}, "output_field is 'output', but the row has only the columns instruction"),
    (INSTRUCTION, {"instruction": {"a": 1}, "output": "b"}, "'instruction' must be text or a number, got dict"),
    (INSTRUCTION, {"instruction": "a", "output": ["b"]}, "'output' must be text or a number, got list"),
    (INSTRUCTION, {"instruction": "a", "output": "b", "input": True}, "'input' must be text or a number, got bool"),
    (INSTRUCTION, {"instruction": ["a"], "output": "b"}, "a message must have role and content, got 'a'"),
    (CONVERSATION, {"messages": None}, "column 'messages' must be a list, got NoneType"),
    (CONVERSATION, {"messages": 7}, "column 'messages' must be a list, got int"),
    (CONVERSATION, {"messages": USER}, "column 'messages' must be a list, got dict"),
    (CONVERSATION, {"messages": "hi"}, "column 'messages' is text, but not JSON"),
    (CONVERSATION, {"messages": "[" * 100_000}, "it nests too deeply"),
    (CONVERSATION, {"messages": '[{"role": "user", "content": "\\ud800"}]'}, "half of a surrogate pair"),
    (CONVERSATION, {"messages": [None]}, "a message must have role and content, got None"),
    (CONVERSATION, {"messages": [["user", "hi"]]}, "a message must have role and content, got"),
    (CONVERSATION, {"messages": [{"role": "user"}]}, "a message needs role and content"),
    (CONVERSATION, {"messages": [{"content": "hi"}]}, "a message needs role and content"),
    (CONVERSATION, {"messages": [{"a\nb": "x" * 999}]}, "a message needs role and content; this one has a b"),
    (CONVERSATION, {"messages": [{"role": "wizard", "content": "hi"}]}, "unknown role 'wizard'"),
    (CONVERSATION, {"messages": [{"role": {"a": 1}, "content": "hi"}]}, "unknown role"),
    (CONVERSATION, {"messages": [{"role": "x" * 10_000, "content": "hi"}]}, "unknown role"),
    (CONVERSATION, {"messages": [{"role": "user", "content": {"a": 1}}]}, "'content' must be text or a number"),
    (CONVERSATION, {"messages": [{"role": "user", "content": False}]}, "'content' must be text or a number"),
    (CONVERSATION, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "Only text can be trained on"),
    (CONVERSATION, {"messages": [{**ASSISTANT, "train": "no"}]}, "train of a message must be true or false"),
    (CONVERSATION, {"messages": [{**ASSISTANT, "weight": 0.5}]}, "weight of a message must be 0 or 1"),
    (CONVERSATION, {"messages": [{**ASSISTANT, "tool_calls": 7}]}, "column 'tool_calls' must be a list"),
    (
        CONVERSATION,
        {"messages": [{**ASSISTANT, "tool_calls": [{"function": "f"}]}]},
        "must be an object that names its",
    ),
    ({**CONVERSATION, "tools_field": "t"}, {"messages": [USER]}, "tools_field is 't'"),
    ({**CONVERSATION, "tools_field": "t"}, {"messages": [USER], "t": "f()"}, "column 't' is text, but not JSON"),
    (
        {**CONVERSATION, "tools_field": "t"},
        {"messages": [USER], "t": [{"name": 7}]},
        "must be an object that names its",
    ),
    ({**CONVERSATION, "system_field": "s"}, {"messages": [USER], "s": [1]}, "'s' must be text or a number, got list"),
    ({**CONVERSATION, "completion_field": "c"}, {"messages": [USER]}, "completion_field is 'c'"),
    ({"type": "preference"}, {"prompt": "a", "chosen": "b", "rejected": "c"}, "type preference is no conversation"),
]


@pytest.mark.parametrize(("spec", "row", "sentence"), BROKEN_ROWS)
def test_a_broken_row_is_refused_in_one_sentence(
    tmp_path: Path, spec: dict[str, Any], row: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert_refused(tmp_path / "rows.jsonl", sentence, **spec)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (pyarrow.table([["a"], ["b"]], names=["text", "text"]), "column 'text' stands there twice"),
        (pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), "the data set is empty"),
        (pyarrow.table({"text": [b"\xff"]}), "'text' must be text, got bytes"),
        (pyarrow.table({"text": ["a", None]}), "row 2: 'text' must be text, got NoneType"),
        (pyarrow.table({"text": pyarrow.array([b"\xff"]).view(pyarrow.string())}), "Invalid UTF8"),
        (pyarrow.table({"text": ["a"], "t": pyarrow.array([2**62], pyarrow.timestamp("s"))}), "broken .* file"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_broken_table_is_refused_in_one_sentence(
    tmp_path: Path, table: pyarrow.Table, sentence: str, suffix: str
) -> None:
    if suffix == ".parquet" and "timestamp" in str(table.schema):
        table = table.set_column(1, "t", pyarrow.array([2**62], pyarrow.timestamp("us")))
    (tmp_path / f"rows{suffix}").write_bytes(as_parquet(table) if suffix == ".parquet" else as_arrow(table))
    assert_refused(tmp_path / f"rows{suffix}", sentence)


def test_folders_without_rows_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no data file")
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    assert_refused(tmp_path, "the data set is empty")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere")
    assert_refused(tmp_path, "holds no data file")


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}', ["a", "b"]),
        ("pair.jsonl", b'{"text": "\\ud83d\\ude00 \\\\ud800"}\n', ["\U0001f600 \\ud800"]),
        ("nul.jsonl", b'{"text": "a\\u0000b"}\n', ["a\0b"]),
        ("twice.jsonl", b'{"text": "a", "text": "b"}\n', ["b"]),
        ("ragged.jsonl", b'{"text": "a"}\n{"other": 1, "text": "b"}\n', ["a", "b"]),
        ("braces.jsonl", b'{"text": "' + b"{[" * 500 + b'"}\n', ["{[" * 500]),
        ("long.jsonl", b'{"text": "' + LONG + b'"}\n', [LONG.decode()]),
        ("separators.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
        ("bom.json", b'\xef\xbb\xbf[{"text": "a"}]', ["a"]),
        ("bom.csv", b"\xef\xbb\xbftext,b\r\na,1\r\n\r\n", ["a"]),
        ("fields.csv", b'text\n"a,""b""\r\nc"\n', ['a,"b"\r\nc']),
        ("long.csv", b"text\n" + LONG + b"\n", [LONG.decode()]),
        ("bom.txt", b"\xef\xbb\xbfa\r\nb", ["a\r\nb"]),
        ("frames.txt.gz", gzip.compress(b"a") + gzip.compress(b"b"), ["ab"]),
    ],
)
def test_odd_but_whole_files_are_read(tmp_path: Path, name: str, content: bytes, documents: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_all(tmp_path / name, type="text") == documents


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    return lines.getvalue().encode()


def as_parquet(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def as_arrow(table: pyarrow.Table, new: Callable[..., Any] = pyarrow.ipc.new_file) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "rows.csv": as_csv,
    "rows.parquet": lambda rows: as_parquet(pyarrow.Table.from_pylist(rows)),
    "rows.arrow": lambda rows: as_arrow(pyarrow.Table.from_pylist(rows)),
    "stream.arrow": lambda rows: as_arrow(pyarrow.Table.from_pylist(rows), pyarrow.ipc.new_stream),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
TYPES: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "é\n\n"}, {"text": 'two, "2"'}],
    "instruction": [{"instruction": "hi", "output": "hello"}, {"instruction": "hi", "output": "hello"}],
    "conversation": [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}],
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_comes_back_from_every_format(tmp_path: Path, kind: str, name: str, suffix: str) -> None:
    rows = TYPES[kind]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](FORMATS[name](rows)))
    read = read_all(path)
    if kind == "text":
        assert read == [row["text"] for row in rows]
    else:
        assert [row.messages for row in read if isinstance(row, Conversation)] == [[USER, ASSISTANT]] * 2


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_text_file_comes_back_as_one_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech.txt{suffix}"
    path.write_bytes(COMPRESSIONS[suffix]("é\r\n\nb".encode()))
    assert read_all(path) == ["é\r\n\nb"]


WHOLE = {
    f"{name}{suffix}": compress(write(TYPES["conversation"] * 3))
    for name, write in FORMATS.items()
    for suffix, compress in COMPRESSIONS.items()
    if suffix in ("", ".gz", ".zst") or name == "rows.jsonl"
}


def read_or_be_refused(path: Path, content: bytes, **spec: Any) -> None:
    path.write_bytes(content)
    try:
        read_all(path, **spec)
    except SurogateError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that was cut, or in which bytes were changed, put in or taken out."""
    damage = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(damage) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "remove", "fill"])):
            case "flip" if damage:
                damage[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del damage[at:]
            case "insert":
                damage[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del damage[at : at + draw(st.integers(1, 16))]
            case "fill":
                damage[at : at + 8] = draw(st.sampled_from([b"\0" * 8, b"\xff" * 8]))
    return bytes(damage)


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_rows_or_a_sentence(tmp_path: Path, name: str, data: st.DataObject) -> None:
    read_or_be_refused(tmp_path / name, data.draw(damaged(WHOLE[name])))


WORDS = ["role", "content", "from", "value", "user", "assistant", "function", "name", "type", "text", "train", "weight"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=8,
)
COLUMNS = st.sampled_from(["text", "messages", "instruction", "output", "prompt", "completion", "tools", "system"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=4), max_size=3), kind=st.sampled_from(["auto", *TYPES]))
def test_rows_of_any_values_give_conversations_or_a_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], kind: str
) -> None:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    read_or_be_refused(tmp_path / "rows.jsonl", lines, type=kind)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud8a\n\r\t0', max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
def test_any_bytes_give_rows_or_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    read_or_be_refused(tmp_path / name, content)
