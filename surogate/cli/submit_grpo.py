"""`surogate submit grpo`: three files, laid out over the nodes of one job.

On one node the job runs `surogate grpo` as it is. On several, the first ones train and the others serve vLLM, each part
with its own verb; what a part takes from another file is filled in here, since it will read its own file alone.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from surogate.cli.batch_script import Job
from surogate.cli.submit import (
    Submission,
    check_no_secrets,
    executable,
    relative,
    run_name,
    settled_slurm,
    submission_folder,
)
from surogate.config.checks import quantised_by
from surogate.config.keys import keys_of
from surogate.config.read import Resolved
from surogate.config.read_grpo import GrpoResolved, read_grpo
from surogate.config.record import to_yaml
from surogate.config.slurm import SlurmSpec
from surogate.errors import ConfigError

_PARTS = ("train", "infer", "orch")


def grpo_submission(options: list[str], arguments: list[str]) -> tuple[Submission, dict[str, str]]:
    """Return the script of a grpo run, and the files that its parts read.

    Args:
        options: for SLURM, as `--slurm.nodes 2`.
        arguments: of `surogate grpo`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*_PARTS, "vllm-gpus", "trainer-gpus"):
        parser.add_argument(f"--{name}", *([f"--{name.replace('-', '_')}"] if "-" in name else []))
    named, overrides = parser.parse_known_args(arguments)
    if missing := [name for name in _PARTS if getattr(named, name) is None]:
        files = " ".join(f"--{name} {name}.yaml" for name in _PARTS)
        raise ConfigError(f"surogate submit grpo needs three files: {files}; missing: {', '.join(missing)}.")
    for_slurm = [f"--train.{word.removeprefix('--')}" if word.startswith("--slurm.") else word for word in options]
    resolved = read_grpo(named.train, named.infer, named.orch, [*overrides, *for_slurm])
    check_no_secrets(resolved.train.config)
    slurm = settled_slurm(resolved.train.config)
    if slurm.nodes == 1:
        return _on_one_node(named, overrides, resolved, slurm)
    if named.vllm_gpus or named.trainer_gpus:
        raise ConfigError("--vllm-gpus and --trainer-gpus split one node; over several, set --generator-nodes.")
    return _on_several_nodes(resolved, slurm)


def _job(resolved: GrpoResolved, slurm: SlurmSpec, **values: Any) -> Job:
    train = resolved.train.config
    return Job(
        verb="grpo",
        name=slurm.job_name or run_name(train),
        executable=executable(),
        working_dir=Path.cwd(),
        output_dir=Path(train.output_dir).resolve(),
        slurm=slurm,
        **values,
    )


def _on_one_node(
    named: argparse.Namespace, overrides: list[str], resolved: GrpoResolved, slurm: SlurmSpec
) -> tuple[Submission, dict[str, str]]:
    """One process, which starts the ranks of the trainer and the server itself."""
    train = resolved.train.config
    folder = submission_folder(train.output_dir)
    command = ["grpo"]
    for part in _PARTS:
        command += [f"--{part}", relative(folder / f"{part}.yaml")]
    for name in ("vllm_gpus", "trainer_gpus"):
        command += [f"--{name.replace('_', '-')}", getattr(named, name)] if getattr(named, name) else []
    again = [] if train.resume_from_checkpoint is True else ["--train.resume_from_checkpoint", "true"]
    job = _job(
        resolved,
        replace(slurm, tasks_per_node=1),
        arguments=[*command, *overrides],
        folder=folder,
        restart_arguments=again,
        step_name="interactive",  # so that it starts its ranks itself
    )
    files = {f"{part}.yaml": Path(getattr(named, part)).read_text(encoding="utf-8") for part in _PARTS}
    return Submission(job), files


def _on_several_nodes(resolved: GrpoResolved, slurm: SlurmSpec) -> tuple[Submission, dict[str, str]]:
    train, infer, orch = resolved.train.config, resolved.infer.config, resolved.orch.config
    trainer_nodes = (slurm.nodes or 1) - slurm.generator_nodes
    gpus, tasks = slurm.gpus_per_node or 0, slurm.tasks_per_node or 1
    if trainer_nodes < 1:
        raise ConfigError(
            f"slurm.generator_nodes {slurm.generator_nodes} of {slurm.nodes} nodes leaves none to train. Raise --nodes "
            "or lower --generator-nodes."
        )
    if orch.client.base_url:
        raise ConfigError(
            "client.base_url names servers that run already, and a job over several nodes starts its own. Remove it."
        )
    if quantised := quantised_by(train):
        raise ConfigError(
            f"{quantised} is refused on several nodes, because the servers there load the original base. Submit on one "
            "node, or train on a base in full precision."
        )
    if gpus and gpus % infer.tp:
        raise ConfigError(f"infer.tp {infer.tp} does not divide the {gpus} GPUs of a generator node.")
    if gpus and "dp" not in resolved.infer.given:
        infer = replace(infer, dp=gpus // infer.tp)
    folder = submission_folder(train.output_dir)
    where = {part: relative(folder / f"{part}.yaml") for part in _PARTS}
    job = _job(
        resolved,
        slurm,
        arguments=["grpo-train", where["train"]],
        folder=folder,
        restart_arguments=[] if train.resume_from_checkpoint is True else ["--resume_from_checkpoint", "true"],
        parts={
            "trainer_nodes": trainer_nodes,
            "trainer_tasks": trainer_nodes * tasks,
            "infer": shlex.quote(where["infer"]),
            "orch": shlex.quote(where["orch"]),
            "port": infer.port if "port" in resolved.infer.given else None,
            "generator_cpus": f"--cpus-per-task={slurm.cpus_per_task * tasks} " if slurm.cpus_per_task else "",
        },
    )
    parts = {"train": train, "infer": infer, "orch": orch}
    files = {f"{name}.yaml": _alone(getattr(resolved, name), part, f"grpo-{name}") for name, part in parts.items()}
    return Submission(job, "grpo.sh.jinja"), files


def _alone(part: Resolved[Any], config: Any, verb: str) -> str:
    """Write a file that says everything by itself: what was typed, and what it took from the others."""
    typed = keys_of(config.__class__)
    changed = {
        key.name: getattr(config, key.name)
        for key in typed.values()
        if key.name in part.given or getattr(config, key.name) != key.default
    }
    changed.pop("slurm", None)
    changed.pop("distributed", None)
    origins = {name: part.origins.get(name, "from the other files") for name in changed}
    return to_yaml(Resolved(config, changed, origins), verb)
