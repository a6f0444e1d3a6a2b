"""EnvironmentRecord: environment.json says with what a run was made, so that it can be made again.

The one idea: no secret is ever written down; an option that looks like one is kept by name only.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from surogate.callbacks.redaction import without_secrets
from surogate.callbacks.wandb_run import WandbRun
from surogate.config.yaml_file import read_yaml
from surogate.machine.host import describe_cpu
from surogate.run_folder import RunFolder, write_json

PACKAGES = (
    "torch", "lightning", "transformers", "peft", "datasets", "tokenizers", "safetensors", "torchmetrics",
    "jsonargparse", "numpy", "pyarrow", "gguf", "bitsandbytes", "triton", "vllm",
)  # fmt: skip


class EnvironmentRecord(pl.Callback):
    """Write versions, git commit, hardware, command line and data fingerprints when a run starts or continues.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        self._path = RunFolder(folder).environment_json

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        described = describe_environment() | describe_run(trainer)
        write_json(self._path, described)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.log_hyperparams({"environment": described, **self._settings()})

    def _settings(self) -> dict[str, Any]:
        """Return what the run was asked for, as its own files say it, by file name."""
        files = ("surogate.yaml", "train.yaml", "infer.yaml", "orch.yaml", "config.yaml")
        paths = [self._path.with_name(name) for name in files]
        return {path.stem: read_yaml(path).values for path in paths if path.is_file()}


def describe_environment() -> dict[str, Any]:
    """Return versions, source and hardware of this process, as plain values."""
    versions = {name: installed_version(name) for name in PACKAGES}
    return {
        "surogate": installed_version("surogate"),
        "git": git_state(Path(__file__).parent) or git_state(Path.cwd()),
        "command": without_secrets(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name, version in versions.items() if version},
        "cpu": describe_cpu()["name"],
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def describe_run(trainer: pl.Trainer) -> dict[str, Any]:
    """Return how the run is spread over processes, and what its data is where the data module can say it."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    described: dict[str, Any] = {"world_size": trainer.world_size, "strategy": type(trainer.strategy).__name__}
    if hasattr(data, "data_summary"):
        described["data"] = data.data_summary()
    return described


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and dirtiness of the repository around a folder, None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
