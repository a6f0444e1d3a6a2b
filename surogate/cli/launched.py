"""A nested configuration under a launcher: how many nodes and processes there are is the launcher's to say.

What is not here: flat configurations, whose lowering asks the launcher (config/lower.py). The one idea: the config.yaml
of a run on a cluster names that cluster's machines, and must still run elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from jsonargparse import Namespace

from surogate.config.launcher import launcher
from surogate.errors import ConfigError

SLURM_ENVIRONMENT = "lightning.pytorch.plugins.environments.SLURMEnvironment"


def follow_launcher_(config: Namespace, verb: str, environ: Mapping[str, str] = os.environ) -> None:
    """Set nodes, devices and the plugin of SLURM to what this process was started with.

    Args:
        config: of a verb of LightningCLI; is changed.
        verb: fit, or validate, which needs no more than one machine.
        environ: of this process.

    Raises:
        ConfigError: the configuration is for several machines, and nothing started it there.
    """
    plugins = config.get("trainer.plugins")
    plugins = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    kept = [plugin for plugin in plugins if not _is_slurm(plugin)]
    found = launcher(environ)
    if found is not None:
        config["trainer.devices"] = found.processes_per_node
        config["trainer.num_nodes"] = found.num_nodes
        if found.name == "srun":  # Lightning's own requeue saves inside the signal handler, which can hang
            kept.append(Namespace(class_path=SLURM_ENVIRONMENT, init_args=Namespace(auto_requeue=False)))
    elif (config.get("trainer.num_nodes") or 1) > 1 and "NODE_RANK" not in environ:
        if verb != "validate":
            raise ConfigError(
                f"trainer.num_nodes is {config['trainer.num_nodes']}, but this process was started on one machine "
                "alone. Use `surogate submit fit`, srun or torchrun, or add --trainer.num_nodes 1."
            )
        config["trainer.num_nodes"] = 1
    if kept != plugins:
        config["trainer.plugins"] = kept or None


def _is_slurm(plugin: object) -> bool:
    return isinstance(plugin, Namespace) and str(plugin.get("class_path")).endswith(".SLURMEnvironment")
