"""SurogateCLI: from a nested configuration to a run. The last station of every training verb.

What is not here: flat keys (config/), and what callbacks do. The one idea: a run is its folder. Starting the same
configuration again continues it from its newest checkpoint, or says that it is finished.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import warnings
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from surogate.callbacks import LogFile, Preemption, ProgressLine, StepCheckpoints, TokenBudget, WandbRun
from surogate.cli.launched import follow_launcher_
from surogate.cli.nested import check_names, explain
from surogate.config.identity import Nested, run_identity
from surogate.config.yaml_file import read_yaml
from surogate.data.datamodule import StepDataModule
from surogate.errors import CheckpointError, ConfigError, DataError, HardwareError, Stopped
from surogate.inspection.measures import cheap_findings
from surogate.models.skeleton import check_module_names, skeleton
from surogate.modes import CausalLMModule
from surogate.modes.sharding import is_sharded
from surogate.precision import RecipePrecision
from surogate.run_folder import TRAINER_STATE

log = logging.getLogger(__name__)

VERBS = {"fit", "validate"}


def main(argv: list[str]) -> int:
    """Train from a nested configuration."""
    return run("fit", argv)


def run(verb: str, argv: list[str]) -> int:
    """Run a verb of LightningCLI with the arguments of the command line."""
    if argv == ["--help", "full"]:
        argv = ["--help"]
    elif not any(argument in ("--help", "-h") or ".help" in argument for argument in argv):
        check_names(verb, argv)
    SurogateCLI([verb, *argv])
    return 0


def launch(nested: Nested, files: dict[str, str] | None = None) -> int:
    """Train from a nested configuration that is already at hand.

    Args:
        nested: seed_everything, trainer, model and data, as `surogate fit` takes them.
        files: further files to write into the run's folder, by name.
    """
    SurogateCLI({"subcommand": "fit", "fit": nested}, files)
    return 0


class SurogateCLI(LightningCLI):
    """LightningCLI with class_path everywhere, resuming, and errors that name the key.

    Args:
        arguments: of the command line, or a configuration.
        files: further files to write into the run's folder, by name.
    """

    def __init__(self, arguments: list[str] | Nested, files: dict[str, str] | None = None) -> None:
        _quieten()
        parser_kwargs: dict[str, Any] = {"exit_on_error": False}
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=RunConfigWriter,
            save_config_kwargs={"files": files or {}},
            parser_kwargs={**parser_kwargs, **{verb: dict(parser_kwargs) for verb in VERBS}},
            args=arguments,
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {verb: skipped | {"weights_only", "verbose"} for verb in VERBS}

    @override
    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ConfigError(explain(str(error))) from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would take the model's arguments from the checkpoint."""

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.get("data.init_args.tokenizer") == "":
            config["data.init_args.tokenizer"] = config.get("model.init_args.model.source") or ""
        if self.subcommand == "validate":  # which prints, and adds nothing to the run that it measures
            config["trainer.logger"] = False
        _move_along(config)
        follow_launcher_(config, str(self.subcommand))

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise HardwareError(f"trainer: {error}") from error
        if isinstance(trainer.precision_plugin, RecipePrecision):
            trainer.precision_plugin.check_device(trainer.strategy.root_device)  # before data and model are read
        config = self.config[self.subcommand].as_dict()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LogFile):
                callback.open()
            if isinstance(callback, StepCheckpoints) and not callback.identity:
                # Not by way of the configuration: saved there, it would outlive a change of what it tells.
                callback.identity = run_identity(config["model"], config["data"], config["trainer"].get("plugins"))
        return trainer

    def fit(self, model: pl.LightningModule, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Train, or continue, or say that there is nothing to do."""
        checkpoints = self._callback(StepCheckpoints)
        with checkpoints.run_folder.lock() if checkpoints else nullcontext():
            self._fit(model, datamodule, ckpt_path, checkpoints)

    def _fit(
        self, model: pl.LightningModule, datamodule: Any, ckpt_path: str | None, checkpoints: StepCheckpoints | None
    ) -> None:
        if checkpoints and ckpt_path is None:
            ckpt_path = checkpoints.resume_path()
            if self._is_finished(checkpoints):
                return
            if ckpt_path:
                folder = checkpoints.run_folder.path
                log.info("Continuing the run in %s from %s.", folder, Path(ckpt_path).parent.name)
        elif ckpt_path is not None:
            ckpt_path = _state_file(ckpt_path)
        if isinstance(model, CausalLMModule):
            check_module_names(model.model_spec, model.lora_spec)  # a misspelt name need not wait for the data
        preemption = self._callback(Preemption)
        with preemption.listening() if preemption else nullcontext():
            _look_at_data(datamodule)
            self._adjust_epochs(model, datamodule)
            if self._is_finished(checkpoints):  # where the epochs were adjusted
                return
            self._train(model, datamodule, ckpt_path)

    def _is_finished(self, checkpoints: StepCheckpoints | None) -> bool:
        if checkpoints is None or not checkpoints.finished(self.trainer.max_steps, self.trainer.max_epochs):
            return False
        log.info("The run in %s is finished. To go on, raise max_steps or num_epochs.", checkpoints.run_folder.path)
        return True

    def _adjust_epochs(self, model: Any, datamodule: Any) -> None:
        if budget := self._callback(TokenBudget):
            parameters = skeleton(model.model_spec).parameters()
            budget.set_epochs(self.trainer, sum(parameter.numel() for parameter in parameters), datamodule)

    def _train(self, model: pl.LightningModule, datamodule: Any, ckpt_path: str | None) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbRun) and ckpt_path is None:
                logger.start_anew()
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit as error:
            if self.trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
                raise KeyboardInterrupt from error
            raise
        except Stopped:
            if launcher := self.trainer.strategy.launcher:  # the ranks that this process has started
                launcher.kill(signal.SIGTERM)
            raise

    def validate(self, model: pl.LightningModule, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Measure the newest checkpoint of the run, or the base model where there is none."""
        if self.trainer.limit_val_batches == 0:
            raise ConfigError(
                "trainer.limit_val_batches is 0, so there is nothing to validate on. Set data.init_args."
                "validation_datasets or validation_split_ratio, and trainer.limit_val_batches to null."
            )
        checkpoints = self._callback(StepCheckpoints)
        if ckpt_path is None and checkpoints:
            newest = checkpoints.run_folder.latest_valid_checkpoint()
            ckpt_path = str(newest / TRAINER_STATE) if newest else None
        elif ckpt_path is not None:
            ckpt_path = _state_file(ckpt_path)
        log.info("Validating %s.", ckpt_path or "the model without any training")
        says_it_itself = self._callback(ProgressLine) is not None
        self.trainer.validate(
            model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=not says_it_itself
        )

    def _callback(self, kind: type[Any]) -> Any:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, kind)), None)


