"""What a run asks of several machines: the keys under `distributed:` and `slurm:`.

What is not here: the batch script that they become (cli/submit.py, cli/batch_script.py), and the launcher that started
a process (launcher.py). The one idea: `slurm:` is for `surogate submit` alone; a run reads, types and checks it, and
changes nothing for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, NotEmptyStr, PositiveInt

from surogate.config.bounded import PlainNumbers
from surogate.config.contradiction import Contradiction


@dataclass(frozen=True, kw_only=True)
class DistributedSpec(PlainNumbers):
    """How many machines a run is spread over."""

    num_nodes: PositiveInt = 1
    """Machines of the run. More than one need `surogate submit`, srun or torchrun to start them."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of each machine, and processes on it; 0 = as `gpus` says."""


@dataclass(frozen=True, kw_only=True)
class SlurmSpec(PlainNumbers):
    """What `surogate submit` asks SLURM for. The run itself changes nothing for these keys."""

    nodes: PositiveInt | None = None
    """Nodes of the job. Default: distributed.num_nodes."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of each node; 0 on a cluster without GPUs. Default: distributed.gpus_per_node, or gpus."""
    tasks_per_node: PositiveInt | None = None
    """Processes on each node. Default: gpus_per_node, at least 1."""
    generator_nodes: PositiveInt = 1
    """grpo on several nodes: how many of them run vLLM servers; the others train."""
    cpus_per_task: PositiveInt | None = None
    """CPU cores of each process. Default: the cluster's."""
    mem: NotEmptyStr | PositiveInt | None = None
    """Memory of each node, such as 200G; 0G = all of it. Default: the cluster's."""
    partition: NotEmptyStr | None = None
    """Partition, or several with commas. Default: the cluster's."""
    time: NotEmptyStr | PositiveInt | None = None
    """Time limit, such as 24:00:00 or 2-00:00:00; a whole number counts minutes. Default: the partition's."""
    account: NotEmptyStr | None = None
    """Account that is charged. Default: yours."""
    qos: NotEmptyStr | None = None
    """Quality of service."""
    constraint: NotEmptyStr | None = None
    """Features that the nodes must have, such as a100."""
    job_name: NotEmptyStr | None = None
    """Name in the queue. Default: run_name, or the verb and the model's name."""
    container: NotEmptyStr | None = None
    """Image that the run happens in: a `.sif` file (apptainer), or what pyxis takes (`nvcr.io#org/image:tag`, `.sqsh`).
    Surogate must be installed in it."""
    container_mounts: list[str] = field(default_factory=list)
    """Folders that the container sees besides the current one and output_dir: `/data` or `/data:/inside`."""
    signal_seconds: NonNegativeInt = 120
    """Seconds before the time limit at which the run is told to save and requeue; 0 = it is not told."""
    requeue: bool = True
    """Put the job back into the queue when its time is over, it is preempted, or a node fails."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell ahead of the run, such as `module load cuda`."""
    env: dict[str, str | int | float] = field(default_factory=dict)
    """Environment variables of the run. MASTER_ADDR and MASTER_PORT here win over those that the script finds."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, such as `--exclusive` or `--gres=gpu:a100:4`."""
    template: NotEmptyStr | None = None
    """Jinja file to make the script from instead of ours; it may extend `train.sh.jinja` or `grpo.sh.jinja`."""


OPTIONS = (
    "nodes",
    "gpus_per_node",
    "tasks_per_node",
    "generator_nodes",
    "cpus_per_task",
    "mem",
    "partition",
    "time",
    "account",
    "qos",
    "constraint",
    "job_name",
    "container",
    "signal_seconds",
    "requeue",
)
"""Keys that `surogate submit` takes without `slurm.` in front. No flat key has one of these names."""


_TIME_LIMIT = re.compile(
    r"\d+(:[0-5]?\d)?"  # minutes, minutes:seconds
    r"|\d+:[0-5]?\d:[0-5]?\d"  # hours:minutes:seconds
    r"|\d+-\d+(:[0-5]?\d(:[0-5]?\d)?)?",  # days-hours, days-hours:minutes, days-hours:minutes:seconds
    re.ASCII,
)


def _is_time_limit(text: str) -> bool:
    """Whether SLURM takes a text for a time limit; one of 0 would be none at all, and is written UNLIMITED."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return True
    return bool(_TIME_LIMIT.fullmatch(text) and re.search("[1-9]", text))


def slurm_contradictions(spec: SlurmSpec) -> Iterator[Contradiction]:
    """Yield the keys under `slurm:` that sbatch or the script could not take, each with what to change."""
    if spec.time is not None and not _is_time_limit(str(spec.time)):
        yield (
            ("slurm", "time"),
            f"slurm.time: {spec.time} is not a time limit. Write minutes (90), hours:minutes:seconds (24:00:00), "
            "days-hours:minutes:seconds (2-00:00:00), or UNLIMITED.",
        )
    for option in spec.sbatch:
        if not re.match(r"--?[a-zA-Z]", option) or re.search(r"[\x00-\x1f\x7f-\x9f]", option):
            yield (
                ("slurm", "sbatch"),
                f"slurm.sbatch: {option!r} is not an option of sbatch. Write it as on a command line, for example "
                "--exclusive.",
            )
    for name, value in spec.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or isinstance(value, bool):
            yield (
                ("slurm", "env"),
                f"slurm.env: {name}: {value} is not an environment variable. Write NAME: value, and 0 or 1 for yes and "
                "no.",
            )
    if spec.template is not None and not Path(spec.template).is_file():
        yield ("slurm", "template"), f"slurm.template: {spec.template} does not exist. Name a Jinja file."


def settled(spec: SlurmSpec, distributed: DistributedSpec, gpus: int = 0) -> SlurmSpec:
    """Return it with nodes, gpus_per_node and tasks_per_node filled in.

    Args:
        spec: as typed.
        distributed: says nodes and GPUs where it does not.
        gpus: the flat key, which says GPUs where neither does.
    """
    gpus_per_node = distributed.gpus_per_node or gpus if spec.gpus_per_node is None else spec.gpus_per_node
    return replace(
        spec,
        nodes=spec.nodes or distributed.num_nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=spec.tasks_per_node or max(gpus_per_node, 1),
    )
