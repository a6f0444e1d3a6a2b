"""The GPUs of this machine, asked of NVML or of nvidia-smi; torch is not needed.

What is not here: what follows from a compute capability (abilities.py).
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from surogate.chips import Capability

_QUERY = "index,name,compute_cap,memory.total,driver_version"
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, as the driver numbers it."""

    index: int
    name: str
    capability: Capability
    memory_gib: float


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """All of them, and how they were found.

    Attributes:
        driver: its version; None where there is none.
        cuda: newest CUDA that the driver serves; None where only nvidia-smi could be asked.
        source: `nvml`, `nvidia-smi`, or None where there is neither.
        problem: why a driver that is there could not be asked.
    """

    gpus: list[Gpu] = field(default_factory=list)
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    source: str | None = None
    problem: str | None = None


def find_gpus() -> Gpus:
    """Ask NVML where its Python package is installed, else nvidia-smi."""
    try:
        import pynvml
    except ImportError:
        return from_nvidia_smi()
    return from_nvml(pynvml)


def from_nvml(nvml: Any) -> Gpus:
    """Ask NVML.

    Args:
        nvml: the module `pynvml`.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        has_no_driver = "not found" in str(error).lower()
        return Gpus(source=None if has_no_driver else "nvml", problem=None if has_no_driver else str(error))
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return Gpus(
            gpus=[_from_handle(nvml, index, handle) for index, handle in enumerate(handles)],
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda=(version // 1000, version % 1000 // 10),
            source="nvml",
        )
    except nvml.NVMLError as error:
        return Gpus(source="nvml", problem=str(error))
    finally:
        nvml.nvmlShutdown()


def _from_handle(nvml: Any, index: int, handle: Any) -> Gpu:
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory_gib=round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes in older versions


def _ask_nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    return done.stdout


def from_nvidia_smi(ask: Callable[[], str] = _ask_nvidia_smi) -> Gpus:
    """Ask nvidia-smi.

    Args:
        ask: returns what it prints.
    """
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(ask().splitlines()) if row]
    except FileNotFoundError:
        return Gpus()
    except subprocess.CalledProcessError as error:
        said = (error.stdout or error.stderr or "").strip().splitlines()
        return Gpus(source="nvidia-smi", problem=said[0] if said else f"exit code {error.returncode}")
    except subprocess.TimeoutExpired:
        return Gpus(source="nvidia-smi", problem=f"no answer within {_TIMEOUT_SECONDS} seconds")
    try:
        return Gpus(gpus=list(map(_from_row, rows)), driver=rows[0][4] if rows else None, source="nvidia-smi")
    except (ValueError, IndexError):
        return Gpus(source="nvidia-smi", problem=f"its answer cannot be read: {rows}")


def _from_row(row: list[str]) -> Gpu:
    major, minor = row[2].split(".")
    return Gpu(
        index=int(row[0]), name=row[1], capability=(int(major), int(minor)), memory_gib=round(float(row[3]) / 1024, 1)
    )
