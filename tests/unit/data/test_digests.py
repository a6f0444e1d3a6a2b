from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from surogate.data.cache_folder import cache_dir
from surogate.data.digests import file_digest

LARGE = b"row\n" * (1 << 18)
DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUROGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path, cache: Path) -> Path:
    """A large file that has not changed for days."""
    path = tmp_path / "corpus.txt"
    path.write_bytes(LARGE)
    os.utime(path, (DAY, DAY))
    return path


def records(cache: Path) -> list[Path]:
    return sorted((cache / "digests").glob("*"))


def forge(record: Path) -> None:
    """Make a record say something false, which tells whether it was read."""
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": "remembered"}))


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUROGATE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home/.cache/surogate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/surogate"
    monkeypatch.setenv("SUROGATE_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_large_file_is_hashed_once_and_then_remembered(corpus: Path, cache: Path) -> None:
    assert file_digest(corpus) == hashlib.sha256(LARGE).hexdigest()
    (record,) = records(cache)
    forge(record)
    assert file_digest(corpus) == "remembered"


def test_a_small_file_is_hashed_each_time(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "small").write_bytes(b"row\n")
    assert file_digest(tmp_path / "small") == hashlib.sha256(b"row\n").hexdigest()
    assert not records(cache)


def test_what_was_touched_is_hashed_again(corpus: Path, cache: Path) -> None:
    before = file_digest(corpus)
    forge(records(cache)[0])
    os.utime(corpus, (2 * DAY, 2 * DAY))
    assert file_digest(corpus) == before


def test_a_change_that_keeps_the_size_is_seen(corpus: Path) -> None:
    before = file_digest(corpus)
    corpus.write_bytes(b"ROW\n" + LARGE[4:])
    assert file_digest(corpus) != before


def test_a_file_put_in_the_place_of_another_is_seen(corpus: Path, tmp_path: Path) -> None:
    before = file_digest(corpus)
    other = tmp_path / "other"
    other.write_bytes(b"ROW\n" + LARGE[4:])
    os.utime(other, (DAY, DAY))
    other.replace(corpus)
    assert file_digest(corpus) != before


def test_a_file_that_may_still_be_changing_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "new").write_bytes(LARGE)
    file_digest(tmp_path / "new")
    assert not records(cache)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000, b"[]", b"{}", b'{"file": 1}'])
def test_a_broken_record_is_ignored_and_replaced(corpus: Path, cache: Path, content: bytes) -> None:
    digest = file_digest(corpus)
    (record,) = records(cache)
    record.write_bytes(content)
    assert file_digest(corpus) == digest
    assert json.loads(record.read_bytes())["sha256"] == digest


def test_concurrent_writers_leave_one_whole_record(corpus: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(file_digest, [corpus] * 32))
    assert digests == {hashlib.sha256(LARGE).hexdigest()}
    (record,) = records(cache)
    assert json.loads(record.read_bytes())["sha256"] in digests


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(corpus: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert file_digest(corpus) == hashlib.sha256(LARGE).hexdigest()
