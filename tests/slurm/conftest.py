from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from slurm.cluster import Cluster, missing, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A SLURM cluster of two nodes on loopback."""
    if programs := missing():
        pytest.fail(
            f"{', '.join(programs)} not found: `make slurm` installs SLURM (Debian's slurm-wlm and munge), and "
            "-m 'not slurm' leaves these tests out"
        )
    with TemporaryDirectory(prefix="slurm-") as folder, running(Path(folder)) as cluster:
        yield cluster
