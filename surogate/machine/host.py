"""Processor, memory, disks and scheduler of this machine, from the operating system alone."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def describe_cpu(proc: Path = PROC, cgroup: Path = CGROUP) -> dict[str, Any]:
    """Return the processor's name, the cores of the machine and those that this process may use, and 16-bit support."""
    info = _read(proc / "cpuinfo")
    flags = set(_found(r"^flags\s*:\s*(.+)$", info).split())
    usable = float(len(os.sched_getaffinity(0)))
    quota = re.fullmatch(r"(\d+) (\d+)", _read(cgroup / "cpu.max").strip())
    if quota:
        usable = min(usable, int(quota[1]) / int(quota[2]))
    return {
        "name": _found(r"^model name\s*:\s*(.+)$", info) or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": round(usable, 1),
        "bfloat16": bool(flags & {"avx512_bf16", "amx_tile"}),
    }


def describe_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> dict[str, float]:
    """Return total and free memory in GiB, as far as a container's limit allows."""
    info = _read(proc / "meminfo")
    total, free = (int(_found(rf"^{key}:\s*(\d+) kB", info) or 0) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        total, free = min(total, int(limit)), min(free, max(int(limit) - int(used), 0))
    return {"total_gib": _gib(total), "free_gib": _gib(free)}


def describe_disks(environ: Mapping[str, str] = os.environ) -> list[dict[str, Any]]:
    """Return the room where runs, caches, temporary files and shared memory lie."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = {
        "working folder": Path.cwd(),
        "token cache": Path(environ.get("SUROGATE_CACHE") or cache / "surogate"),
        "models and data sets": Path(environ.get("HF_HOME") or cache / "huggingface"),
        "temporary files": Path(tempfile.gettempdir()),
        "shared memory": Path("/dev/shm"),
    }
    return [_disk(name, path) for name, path in places.items()]


def _disk(name: str, path: Path) -> dict[str, Any]:
    existing = next(part for part in (path, *path.parents) if part.exists())
    usage = shutil.disk_usage(existing)
    return {"for": name, "path": str(path), "free_gib": _gib(usage.free), "total_gib": _gib(usage.total)}


def describe_slurm(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return whether SLURM's commands are there, and the job that this process is in."""
    keys = {"job": "SLURM_JOB_ID", "nodes": "SLURM_NNODES", "tasks": "SLURM_NTASKS", "partition": "SLURM_JOB_PARTITION"}
    inside = {name: environ[key] for name, key in keys.items() if environ.get(key)}
    return {
        "sbatch": shutil.which("sbatch"),
        "srun": shutil.which("srun"),
        "inside": inside if "job" in inside else None,
    }


def describe_python() -> dict[str, str]:
    """Return the interpreter and the operating system."""
    return {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else ""


def _gib(num_bytes: float) -> float:
    return round(num_bytes / 2**30, 1)
