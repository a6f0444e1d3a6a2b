"""What `surogate sft` and `surogate pt` share: read, check, lower, launch. `surogate fit` enters one station later."""

from __future__ import annotations

import os

import yaml

from surogate.config.launcher import check_launcher
from surogate.config.lower import to_environment, to_lightning
from surogate.config.read import read_config
from surogate.config.record import to_yaml
from surogate.errors import ConfigError
from surogate.run_folder import RunFolder


def run(verb: str, argv: list[str]) -> int:
    """Train as a flat configuration says.

    Args:
        verb: which schema the configuration follows.
        argv: the YAML file, then overrides; `--print_config` shows the nested configuration instead of training.
    """
    only_print = "--print_config" in argv
    arguments = [argument for argument in argv if argument != "--print_config"]
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"Name the configuration first: surogate {verb} cfg.yaml [--key value ...]")
    resolved = read_config(verb, arguments[0], arguments[1:])
    nested = to_lightning(resolved.config)
    if only_print:
        print(yaml.safe_dump(nested, sort_keys=False), end="")
        return 0
    check_launcher(resolved.config.distributed)
    os.environ.update(to_environment(resolved.config))
    with RunFolder(resolved.config.output_dir, resolved.config.checkpoint_dir).lock():
        from surogate.cli.fit import launch  # imports torch

        return launch(nested, files={"surogate.yaml": to_yaml(resolved, verb)})
