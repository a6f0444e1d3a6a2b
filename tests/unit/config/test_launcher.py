from __future__ import annotations

import pytest

from surogate.config.launcher import Launcher, check_launcher, launcher
from surogate.config.slurm import DistributedSpec
from surogate.errors import ConfigError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NAME": "train",
}


def test_torchrun_wins_over_srun_which_may_have_started_it():
    assert launcher({**SRUN, **TORCHRUN}) == Launcher("torchrun", 2, 4)
    assert launcher(SRUN) == Launcher("srun", 2, 4)


def test_a_step_may_have_fewer_nodes_than_its_job():
    step = {**SRUN, "SLURM_NNODES": "3", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "4"}
    assert launcher(step) == Launcher("srun", 1, 4)


def test_nobody_started_a_process_of_its_own_or_of_an_interactive_job():
    assert launcher({}) is None
    assert launcher({**SRUN, "SLURM_JOB_NAME": "bash"}) is None
    assert launcher({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}) is None


def test_several_machines_need_something_that_starts_them():
    with pytest.raises(ConfigError, match="surogate submit"):
        check_launcher(DistributedSpec(num_nodes=2), {})
    check_launcher(DistributedSpec(num_nodes=2), {"NODE_RANK": "1"})
    check_launcher(DistributedSpec(gpus_per_node=4), {})


def test_a_launcher_must_have_started_what_the_configuration_says():
    check_launcher(DistributedSpec(), SRUN)
    check_launcher(DistributedSpec(num_nodes=2, gpus_per_node=4), SRUN)
    with pytest.raises(ConfigError, match="num_nodes is 4, but torchrun started 2 nodes"):
        check_launcher(DistributedSpec(num_nodes=4), TORCHRUN)
    with pytest.raises(ConfigError, match="gpus_per_node is 8, but srun started 4 processes"):
        check_launcher(DistributedSpec(num_nodes=2, gpus_per_node=8), SRUN)


@pytest.mark.parametrize("tasks", [{"SLURM_NTASKS": "3"}, {"SLURM_NTASKS": "2"}])
def test_srun_has_to_say_how_many_processes_a_node_has(tasks):
    environ = {name: value for name, value in {**SRUN, **tasks}.items() if name != "SLURM_NTASKS_PER_NODE"}
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        check_launcher(DistributedSpec(), environ)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gone[01-03,07],other", "gone01"), ("gone-a,gone-b", "gone-a"), ("gone[5]", "gone5")]
)
def test_a_first_node_that_cannot_be_found_is_told_instead_of_waited_for(nodes, first):
    environ = {**SRUN, "SLURM_STEP_NODELIST": nodes.replace(",other", ",other.invalid")}
    with pytest.raises(ConfigError, match=rf"The first node, {first}, has a name"):
        check_launcher(DistributedSpec(), environ)
    check_launcher(DistributedSpec(), {**environ, "MASTER_ADDR": "10.0.0.1"})
    check_launcher(DistributedSpec(), {**environ, "SLURM_STEP_NODELIST": "localhost"})