class RunConfigWriter(SaveConfigCallback):
    """Write config.yaml, and what else describes the run, into its folder.

    Lightning's own class refuses to write a second time. It stands after StepCheckpoints, which by then has made sure
    that the folder is this run's.

    Args:
        parser: of the subcommand.
        config: as parsed.
        files: further files, by name.
    """

    def __init__(self, parser: ArgumentParser, config: Namespace, files: dict[str, str]) -> None:
        super().__init__(parser, config, overwrite=True)  # type: ignore[arg-type]
        self.files = files

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        config = self.config.clone()
        config.pop("ckpt_path", None)  # a rerun continues from the newest checkpoint, not from that one
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"config.yaml": self.parser.dump(config, skip_none=False), **self.files}.items():
            draft = folder / f"{name}.tmp"
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, folder / name)


def _look_at_data(datamodule: Any) -> None:
    """Tokenise and look for what would spoil the run, before the model loads and before ranks wait for each other.

    Raises:
        DataError: the run would not learn what it is meant to.
    """
    if not isinstance(datamodule, StepDataModule):
        return
    datamodule.prepare_data()
    datamodule.setup("fit")
    findings = cheap_findings(datamodule)
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems:
        raise DataError("\n".join(["The data has problems; `surogate inspect` shows more:", *map(str, problems)]))
    for finding in findings:
        if finding.level == "warning":
            log.warning("%s", finding)


def _move_along(config: Namespace) -> None:
    """Take everything that writes into the run's folder along to another one.

    A configuration file spells the folder out in each callback; who sets trainer.default_root_dir on the command line
    or in a later file means all of them.
    """
    root = config.get("trainer.default_root_dir")
    files = [read_yaml(path.absolute).values for path in config.get("config") or []]
    left = {(values.get("trainer") or {}).get("default_root_dir") for values in files} - {None, root}
    specs = [config.get("trainer.callbacks"), config.get("trainer.logger")]
    for spec in chain.from_iterable(spec if isinstance(spec, list) else [spec] for spec in specs):
        for key in ("folder", "checkpoint_dir", "save_dir"):
            if root and isinstance(spec, Namespace) and spec.get(f"init_args.{key}") in left:
                spec[f"init_args.{key}"] = root


def _state_file(ckpt_path: str) -> str:
    """Return the trainer state that a path means: the file itself, or a checkpoint's folder."""
    path = Path(ckpt_path)
    path = path / TRAINER_STATE if path.is_dir() and not is_sharded(path) else path
    if not path.is_file() and not is_sharded(path):
        raise CheckpointError(f"ckpt_path: there is no checkpoint at {ckpt_path}.")
    return str(path)


def _quieten() -> None:
    """Keep Lightning's advertisements and its advice on things that are settled here off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what lightning 2.6 calls in it
    for message in (
        ".*does not have many workers.*",
        ".*have no `val_dataloader`.*",
        ".*LeafSpec.*",
        ".*`_DDPSinkBackward`.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # where early_stop was set to false
        "The `srun` command is available on your system.*",
        ".*when logging on epoch level in distributed setting.*",  # what is logged has been added up over the ranks
    ):
        warnings.filterwarnings("ignore", message)
    # Of an empty list of loaders, where too few rows to hold any out have been remarked already.
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero.*")
