"""What rank 0 does while the others wait: for as long as it says, and not until their process group gives up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from surogate.modes import first_rank

RANK = """
import sys, time
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace
from torch import distributed

path, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = spec_from_file_location("first_rank", path)
first_rank = module_from_spec(spec)
spec.loader.exec_module(first_rank)
limit = timedelta(seconds=5)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)


def broadcast(value):
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


class Trainer:
    is_global_zero, world_size = rank == 0, 2
    strategy = SimpleNamespace(broadcast=broadcast)  # as that of DDP


def act():
    if lasts:
        time.sleep(6)
    return "done"


trainer = Trainer()
for lasts in (False, True):
    print(first_rank.on_first_rank(trainer, act, shared=True))
"""
"""A rank whose process group gives up after less time than rank 0 takes."""


def test_the_others_wait_for_longer_than_their_process_group_does(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK, first_rank.__file__, str(tmp_path / "store")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([*command, rank], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [out for out, _ in told] == ["done\ndone\n"] * 2, told
