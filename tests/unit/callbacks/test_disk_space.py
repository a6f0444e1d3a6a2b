from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from surogate.callbacks.checkpoints import TensorFileIO
from surogate.disk_space import SLACK_BYTES, check_room


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_file_that_fits_is_let_through_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 1000 + SLACK_BYTES)
    check_room(tmp_path / "file", 1000)
    with pytest.raises(OSError, match="No space left") as caught:
        check_room(tmp_path / "file", 1001)
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_that_does_not_fit_is_refused_before_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 2 * SLACK_BYTES)
    state = {"weights": torch.zeros(2**20), "nested": [{"more": torch.zeros(2**18)}]}
    with pytest.raises(OSError, match=r"No space left.*where 5\.0 MiB are needed"):
        TensorFileIO().save_checkpoint(state, tmp_path / "step_1.tmp/trainer.ckpt")
    assert list((tmp_path / "step_1.tmp").iterdir()) == []
