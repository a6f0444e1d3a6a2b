"""What ends an orchestrator: the run's end and a later orchestrator, but no trainer that somebody will continue."""

from __future__ import annotations

import json

import torch
from support.folder_server import ServerThread
from support.waiting import wait_until

from surogate.errors import GeneratorError
from surogate.rl import transport
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.transport import FolderFeed


def weights(version):
    return WeightUpdate(version=version, tensors=lambda: iter([("w", torch.full((3,), float(version)))]))


def test_an_orchestrator_outlives_a_trainer_that_failed_and_serves_the_next_one(tmp_path):
    server = ServerThread(tmp_path)
    try:
        feed = FolderFeed(tmp_path, timeout=20)
        feed.start()
        feed.publish(weights(0))
        ledger = feed.next_batch(0).ledger
        feed.close(is_over=False)
        assert not list(tmp_path.glob("calls/*/*"))
        resumed = FolderFeed(tmp_path, timeout=20)
        resumed.restore(ledger)
        resumed.start()
        resumed.publish(weights(1))
        assert resumed.next_batch(1).step == 1 and not server.is_over.is_set()
        resumed.close()
        assert server.is_over.wait(10) and server.error is None
    finally:
        server.kill()


def test_the_older_of_two_orchestrators_gives_way_even_where_it_writes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "_BEAT_SECONDS", 0.05)
    sign = tmp_path / "orchestrator.json"

    def wait_for_turn(turn):
        wait_until(lambda: sign.exists() and json.loads(sign.read_text())["turn"] == turn)

    old = ServerThread(tmp_path)
    wait_for_turn(1)
    of_old = sign.read_bytes()
    new = ServerThread(tmp_path)
    try:
        wait_for_turn(2)
        sign.write_bytes(of_old)  # as if it had looked just before the new one wrote
        assert old.is_over.wait(10) and isinstance(old.error, GeneratorError)
        wait_for_turn(2)
        assert not new.is_over.is_set()
    finally:
        old.kill()
        new.kill()


def test_a_sign_of_an_earlier_release_or_half_of_one_is_no_obstacle(tmp_path):
    sign = tmp_path / "orchestrator.json"
    for text in ('{"id": "old", "count": 7, "pid": 1}', '{"id": "ol'):
        sign.write_text(text)
        server = ServerThread(tmp_path)
        try:
            feed = FolderFeed(tmp_path, timeout=20)
            feed.start()
            feed.close()
            assert server.is_over.wait(10) and server.error is None
            assert json.loads(sign.read_text())["turn"] == 1
        finally:
            server.kill()
