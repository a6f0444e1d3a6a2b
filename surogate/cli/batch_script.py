"""The batch script of a job: what `surogate submit` has settled, written out by a Jinja template.

What is not here: the command line and sbatch (submit.py). The templates are those of surogate/templates, or the user's,
which may extend ours. Everything that varies reaches them quoted for the shell.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    TemplateError,
    TemplateSyntaxError,
)

from surogate.config.slurm import SlurmSpec
from surogate.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """What a template knows, as `job`.

    Attributes:
        verb: what runs: sft, pt, fit or grpo.
        name: in the queue.
        slurm: what is asked for, nodes and tasks filled in.
        arguments: behind `surogate`, as they would be typed.
        executable: what starts surogate on the nodes.
        folder: of this submission: the script, the configuration, the log.
        working_dir: where the run starts; relative paths begin there.
        output_dir: of the run.
        restart_arguments: further arguments where SLURM has started the job before.
        step_name: what srun calls the processes, where that means something to them.
        parts: further values of a template of its own, quoted for the shell.
    """

    verb: str
    name: str
    slurm: SlurmSpec
    arguments: list[str]
    executable: list[str]
    folder: Path
    working_dir: Path
    output_dir: Path
    restart_arguments: list[str] = field(default_factory=list)
    step_name: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def script(self) -> Path:
        """Where the script lies."""
        return self.folder / "job.sh"

    @property
    def log(self) -> str:
        """Where the output of all processes goes, as SLURM takes it: `%j` for the number of the job, `%%` for `%`."""
        folder = str(self.folder).replace("%", "%%")
        return f"{folder}/%j.log"

    @property
    def command(self) -> str:
        """The arguments, for the shell."""
        return shlex.join(self.arguments)

    @property
    def restart_options(self) -> str:
        """Further arguments of a restart, for the shell."""
        return shlex.join(self.restart_arguments)

    @property
    def options(self) -> list[str]:
        """Options of sbatch, one a line."""
        spec = self.slurm
        asked = {
            "job-name": self.name,
            "nodes": spec.nodes,
            "ntasks-per-node": spec.tasks_per_node,
            "gpus-per-node": spec.gpus_per_node or None,
            "cpus-per-task": spec.cpus_per_task,
            "mem": spec.mem,
            "partition": spec.partition,
            "time": spec.time,
            "account": spec.account,
            "qos": spec.qos,
            "constraint": spec.constraint,
            "chdir": self.working_dir,
            "output": self.log,
            "open-mode": "append",  # a restart goes on in the same log
            "signal": f"USR1@{spec.signal_seconds}" if spec.signal_seconds else None,
        }
        lines = [f"--{name}={_quoted(name, value)}" for name, value in asked.items() if value is not None]
        return [*lines, "--requeue" if spec.requeue else "--no-requeue", *spec.sbatch]

    @property
    def srun_options(self) -> str:
        """Options of srun that say which name and which container, for the shell; with a blank behind the last."""
        options = {"job-name": self.step_name} if self.step_name else {}
        image = self.slurm.container
        if image is not None and not image.endswith(".sif"):
            mounts = (mount if ":" in mount else f"{mount}:{mount}" for mount in self._mounts())
            options |= {"container-image": image, "container-mounts": ",".join(mounts)}
            options |= {"container-workdir": str(self.working_dir)}
        return "".join(f"--{name}={shlex.quote(value)} " for name, value in options.items())

    @property
    def program(self) -> str:
        """What starts surogate on a node, for the shell."""
        image = self.slurm.container
        if image is None:
            return shlex.join(self.executable)
        if not image.endswith(".sif"):
            return "surogate"
        gpu = ["--nv"] if self.slurm.gpus_per_node else []
        binds = [word for mount in self._mounts() for word in ("--bind", mount)]
        inside = ["apptainer", "exec", *gpu, *binds, "--pwd", str(self.working_dir), image, "surogate"]
        return shlex.join(inside)

    def _mounts(self) -> list[str]:
        own = [self.working_dir]
        if not self.output_dir.is_relative_to(self.working_dir):
            own.append(self.output_dir)
        return [*map(str, own), *self.slurm.container_mounts]


_TYPED = {"job-name": "job_name or run_name", "chdir": "the current folder", "output": "output_dir"}
"""What a user calls the value of an option of sbatch, where it is not the key of that name."""


def _quoted(option: str, value: object) -> str:
    """Write a value as sbatch reads it from the script: it expands nothing, but knows blanks, quotes, `\\` and `#`.

    Raises:
        ConfigError: no line of a script can hold the value.
    """
    text = str(value)
    typed = _TYPED.get(option, f"slurm.{option.replace('-', '_')}")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", text):
        raise ConfigError(
            f"{typed}: {text!r} has a line end or another control character, which an #SBATCH line cannot hold. Remove "
            "it."
        )
    if option == "output" and "\\" in text:
        raise ConfigError(
            f"{typed}: {text!r} has a backslash, with which SLURM would not put the job's number into the name of the "
            "log. Name another folder."
        )
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]*", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def render(job: Job, template: str) -> str:
    """Return the script of a job.

    Args:
        job: what is to run.
        template: name of ours, where the job names none of its own.

    Raises:
        ConfigError: the template is not valid Jinja, or asks for what there is not; a value fits into no #SBATCH line.
    """
    _ = job.options  # refuses odd names and paths, which a template need not ask for
    ours = PackageLoader("surogate", "templates")
    own = Path(job.slurm.template) if job.slurm.template else None
    environment = Environment(
        loader=ChoiceLoader([*([FileSystemLoader(own.parent)] if own else []), ours]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    try:
        return environment.get_template(own.name if own else template).render(job=job)
    except TemplateError as error:
        line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(f"slurm.template: {own or template}{line}: {error}.") from error
