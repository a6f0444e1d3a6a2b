"""Which GPUs of this machine generate and which train: `--vllm-gpus` and `--trainer-gpus`. No torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surogate.config.flat_grpo import InferConfig
from surogate.errors import ConfigError

_GPU = re.compile(r"^GPU (\d+): .*\(UUID: ([^)]+)\)", re.MULTILINE)
_LISTING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class GpuSets:
    """Numbers of GPUs, as nvidia-smi counts them; without a common one."""

    vllm: tuple[int, ...]
    trainer: tuple[int, ...]


def gpu_sets(vllm: str | None, trainer: str | None) -> GpuSets | None:
    """Read the two options; None where neither is given, and everything shares what there is.

    Args:
        vllm: numbers such as `0,1`.
        trainer: the same.

    Raises:
        ConfigError: only one is given, one is no list of numbers, or they overlap.
    """
    if vllm is None and trainer is None:
        return None
    if vllm is None or trainer is None:
        raise ConfigError("--vllm-gpus and --trainer-gpus go together: name the GPUs of both, such as 0 and 1,2,3.")
    sets = GpuSets(_numbers("--vllm-gpus", vllm), _numbers("--trainer-gpus", trainer))
    common = sorted(set(sets.vllm) & set(sets.trainer))
    if common:
        raise ConfigError(
            f"--vllm-gpus {vllm} and --trainer-gpus {trainer} overlap in {', '.join(map(str, common))}. Give each its "
            "own, or leave both options out to share one GPU."
        )
    return sets


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{option} must be numbers of GPUs, such as 0,1, got {text!r}.")
    return tuple(dict.fromkeys(map(int, parts)))


def usable_gpus(environ: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """Return the numbers of this machine's GPUs, as nvidia-smi counts them, that CUDA_VISIBLE_DEVICES leaves."""
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=_LISTING_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    known = {int(number): uuid for number, uuid in _GPU.findall(listing)}
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return tuple(known)
    usable: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        meant = [number for number, uuid in known.items() if name == str(number) or (name and uuid.startswith(name))]
        if len(meant) != 1:  # as CUDA reads it, nothing behind a wrong entry counts
            break
        usable += meant
    return tuple(usable)


def check_gpus(
    sets: GpuSets | None, infer: InferConfig, base_url: Sequence[str], environ: Mapping[str, str] = os.environ
) -> None:
    """Make sure that the GPUs are there which the options and tp and dp of infer.yaml ask for.

    Args:
        sets: of the two options.
        infer: settled.
        base_url: servers that run already.
        environ: for CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: they are not.
    """
    wanted = infer.tp * infer.dp
    if base_url:
        if sets is not None:
            raise ConfigError("--vllm-gpus is of a server that the run starts, and client.base_url names others.")
        return
    if infer.dp > 1 and sets is None and not infer.own_process:
        raise ConfigError(
            f"dp {infer.dp} of infer.yaml needs a server: give --vllm-gpus and --trainer-gpus, or set own_process."
        )
    if sets is None and wanted == 1:
        return
    usable = usable_gpus(environ)
    if sets is not None:
        _check_there("--vllm-gpus", sets.vllm, usable, environ)
        _check_there("--trainer-gpus", sets.trainer, usable, environ)
    num_gpus = len(usable if sets is None else sets.vllm)
    if wanted > num_gpus:
        where = "there are" if sets is None else "--vllm-gpus names"
        raise ConfigError(f"tp {infer.tp} x dp {infer.dp} of infer.yaml needs {wanted} GPUs, and {where} {num_gpus}.")


def _check_there(option: str, named: Sequence[int], usable: Sequence[int], environ: Mapping[str, str]) -> None:
    missing = [str(number) for number in named if number not in usable]
    if not missing:
        return
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    left = "" if visible is None else f" that CUDA_VISIBLE_DEVICES ({visible}) leaves"
    there = ", ".join(map(str, usable)) or "none"
    hint = "Name others." if usable else "Leave both options out."
    raise ConfigError(
        f"{option} names GPU {', '.join(missing)}; `nvidia-smi -L` shows these on this machine{left}: {there}. {hint}"
    )
