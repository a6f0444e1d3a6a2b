"""`--vllm-gpus` and `--trainer-gpus`: which GPUs of this machine generate and which train."""

from __future__ import annotations

from dataclasses import dataclass

from surogate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GpuSets:
    """Numbers of GPUs, as CUDA_VISIBLE_DEVICES counts them; without a common one."""

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
