from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from jsonargparse import Namespace

from surogate.cli.launched import SLURM_ENVIRONMENT, follow_launcher_
from surogate.errors import ConfigError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
PRECISION = Namespace(class_path="surogate.precision.RecipePrecision", init_args=Namespace())
SLURM = Namespace(class_path=SLURM_ENVIRONMENT, init_args=Namespace(auto_requeue=False))


def followed(environ: dict[str, str], verb: str = "fit", **trainer: Any) -> Namespace:
    """The trainer's part of a configuration of one device, with changes, after it was read under a launcher."""
    values = {"devices": 1, "num_nodes": 1, "plugins": [deepcopy(PRECISION)], **trainer}
    config = Namespace(trainer=Namespace(**values))
    follow_launcher_(config, verb, environ)
    return config.trainer


def test_a_launcher_decides_over_nodes_and_devices():
    assert (followed(TORCHRUN).num_nodes, followed(TORCHRUN).devices) == (2, 4)
    assert (followed(SRUN).num_nodes, followed(SRUN).devices) == (2, 3)
    assert followed({}, devices=2).devices == 2


def test_under_srun_and_nowhere_else_there_is_the_plugin_that_keeps_lightning_from_requeueing():
    assert followed(SRUN).plugins == [PRECISION, SLURM]
    assert followed(SRUN, plugins=[PRECISION, SLURM]).plugins == [PRECISION, SLURM]
    assert followed(TORCHRUN, plugins=[PRECISION, SLURM]).plugins == [PRECISION]
    assert followed({}, plugins=[PRECISION, SLURM]).plugins == [PRECISION]
    assert followed(SRUN, plugins=None).plugins == [SLURM]
    assert followed({}, plugins=None).plugins is None


def test_a_configuration_for_several_machines_does_not_wait_for_them_on_one():
    with pytest.raises(ConfigError, match=r"--trainer\.num_nodes 1"):
        followed({}, num_nodes=2)
    assert followed({"NODE_RANK": "0"}, num_nodes=2).num_nodes == 2
    assert followed({}, verb="validate", num_nodes=2).num_nodes == 1
