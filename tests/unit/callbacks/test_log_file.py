from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from surogate.callbacks.log_file import LogFile, close
from surogate.callbacks.progress import ProgressLine
from surogate.errors import ConfigError


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    level = logging.getLogger("surogate").level
    logging.getLogger("surogate").setLevel(logging.INFO)
    yield
    close()
    logging.getLogger("surogate").setLevel(level)


def test_what_is_logged_and_what_is_printed_stands_in_the_file_with_the_time(tmp_path: Path) -> None:
    file = tmp_path / "logs/run.log"
    for message in ("first run", "second run"):  # which appends
        LogFile(str(file)).open()
        logging.getLogger("surogate.data").info(message)
    ProgressLine()._print("step 3/9  loss 2.345")
    close()
    logging.getLogger("surogate.data").info("later")
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) for line in file.read_text().splitlines()]
    assert lines[:2] == ["INFO first run", "INFO second run"]
    assert set(lines[2:]) == {"INFO step 3/9  loss 2.345"}


def test_other_ranks_write_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    LogFile(str(tmp_path / "run.log")).open()
    assert list(tmp_path.iterdir()) == []  # before there is something to say
    logging.getLogger("surogate.callbacks").error("broken")
    assert "ERROR broken" in (tmp_path / "run.rank_3.log").read_text()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_file: .* cannot be written: Is a directory"):
        LogFile(str(tmp_path)).open()
