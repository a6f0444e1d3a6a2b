"""`surogate grpo`: the generator, the orchestrator and the trainer of a run, from three flat files, in one command."""

from __future__ import annotations

import argparse
import os

import yaml

from surogate.config.flat_grpo import GrpoConfig
from surogate.config.gpu_sets import GpuSets, check_gpus, gpu_sets
from surogate.config.launcher import check_launcher
from surogate.config.lower import to_environment
from surogate.config.lower_grpo import to_lightning_grpo
from surogate.config.read_grpo import GrpoResolved, read_grpo
from surogate.config.record import to_yaml
from surogate.errors import ConfigError
from surogate.rl.environments.registry import check_environments
from surogate.rl.generators.checks import require_vllm
from surogate.run_folder import RunFolder


def main(argv: list[str]) -> int:
    """Train as three flat files say."""
    arguments, overrides = _parser().parse_known_args(argv)
    missing = [name for name in ("train", "infer", "orch") if getattr(arguments, name) is None]
    if missing:
        named = " ".join(f"--{name} {name}.yaml" for name in ("train", "infer", "orch"))
        raise ConfigError(f"surogate grpo needs three files: surogate grpo {named}; missing: {', '.join(missing)}.")
    sets = gpu_sets(arguments.vllm_gpus, arguments.trainer_gpus)
    if sets is not None:
        overrides += ["--train.gpus", str(len(sets.trainer))]
    resolved = read_grpo(arguments.train, arguments.infer, arguments.orch, overrides)
    nested = to_lightning_grpo(resolved)
    if sets is not None:
        nested["data"]["init_args"]["link"]["server_gpus"] = list(sets.vllm)
    if arguments.print_config:
        print(yaml.safe_dump(nested, sort_keys=False), end="")
        return 0
    if not resolved.orch.config.client.base_url:
        require_vllm()
    check_gpus(sets, resolved.infer.config, resolved.orch.config.client.base_url)
    check_environments([*resolved.orch.config.env, *resolved.orch.config.eval.env])
    train: GrpoConfig = resolved.train.config
    check_launcher(train.distributed)
    os.environ.update(to_environment(train))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # vLLM's C++ remarks which memory it binds to
    _see_only_trainer_gpus(sets)
    with RunFolder(train.output_dir, train.checkpoint_dir).lock():
        from surogate.cli.fit import launch  # imports torch

        return launch(nested, files=_records(resolved))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="surogate grpo", add_help=False, allow_abbrev=False)
    for name in ("train", "infer", "orch"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--vllm-gpus", "--vllm_gpus")
    parser.add_argument("--trainer-gpus", "--trainer_gpus")
    parser.add_argument("--print_config", action="store_true")
    return parser


def _see_only_trainer_gpus(sets: GpuSets | None) -> None:
    """Hide the engine's GPUs from torch, which has not been imported yet; the engine is told its own by number."""
    if sets is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sets.trainer))
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # in which nvidia-smi counts; for the engine, too


def _records(resolved: GrpoResolved) -> dict[str, str]:
    """Return the three files as they were resolved, by the names that they get in the run's folder."""
    parts = {"train": resolved.train, "infer": resolved.infer, "orch": resolved.orch}
    return {f"{name}.yaml": to_yaml(part, "grpo") for name, part in parts.items()}
