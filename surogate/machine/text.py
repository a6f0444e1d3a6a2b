"""The survey for people: plain lines that fit a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Survey = dict[str, Any]


def to_text(survey: Survey) -> str:
    """Write a survey as lines."""
    return "\n".join(line.rstrip() for line in _lines(survey)) + "\n"


def _lines(s: Survey) -> Iterator[str]:
    yield f"surogate {s['surogate'] or '(not installed)'}, Python {s['python']['version']}, {s['python']['platform']}"
    yield from _hardware(s)
    for device in s["devices"]:
        capability = f", compute capability {device['capability']}" if device["capability"] else ""
        yield ""
        yield f"What {device['device']}{capability} can do"
        for ability in device["abilities"]:
            yield f"  {ability['kind']:<10} {ability['name']:<12} {ability['status']:<12} {ability['why']}"
    yield ""
    yield "Packages"
    for package in s["packages"]:
        yield _package(package)
    if "probe" in s:
        yield from _probe(s["probe"])
    yield ""
    yield from [f"! {problem}" for problem in s["problems"]] or ["Nothing must be changed."]


def _hardware(s: Survey) -> Iterator[str]:
    cpu, memory, driver, slurm = s["cpu"], s["memory"], s["driver"], s["slurm"]
    usable = "" if cpu["usable_cores"] == cpu["cores"] else f", {cpu['usable_cores']:g} of them usable here"
    yield ""
    for gpu in s["gpus"]:
        yield f"GPU {gpu['index']:<10} {gpu['name']}, {gpu['memory_gib']:g} GiB, compute capability {gpu['capability']}"
    if not s["gpus"]:
        yield "GPU            none"
    if driver["version"]:
        serves = f", serves CUDA up to {driver['cuda']}" if driver["cuda"] else ""
        yield f"driver         {driver['version']}{serves}; torch was built for CUDA {s['torch_cuda'] or 'none'}"
    yield f"CPU            {cpu['name']}, {cpu['cores']} cores{usable}"
    yield f"memory         {memory['free_gib']:g} of {memory['total_gib']:g} GiB free"
    for disk in s["disks"]:
        yield f"disk           {disk['free_gib']:g} of {disk['total_gib']:g} GiB free for {disk['for']}: {disk['path']}"
    inside = slurm["inside"]
    job = f"inside job {inside['job']}" if inside else "not inside a job"
    yield f"SLURM          {slurm['sbatch']}, {job}" if slurm["sbatch"] else "SLURM          not installed"


def _package(package: Survey) -> str:
    sign = {"ok": " ", "missing": "-"}.get(package["state"], "!")
    version = package["version"] or "missing"
    wanted = package["wanted"] if package["state"] != "ok" else ""
    needed_for = f"for {package['needed_for']}" if package["needed_for"] else ""
    return f"{sign} {package['name']:<16} {version:<16} {needed_for:<18} {wanted} {package['note']}"


def _probe(probe: Survey) -> Iterator[str]:
    yield ""
    yield "What torch says"
    yield f"  torch {probe['torch']}, CUDA {probe['cuda']}, usable: {'yes' if probe['cuda_available'] else 'no'}"
    if probe["cuda_available"]:
        yield f"  built for {', '.join(probe['architectures'])}; cuDNN {probe['cudnn']}, NCCL {probe['nccl']}"
    for gpu in probe["gpus"]:
        works = "a product in bfloat16 is right" if gpu["works"] else f"a product failed: {gpu.get('problem', 'wrong')}"
        yield f"  GPU {gpu['index']} {gpu['name']}: {works}"
    for name, result in probe["imports"].items():
        yield f"  import {name}: {result}"
