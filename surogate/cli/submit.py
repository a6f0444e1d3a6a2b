"""`surogate submit`: write the batch script of a run and hand it to SLURM.

What is not here: the script (batch_script.py and surogate/templates), the nested files of fit (submit_fit.py), the
three files of grpo (submit_grpo.py), and what the run does when SLURM signals it (callbacks/preemption.py).

The one idea: a job may wait for days and start several times, so what it runs is laid down when it is submitted. The
configuration is checked here, on the login node, and copied beside the script.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePath

from surogate.cli.batch_script import Job, render
from surogate.config.flat import SCHEMAS, TrainConfig, TrainerConfig
from surogate.config.keys import expected, keys_of, nearest
from surogate.config.not_yet import ROWS
from surogate.config.read import likely_verb, read_config
from surogate.config.slurm import OPTIONS, SlurmSpec, settled
from surogate.config.yaml_file import read_yaml
from surogate.errors import ConfigError, HardwareError

VERBS = ("sft", "pt", "fit", "grpo")

FILES = "slurm"
"""Folder in output_dir that holds a folder for each submission."""

_USAGE = "surogate submit [sft|pt|fit|grpo] cfg.yaml --nodes 2 --gpus-per-node 8 [--key value ...] [--dry-run]"


def main(argv: list[str]) -> int:
    """Submit a run, or with --dry-run print its script and write nothing."""
    dry_run = any(option in argv for option in ("--dry-run", "--dry_run"))
    arguments = [argument for argument in argv if argument not in ("--dry-run", "--dry_run")]
    verb, rest = split_verb(arguments)
    options, overrides = split_options(rest)
    check_options(verb, options, overrides)
    if verb == "grpo":
        from surogate.cli.submit_grpo import grpo_submission

        script, files = grpo_submission(options, overrides)
    elif verb == "fit":
        from surogate.cli.submit_fit import fit_submission

        script, files = fit_submission(options, overrides)
    else:
        script, files = _flat_submission(verb, options, overrides)
    if dry_run:
        print(script.text, end="")
        return 0
    return submit(script, files)


class Submission:
    """A job and its script."""

    def __init__(self, job: Job, template: str = "train.sh.jinja") -> None:
        self.job = job
        self.text = render(job, template)


def submit(script: Submission, files: Mapping[str, str]) -> int:
    """Write a submission's folder, hand the script to sbatch, and say how to follow the job.

    Args:
        script: the job and its text.
        files: what lies beside the script, by name.

    Raises:
        HardwareError: there is no sbatch here.
        ConfigError: sbatch refuses the job.
    """
    job = script.job
    if shutil.which("sbatch") is None:
        raise HardwareError(
            "sbatch is not on this machine's PATH, so nothing can be submitted. Use a login node of the cluster, or "
            "--dry-run to see the script."
        )
    job.folder.mkdir(parents=True)
    for name, text in {**files, job.script.name: script.text}.items():
        (job.folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run(["sbatch", "--parsable", str(job.script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(_refusal(job, done.stderr.strip()))
    number = done.stdout.strip().split(";")[0]
    nodes, tasks = job.slurm.nodes, job.slurm.tasks_per_node
    print(f"Job {number}: {job.name}, {nodes} node{'s' * (nodes != 1)} with {tasks} process{'es' * (tasks != 1)} each")
    print(f"  script   {job.script}")
    print(f"  follow   tail -F {shlex.quote(f'{job.folder}/{number}.log')}")
    print(f"  state    squeue --jobs {number}")
    print(f"  save and requeue   scancel --signal=USR1 {number}")
    print(f"  end      scancel {number}")
    return 0


def _refusal(job: Job, reason: str) -> str:
    hint = ""
    if job.slurm.gpus_per_node and "generic resource" in reason:
        hint = " On a cluster without GPUs set --gpus-per-node 0."
    return f"sbatch refused {job.script}: {reason}.{hint}"


def split_verb(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the verb that is named or meant, and what else was typed.

    Raises:
        ConfigError: no configuration is named.
    """
    if arguments and arguments[0] in VERBS:
        return arguments[0], arguments[1:]
    named = {argument.partition("=")[0] for argument in arguments}
    if named & {"--train", "--infer", "--orch"}:
        return "grpo", arguments
    if "--config" in named:
        return "fit", arguments
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"Name the configuration first: {_USAGE}")
    model = read_yaml(arguments[0]).values.get("model")
    if isinstance(model, dict) and "class_path" in model:
        return "fit", ["--config", *arguments]
    return likely_verb(arguments[0]), arguments


