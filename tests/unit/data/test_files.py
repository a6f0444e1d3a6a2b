from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surogate.data import files
from surogate.data.files import LocalFile, LocalPlace, TextFile, compression, kind
from surogate.errors import DataError


def text_file(path: Path, content: str | bytes) -> TextFile:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return TextFile(LocalFile(path, path.name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", (".jsonl", None)),
        ("a.b.JSONL.GZ", (".jsonl", ".gz")),
        ("train/a.parquet.zst", (".parquet", ".zst")),
        ("a.gz", ("", ".gz")),
        ("README", ("", None)),
    ],
)
def test_a_name_tells_type_and_compression(name: str, expected: tuple[str, str | None]) -> None:
    file = LocalFile(Path(name), name)
    assert (kind(file), compression(file)) == expected


def test_a_text_file_is_its_text_without_the_byte_order_mark(tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert str(text) == "one\r\ntwo\rthree\n"
    assert list(text.blocks()) == ["one\r\ntwo\rthree\n"]
    assert str(pickle.loads(pickle.dumps(text))) == str(text)


def test_a_compressed_text_file_is_read_like_another(tmp_path: Path) -> None:
    assert str(text_file(tmp_path / "a.txt.gz", gzip.compress(b"one\ntwo"))) == "one\ntwo"


def test_a_text_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt: the file is not UTF-8 text"):
        str(text_file(tmp_path / "a.txt", b"abc\xff"))


def test_blocks_end_before_a_line_that_starts_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_LEN", 16)
    text = text_file(tmp_path / "a.txt", "first line\n\n  indented\nlast one\n")
    assert list(text.blocks()) == ["first line\n\n  indented\n", "last one\n"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n\r\té", max_size=300), block_len=st.integers(2, 40))
def test_blocks_joined_are_the_file_and_bounded(
    tmp_path_factory: pytest.TempPathFactory, text: str, block_len: int
) -> None:
    file = text_file(tmp_path_factory.mktemp("text") / "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_LEN", block_len)
        blocks = list(file.blocks())
    assert "".join(blocks) == text
    assert all(0 < len(block) <= 3 * block_len for block in blocks)


def test_a_block_without_a_line_end_is_cut_before_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_LEN", 8)
    text = text_file(tmp_path / "a.txt", "one two three four")
    assert all(block.startswith(" ") for block in list(text.blocks())[1:])


def test_files_of_a_folder_are_named_relative_to_it_and_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/b/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.inner for file in LocalPlace(tmp_path).files()] == ["a/b/d.txt", "a/c.txt", "b.txt"]
    assert LocalPlace(tmp_path).folder("a") == LocalPlace(tmp_path / "a")
    assert LocalPlace(tmp_path).folder("b.txt") is None
