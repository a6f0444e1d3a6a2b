"""WandbRun: Lightning's W&B logger for runs that stop and go on.

What is not here: which numbers are logged (metrics.py).

The one idea: **a step of W&B is an optimizer step.** What belongs to one, training, validation and tables, is one row
of its history, so everything has the same x axis. A run that continues goes on in the same run of W&B, whose id lies
in its folder. A file can forget the steps that are done again, W&B cannot: rows that it has are not told again.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from surogate.callbacks.redaction import without_secrets
from surogate.errors import ConfigError
from surogate.run_folder import RunFolder, read_json, write_json


class WandbRun(WandbLogger):
    """Log to Weights & Biases.

    Args:
        folder: output_dir of the run.
        name: of the run in W&B.
        project: of W&B.
        mode: `online` gives way to WANDB_MODE of the environment.
        group: of runs in W&B.
        tags: of the run in W&B.
    """

    def __init__(
        self,
        folder: str,
        name: str | None = None,
        project: str = "surogate",
        mode: Literal["online", "offline", "disabled"] = "online",
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(name=name, project=project, save_dir=folder, offline=mode == "offline")
        self._folder, self._path = folder, RunFolder(folder).wandb_json
        self._settings: dict[str, Any] = {"name": name, "project": project, "group": group, "tags": tags or []}
        if mode != "online":
            self._settings["mode"] = mode
        self._run_id = ""
        self._first_new_step = self._next_step = 0
        self._last_names: set[str] = set()

    @rank_zero_only
    def start_anew(self) -> None:
        """Begin another run of W&B, since nothing of the one in the folder is continued."""
        self._path.unlink(missing_ok=True)

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B, begun or continued when it is first asked for.

        Raises:
            ConfigError: W&B refuses, as where nobody is logged in.
        """
        if self._experiment is None:
            self._experiment = self._begin()
        return self._experiment

    def _begin(self) -> Any:
        import wandb

        known = read_json(self._path)
        self._run_id = known.get("id") or secrets.token_hex(4)
        command_line = sys.argv
        try:
            sys.argv = without_secrets(command_line)  # which W&B keeps
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            run = wandb.init(id=self._run_id, resume="allow", dir=self._folder, reinit="create_new", **self._settings)
        except wandb.errors.Error as error:
            raise ConfigError(
                f"report_to: W&B refuses the run: {' '.join(str(error).split())} Log in with `wandb login`, set "
                "wandb_mode: offline and upload later, or leave wandb out of report_to."
            ) from error
        finally:
            sys.argv = command_line
        # Online W&B knows which rows it has. Offline it does not, but a run that was not killed has left word.
        self._first_new_step = self._next_step = max(run.step, known.get("next_step", 0))
        self._last_names = set(known.get("last_row", ()))
        self._remember()
        return run

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        run = self.experiment
        step = self._next_step if step is None else step
        if step == self._first_new_step - 1 and not self._last_names.issuperset(metrics):
            step += 1  # measured late: the run was stopped at that step before it could, and the row is closed
        if step >= self._first_new_step:
            run.log(dict(metrics), step=step)
            self._last_names = {*metrics} | (self._last_names if step < self._next_step else set())
            self._next_step = max(self._next_step, step + 1)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None
            self._remember()

    def _remember(self) -> None:
        write_json(self._path, {"id": self._run_id, "next_step": self._next_step, "last_row": sorted(self._last_names)})