def split_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Part what is for SLURM, written with `slurm.` in front, from what is for the run.

    `--gpus-per-node 8`, `--gpus_per_node=8` and `--slurm.gpus_per_node 8` are the same.

    Raises:
        ConfigError: an option that needs a value has none.
    """
    specs = keys_of(SlurmSpec)
    for_slurm: list[str] = []
    for_run: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        is_option = name.startswith("--") and (key in OPTIONS or key.startswith("slurm."))
        target = for_slurm if is_option else for_run
        if not is_option:
            target.append(argument)
            continue
        key = key.removeprefix("slurm.")
        target.append(f"--slurm.{key}{equals}{text}")
        if equals:
            continue
        if rest and not rest[0].startswith("--"):
            target.append(rest.pop(0))
        elif key == "requeue":
            target[-1] += "=true"
        elif key in specs:
            raise ConfigError(f"{name} has no value. It must be {expected(specs[key].type)}.")
    return for_slurm, for_run


_OWN_WORDS = {
    "fit": ("config", "trainer", "model", "data", "optimizer", "lr_scheduler", "seed_everything", "print_config"),
    "grpo": ("train", "infer", "orch", "vllm_gpus", "trainer_gpus"),
}
"""What may be typed without a dot after the verbs that read no flat file."""


def check_options(verb: str, options: list[str], overrides: list[str]) -> None:
    """Refuse an option of another verb, and an override that is a misspelt option.

    Args:
        verb: that runs.
        options: for SLURM, as `--slurm.nodes 2`.
        overrides: all that is for the run.

    Raises:
        ConfigError: there is one.
    """
    if verb != "grpo" and any(word.partition("=")[0] == "--slurm.generator_nodes" for word in options):
        raise ConfigError(_no_generators(verb))
    known = _OWN_WORDS.get(verb) or [*keys_of(SCHEMAS[verb]), *ROWS.synonyms, *ROWS.aliases, *ROWS.later]
    for word in overrides:
        name = word.partition("=")[0]
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or "." in key or key in known:
            continue
        close = nearest(key, [*OPTIONS, *known])
        if close in OPTIONS:
            raise ConfigError(f"{name} is not an option. Did you mean --{close.replace('_', '-')}?")


def _no_generators(verb: str) -> str:
    return f"generator_nodes is for grpo, and {verb} trains on all nodes. Remove it; --nodes says how many there are."


def _flat_submission(verb: str, options: list[str], arguments: list[str]) -> tuple[Submission, dict[str, str]]:
    """Return the script of `surogate sft` or `surogate pt`, and its copy of the configuration."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"Name the configuration first: surogate submit {verb} cfg.yaml --nodes 2 --gpus-per-node 8")
    path, overrides = Path(arguments[0]), [word for word in arguments[1:] if word != "--print_config"]
    config: TrainConfig = read_config(verb, path, [*overrides, *options]).config
    check_no_secrets(config)
    if config.slurm.generator_nodes != SlurmSpec().generator_nodes:
        raise ConfigError(_no_generators(verb))
    slurm = settled_slurm(config)
    folder = submission_folder(config.output_dir)
    again = [] if config.resume_from_checkpoint is True else ["--resume_from_checkpoint", "true"]
    job = Job(
        verb=verb,
        name=slurm.job_name or run_name(config),
        slurm=slurm,
        arguments=[verb, relative(folder / path.name), *overrides, *machines(config, slurm)],
        executable=executable(),
        folder=folder,
        working_dir=Path.cwd(),
        output_dir=Path(config.output_dir).resolve(),
        restart_arguments=again,
    )
    return Submission(job), {path.name: path.read_text(encoding="utf-8")}


def settled_slurm(config: TrainerConfig) -> SlurmSpec:
    """Return what a configuration asks SLURM for, with nodes, GPUs and tasks filled in.

    Raises:
        ConfigError: the number of GPUs is not said.
    """
    if config.gpus == 0 and config.slurm.gpus_per_node is None and not config.distributed.gpus_per_node:
        raise ConfigError("gpus: 0 takes all GPUs of a node, and a job has to say how many: --gpus-per-node 8.")
    return settled(config.slurm, config.distributed, config.gpus)


def machines(config: TrainerConfig, slurm: SlurmSpec) -> list[str]:
    """Return overrides for a configuration that says other machines than the job has."""
    said, asked = config.distributed, {"num_nodes": slurm.nodes, "gpus_per_node": slurm.tasks_per_node}
    differing = [
        f"--distributed.{key}={value}"
        for key, value in asked.items()
        if getattr(said, key) not in ({"num_nodes": 1, "gpus_per_node": 0}[key], value)
    ]
    return differing


def check_no_secrets(config: TrainerConfig) -> None:
    """Refuse a token, which would end up in the files of the job.

    Raises:
        ConfigError: there is one.
    """
    if config.hub_token:
        raise ConfigError(
            "hub_token would be written into the files of the job. Remove it and `export HF_TOKEN=...` before "
            "submitting: sbatch takes the environment along."
        )


def run_name(config: TrainerConfig) -> str:
    """Return how a run is called where nobody says it."""
    return config.run_name or f"{config.verb}-{PurePath(config.model).name.removesuffix('.gguf')}"


def submission_folder(output_dir: str) -> Path:
    """Return a new folder's path for this submission, by the time of day."""
    parent = Path(output_dir).resolve() / FILES
    name = f"{datetime.now():%Y%m%d-%H%M%S}"
    taken = (number for number in range(2, 1000) if not (parent / f"{name}-{number}").exists())
    return parent / (f"{name}-{next(taken)}" if (parent / name).exists() else name)


def relative(path: Path) -> str:
    """Write a path as it is seen from here, where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def executable() -> list[str]:
    """Return what starts this very surogate on another node: by name where PATH leads to it."""
    beside = Path(sys.executable).with_name("surogate")
    found = shutil.which("surogate")
    if found and Path(found).resolve() == beside.resolve():
        return ["surogate"]
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "surogate"]
