"""Data sets behind URLs, on fsspec's file system in memory and on ones of our own that fail."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from surogate.config.parts import DatasetSpec
from surogate.data.sources import SourceRow, open_source
from surogate.errors import DataError

ROWS = [{"n": i} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def rows_of(url: str, **spec: Any) -> list[SourceRow]:
    return list(open_source(DatasetSpec(path=url, **spec)).rows())


def a_table() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def an_arrow_file() -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.zst", pyarrow.compress(LINES, codec="zstd", asbytes=True)),
        ("rows.parquet", a_table()),
        ("rows.parquet.gz", gzip.compress(a_table())),
        ("rows.arrow", an_arrow_file()),
        ("rows.arrow.gz", gzip.compress(an_arrow_file())),
    ],
)
def test_a_url_of_a_file_is_read_like_a_path(memory: MemoryFileSystem, name: str, content: bytes) -> None:
    memory.pipe(f"/bucket/{name}", content)
    rows = rows_of(f"memory://bucket/{name}")
    assert [row.values for row in rows] == ROWS
    assert rows[0].origin.startswith(f"memory://bucket/{name}:")


def test_a_text_file_behind_a_url_is_one_document(memory: MemoryFileSystem) -> None:
    memory.pipe("/bucket/speech.txt", b"one\n\ntwo\n")
    (row,) = rows_of("memory://bucket/speech.txt")
    assert list(row.values["text"].blocks()) == ["one\n\ntwo\n"]


def test_a_url_of_a_folder_has_splits_and_subsets(memory: MemoryFileSystem) -> None:
    names = ["en/train/a.jsonl", "en/train/b.jsonl", "en/test.jsonl", "de/train.jsonl", "en/.hidden.jsonl", "en/x.md"]
    for name in names:
        memory.pipe(f"/bucket/{name}", json.dumps({"n": name}).encode())
    assert [row.values["n"] for row in rows_of("memory://bucket/", subset="en")] == names[:2]
    assert [row.values["n"] for row in rows_of("memory://bucket/en", split="test")] == names[2:3]
    assert rows_of("memory://bucket/en", split="test")[0].origin == "memory://bucket/en/test.jsonl:1"
    with pytest.raises(DataError, match="subset is 'fr', but there is no folder"):
        rows_of("memory://bucket", subset="fr")
    with pytest.raises(DataError, match="split is 'dev', but no file is named after it"):
        rows_of("memory://bucket/en", split="dev")


def test_a_fingerprint_changes_with_a_file_and_with_the_files(memory: MemoryFileSystem) -> None:
    def fingerprint() -> str:
        return open_source(DatasetSpec(path="memory://bucket")).fingerprint

    memory.pipe("/bucket/a.jsonl", LINES)
    first = fingerprint()
    assert fingerprint() == first
    memory.pipe("/bucket/a.jsonl", LINES.replace(b"2", b"7"))
    changed = fingerprint()
    memory.pipe("/bucket/b.jsonl", LINES)
    assert len({first, changed, fingerprint()}) == 3


@pytest.mark.parametrize("key", ["ETag", "etag", "md5Hash"])
def test_a_hash_that_the_server_tells_is_the_identity(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    memory.pipe("/a.jsonl", LINES)

    def fingerprint(**told: str) -> str:
        info = {"name": "/a.jsonl", "size": 9, "type": "file", **told}
        monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, **_: info)
        return open_source(DatasetSpec(path="memory://a.jsonl")).fingerprint

    first = fingerprint(**{key: "x", "LastModified": "1"})
    assert fingerprint(**{key: "x", "LastModified": "2"}) == first
    assert fingerprint(**{key: "y", "LastModified": "1"}) != first
    assert fingerprint(LastModified="1") != fingerprint(LastModified="2")


class FailingFileSystem(MemoryFileSystem):
    """Fails as it was told to: when it is asked for information, or when a file is read."""

    protocol = "failing"
    cachable = False
    listing_error: Exception | None = None
    reading_error: Exception | None = None

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if self.listing_error is not None:
            raise self.listing_error
        return {"name": path, "size": 9, "type": "file"}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        raise self.reading_error or FileNotFoundError(path)


SECRET = "failing://ada:hunter2@host/rows.jsonl?signature=hunter2"


@pytest.mark.parametrize("step", ["listing_error", "reading_error"])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(f"nothing at {SECRET}"), "cannot be found"),
        (PermissionError(f"403 for {SECRET}"), "access is denied .*Give the credentials"),
        (TimeoutError(), "cannot be reached: TimeoutError"),
        (ConnectionError(f"reset by {SECRET}"), "cannot be reached: reset by"),
        (ValueError("Bucket name is wrong"), "cannot be reached: Bucket name is wrong"),
    ],
)
def test_what_fails_is_one_sentence_without_the_secret(
    monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, sentence: str
) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(FailingFileSystem, step, error)
    with pytest.raises(DataError, match=rf"^failing://host/rows\.jsonl:? {sentence}") as raised:
        rows_of(SECRET)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_error_of_a_library_below_is_one_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(FailingFileSystem, "reading_error", aiohttp.ClientPayloadError("cut short"))
    with pytest.raises(DataError, match="cannot be reached: cut short"):
        rows_of("failing://host/rows.jsonl")


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "cloud", {"class": "cloudfs_that_is_not_there.core.Cloud", "err": "?"})
    with pytest.raises(DataError, match=r"reading cloud:// needs cloudfs_that_is_not_there.*`pip install cloudfs"):
        open_source(DatasetSpec(path="cloud://bucket/rows.jsonl"))


@pytest.mark.parametrize("url", ["nonsense://x/rows.jsonl", "memory://x/rows.pkl", "memory://x/rows.jsonl"])
def test_what_cannot_be_opened_is_refused_before_a_row_is_asked_for(memory: MemoryFileSystem, url: str) -> None:
    memory.pipe("/x/rows.pkl", b"x")
    with pytest.raises(DataError, match=rf"^{url}"):
        open_source(DatasetSpec(path=url))
