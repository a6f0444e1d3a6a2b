"""`surogate grpo-train`: the trainer of a grpo run by itself; `surogate grpo-orch` elsewhere makes its batches."""

from __future__ import annotations

import os

import yaml

from surogate.config.flat_grpo import GrpoConfig
from surogate.config.launcher import check_launcher
from surogate.config.lower import to_environment
from surogate.config.lower_grpo import to_lightning_grpo_train
from surogate.config.read import read_config
from surogate.config.record import to_yaml
from surogate.errors import ConfigError
from surogate.run_folder import RunFolder


def main(argv: list[str]) -> int:
    """Train on the batches of an orchestrator in another process, met in output_dir."""
    only_print = "--print_config" in argv
    arguments = [argument for argument in argv if argument != "--print_config"]
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("Name the configuration first: surogate grpo-train train.yaml [--key value ...]")
    resolved = read_config("grpo-train", arguments[0], arguments[1:])
    train: GrpoConfig = resolved.config
    if train.max_steps < 0:
        raise ConfigError("max_steps is not set; a trainer by itself needs it, the same as the orchestrator's.")
    nested = to_lightning_grpo_train(train)
    if only_print:
        print(yaml.safe_dump(nested, sort_keys=False), end="")
        return 0
    check_launcher(train.distributed)
    os.environ.update(to_environment(train))
    with RunFolder(train.output_dir, train.checkpoint_dir).lock():
        from surogate.cli.fit import launch  # imports torch

        return launch(nested, files={"train.yaml": to_yaml(resolved, "grpo-train")})
