"""Which process this is, by what launchers set."""

from __future__ import annotations

import pytest

from surogate.ranks import is_first_process, is_launched_by_lightning, process_name


@pytest.mark.parametrize(
    ("environ", "first", "name"),
    [
        ({}, True, "rank 0"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, "rank 0"),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False, "rank 8"),
        ({"SLURM_PROCID": "3"}, False, "rank 3"),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False, "rank 1"),  # started by Lightning in an interactive job
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, "rank 0 of node 1"),
        ({"RANK": "0", "SLURM_PROCID": "2"}, True, "rank 0"),  # torchrun inside srun
    ],
)
def test_which_process_this_is(environ: dict[str, str], first: bool, name: str) -> None:
    assert is_first_process(environ) is first and process_name(environ) == name


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({}, False),
        ({"LOCAL_RANK": ""}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"LOCAL_RANK": "1", "RANK": "1"}, False),  # by torchrun
    ],
)
def test_who_was_started_by_the_first_process(environ: dict[str, str], launched: bool) -> None:
    assert is_launched_by_lightning(environ) is launched
