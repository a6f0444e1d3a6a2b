from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.data.cache import TokenCache
from surogate.data.row_writer import COLUMNS, MANIFEST, RowWriter, write_store
from surogate.errors import DataError


def builder(value: int = 1, built: list[Path] | None = None) -> Callable[[Path], None]:
    def fill(writer: RowWriter) -> dict[str, object]:
        for _ in range(100):
            writer.add(TokenRow(np.full(50, value, np.int32), np.ones(50, bool)))
            writer.end_document("a:1", 1)
        return {}

    def build(folder: Path) -> None:
        if built is not None:
            built.append(folder)
        write_store(folder, np.int32, fill)

    return build


def no_build(folder: Path) -> None:
    pytest.fail("built although it is there")


def test_a_store_is_built_once_and_then_found(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "new" / "folder")
    first = cache.get({"a": 1}, builder(3))
    again = cache.get({"a": 1}, no_build)
    assert again.folder == first.folder and again[0].input_ids[0] == 3
    assert cache.get({"a": 2}, builder(4))[0].input_ids[0] == 4
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ["", "", ".lock", ".lock"]


def test_the_key_is_kept_with_the_store(tmp_path: Path) -> None:
    store = TokenCache(tmp_path).get({"source": "abc"}, builder())
    assert store.folder is not None and '"source": "abc"' in (store.folder / "key.json").read_text()


@pytest.mark.parametrize("name", [*COLUMNS, MANIFEST])
@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_store_is_built_anew(tmp_path: Path, name: str, damage: str) -> None:
    cache = TokenCache(tmp_path)
    path = cache.get({}, builder()).folder / name  # type: ignore[operator]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    built: list[Path] = []
    assert len(cache.get({}, builder(built=built))) == 100 and len(built) == 1
    cache.get({}, no_build)


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "tokens").write_bytes(b"half")
        raise DataError("row 7 is broken")

    cache = TokenCache(tmp_path)
    for _ in range(2):
        with pytest.raises(DataError, match="row 7 is broken"):
            cache.get({}, fails)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert len(cache.get({}, builder())) == 100


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path)
    place = cache.get({"a": 1}, builder()).folder
    other = cache.get({"a": 2}, builder()).folder
    assert place is not None and other is not None
    (place / MANIFEST).unlink()
    for of in (place, other):
        of.with_name(f"{of.name}.building-123").mkdir()
    cache.get({"a": 1}, builder())
    assert [path.name for path in tmp_path.glob("*building*")] == [f"{other.name}.building-123"]


def test_while_one_builds_the_other_says_that_it_waits_and_then_opens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="surogate")
    started = threading.Event()

    def slowly(folder: Path) -> None:
        started.set()
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        builder()(folder)

    thread = threading.Thread(target=TokenCache(tmp_path).get, args=({}, slowly))
    thread.start()
    started.wait()
    assert len(TokenCache(tmp_path).get({}, no_build)) == 100
    thread.join()
    assert caplog.messages == ["waiting for another process that tokenises the same data"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            DataError, match=r"The token cache in .* cannot be written: .* Free some space.*SUROGATE_CACHE"
        ):
            TokenCache(tmp_path).get({}, builder())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        TokenCache(tmp_path / "file" / "tokens").get({}, builder())
