"""The end of a trainer: the orchestrator ends with the run, and not with a trainer that somebody will continue."""

from __future__ import annotations

import torch
from support.folder_server import ServerThread

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
