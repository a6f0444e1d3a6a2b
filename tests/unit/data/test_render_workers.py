from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.word_tokenizer import save_word_tokenizer

from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data import render_workers
from surogate.data.chat import ChatRenderer
from surogate.data.encoding import ConversationEncoder, Encoded
from surogate.data.render_workers import RenderWorkers, encode_in_order
from surogate.data.sources import SourceRow
from surogate.data.tokenizers import load_tokenizer
from surogate.errors import DataError

WORDS = [f"w{i}" for i in range(20)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
"""It ends no turn, which is warned of."""


@pytest.fixture
def encoder(tmp_path: Path) -> ConversationEncoder:
    tokenizer = load_tokenizer(str(save_word_tokenizer(tmp_path, WORDS)))
    return ConversationEncoder(ChatRenderer(tokenizer, ChatSpec(template=TEMPLATE)), DatasetSpec(type="instruction"))


def rows(count: int, broken: int | None = None) -> Iterator[SourceRow]:
    for i in range(count):
        answer = ["a list"] if i == broken else " ".join(WORDS[: i % 20])
        yield SourceRow({"instruction": f"w{i % 20}", "output": answer}, f"rows.jsonl:{i}")


def same(left: Encoded, right: Encoded) -> bool:
    pairs = list(zip(left.rows, right.rows, strict=True))
    same_rows = all(
        np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.loss_mask, b.loss_mask) for a, b in pairs
    )
    return same_rows and left.content_hash == right.content_hash


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The worker processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(render_workers.subprocess, "Popen", Recorded)
    return processes


def test_workers_give_what_one_process_gives_in_the_same_order_and_end(
    encoder: ConversationEncoder, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_workers, "SECONDS_ALONE", 0.0)
    monkeypatch.setattr(render_workers, "CHUNK_ROWS", 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    expected = [(row.origin, encoder.encode(row)) for row in rows(100)]
    found = list(encode_in_order(rows(100), encoder))
    assert len(started) == 2
    assert [origin for origin, _ in found] == [origin for origin, _ in expected]
    assert all(same(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))
    assert all(process.poll() is not None for process in started)


def test_an_error_in_a_worker_is_that_of_the_row_behind_all_rows_before_it(
    encoder: ConversationEncoder,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(render_workers, "CHUNK_ROWS", 10)
    done = []
    with (
        pytest.raises(DataError, match=r"rows\.jsonl:33: 'output' must be text") as raised,
        RenderWorkers(encoder, 1) as workers,
    ):
        for origin, _ in workers.encode(rows(1000, broken=33)):
            done.append(origin)
    assert len(done) == 33
    assert len([message for message in caplog.messages if "without a special token" in message]) == 1
    with pytest.raises(DataError) as alone:
        list(map(encoder.encode, rows(34, broken=33)))
    assert str(alone.value) == str(raised.value)
    assert started[0].poll() is not None


def test_workers_end_where_their_rows_are_left(
    encoder: ConversationEncoder, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_workers, "SECONDS_ALONE", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(KeyboardInterrupt), closing(encode_in_order(rows(10**9), encoder)) as found:
        for number, _ in enumerate(found):
            if number == 150:
                raise KeyboardInterrupt
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_a_worker_that_the_system_ended_is_told(
    encoder: ConversationEncoder, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(DataError, match=r"ended early, with code -9"), RenderWorkers(encoder, 1) as workers:
        for _ in workers.encode(rows(10**9)):
            os.kill(started[0].pid, signal.SIGKILL)


def test_little_work_starts_no_process(encoder: ConversationEncoder, started: list[subprocess.Popen[bytes]]) -> None:
    assert len(list(encode_in_order(rows(200), encoder))) == 200
    assert not started
