"""`surogate submit fit`: nested configurations, which have no keys for SLURM, so options say everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath

from surogate.cli.batch_script import Job
from surogate.cli.submit import Submission, executable, relative, submission_folder
from surogate.config.not_yet import Contract
from surogate.config.overrides import parse_overrides
from surogate.config.read import raise_problems
from surogate.config.reader import COMMAND_LINE, Reader
from surogate.config.slurm import DistributedSpec, SlurmSpec, settled, slurm_contradictions
from surogate.config.yaml_file import KeyPath, YamlFile, read_yaml
from surogate.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What may be typed."""

    slurm: SlurmSpec = field(default_factory=SlurmSpec)
    """What SLURM is asked for."""


def fit_submission(options: list[str], arguments: list[str]) -> tuple[Submission, dict[str, str]]:
    """Return the script of `surogate fit`, and copies of its configurations.

    Args:
        options: for SLURM, as `--slurm.nodes 2`.
        arguments: of `surogate fit`.
    """
    parsed, problems = parse_overrides(arguments)
    files = [Path(text) for path, text in parsed if path == ("config",)]
    if not files or problems:
        raise ConfigError("\n".join(problems) or "Name the configuration: surogate submit fit --config nested.yaml")
    slurm = settled(_spec(options), DistributedSpec())
    copies = {f"{number}-{file.name}" if number else file.name: file for number, file in enumerate(files)}
    root = _root(files, parsed)
    folder = submission_folder(root)
    command = ["fit", *(word for name in copies for word in ("--config", relative(folder / name)))]
    for path, text in parsed:
        command += [] if path == ("config",) else [f"--{'.'.join(map(str, path))}", text]
    job = Job(
        verb="fit",
        name=slurm.job_name or f"fit-{PurePath(root).name}",
        slurm=slurm,
        arguments=command,
        executable=executable(),
        folder=folder,
        working_dir=Path.cwd(),
        output_dir=Path(root).resolve(),
    )
    return Submission(job), {name: file.read_text(encoding="utf-8") for name, file in copies.items()}


def _root(files: list[Path], parsed: list[tuple[KeyPath, str]]) -> str:
    """Return the folder of the run: the command line wins, then the last file that names one."""
    named = [text for path, text in parsed if path == ("trainer", "default_root_dir")]
    in_files = [(read_yaml(file).values.get("trainer") or {}).get("default_root_dir") for file in files]
    found = [root for root in (*in_files, *named) if root]
    if not found:
        raise ConfigError("trainer.default_root_dir is not set, and the script and its log go there. Set it.")
    return str(found[-1])


def _spec(options: list[str]) -> SlurmSpec:
    """Type options where no file has keys for SLURM."""
    advice = "`surogate submit --help` lists all options."
    reader = Reader(_Options, YamlFile(COMMAND_LINE, {}, {}, []), Contract(advice))
    parsed, problems = parse_overrides(options)
    reader.override(parsed)
    spec: SlurmSpec = reader.build(reader.read_keys()).slurm
    reader.check(slurm_contradictions(spec))
    raise_problems([*(text for _, text in reader.problems), *problems])
    return spec
