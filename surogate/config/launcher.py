"""What started this process, and how many machines and processes it says there are: torchrun, srun, or nobody.

What is not here: keys (slurm.py), and what the Trainer is told (lower.py). The one idea: a launcher decides, and a
configuration that says another number is refused, since it would train on other batches than it says.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from surogate.config.slurm import DistributedSpec
from surogate.errors import ConfigError

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which a run starts its own processes, as Lightning has it."""


@dataclass(frozen=True)
class Launcher:
    """Who started the processes of a run, on how many nodes, and how many on each."""

    name: str
    num_nodes: int
    processes_per_node: int


def launcher(environ: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher of this process; None where the run starts its processes itself."""
    if "TORCHELASTIC_RUN_ID" in environ:
        per_node = int(environ["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", int(environ["WORLD_SIZE"]) // per_node, per_node)
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_JOB_NAME") not in INTERACTIVE:
        # A step may have fewer nodes than its job, and then only the variables of the step say so.
        num_nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1)
        num_tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"])
        return Launcher("srun", num_nodes, num_tasks // num_nodes)
    return None


def check_launcher(distributed: DistributedSpec, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a run that was started on other machines than its configuration says.

    Args:
        distributed: what the configuration says; its defaults leave everything to the launcher.
        environ: of this process.

    Raises:
        ConfigError: nothing started it on several machines, or a launcher did on another number.
    """
    found = launcher(environ)
    if found is None:
        if distributed.num_nodes > 1 and "NODE_RANK" not in environ:
            raise ConfigError(
                f"distributed.num_nodes is {distributed.num_nodes}, but this process was started on one machine alone. "
                "Use `surogate submit`, or start it with srun or torchrun on each machine "
                "(docs/guides/multi-node.md)."
            )
        return
    if found.name == "srun":
        _check_tasks(found, environ)
        _check_address(found, environ)
    asked = {"num_nodes": distributed.num_nodes, "gpus_per_node": distributed.gpus_per_node}
    started = {"num_nodes": found.num_nodes, "gpus_per_node": found.processes_per_node}
    for key, value in asked.items():
        if value not in (getattr(DistributedSpec(), key), started[key]):
            what = "nodes" if key == "num_nodes" else "processes on each node"
            raise ConfigError(
                f"distributed.{key} is {value}, but {found.name} started {started[key]} {what}. Start as many, or "
                "remove the key."
            )


def _check_tasks(found: Launcher, environ: Mapping[str, str]) -> None:
    """Refuse tasks that are not spread evenly, or that Lightning could not count."""
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"])
    is_even = tasks == found.num_nodes * found.processes_per_node
    if not is_even or (tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environ):
        raise ConfigError(
            f"srun started {tasks} processes on {found.num_nodes} node{'s' * (found.num_nodes > 1)} without saying how "
            "many each node has. Give --ntasks-per-node, the same number on every node, to sbatch, salloc or srun."
        )


def _check_address(found: Launcher, environ: Mapping[str, str]) -> None:
    """Refuse a first node whose name does not resolve: the ranks would wait for each other until they time out."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST")
    if found.num_nodes == 1 or "MASTER_ADDR" in environ or not nodes:
        return
    first = re.sub(r"\[([^],-]*).*?\]", r"\1", nodes).split(",")[0]  # node[01-03,07] -> node01
    try:
        socket.getaddrinfo(first, None)
    except OSError as error:
        raise ConfigError(
            f"The first node, {first}, has a name that does not resolve here, so the ranks could not meet. Export "
            "MASTER_ADDR with its address before srun (`scontrol show node` knows it), or use `surogate submit`."
        ) from error
