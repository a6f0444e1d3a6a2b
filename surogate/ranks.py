"""Which of a run's processes this one is, as torchrun, srun or Lightning has set it. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is global rank 0 of its run."""
    if environ.get("RANK"):
        return environ["RANK"] == "0"
    # In an interactive job SLURM_PROCID is 0 for every process that Lightning starts.
    return all(environ.get(name, "0") in ("", "0") for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def process_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return how this process is called in what it prints, such as "rank 3"."""
    names = ("RANK",) if environ.get("RANK") else ("SLURM_PROCID", "LOCAL_RANK")
    rank = next((environ[name] for name in names if environ.get(name, "0") not in ("", "0")), "0")
    node = environ.get("NODE_RANK", "0")
    return f"rank {rank}" if environ.get("RANK") or node in ("", "0") else f"rank {rank} of node {node}"


def is_launched_by_lightning(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is one of those that the first one of a run has started itself."""
    return environ.get("LOCAL_RANK", "0") not in ("", "0") and not (
        environ.get("TORCHELASTIC_RUN_ID") or environ.get("RANK")
    )
