"""The whole survey as plain values: what `surogate env --json` prints.

The one idea: `schema` counts up when a key goes or changes its meaning; keys may be added without that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from surogate.chips import KERNELS
from surogate.machine import host
from surogate.machine.abilities import Device, abilities
from surogate.machine.gpus import Gpus, find_gpus
from surogate.machine.packages import Package, installed_version, survey_packages, torch_cuda
from surogate.rl.generators.checks import install_line

SCHEMA = 1


def survey(
    *,
    full: bool = False,
    gpus: Gpus | None = None,
    version_of: Callable[[str], str | None] = installed_version,
) -> dict[str, Any]:
    """Return what this machine is and can do.

    Args:
        full: also what torch says, which takes seconds.
        gpus: those found; None looks for them.
        version_of: gives the installed version of a package.
    """
    gpus = find_gpus() if gpus is None else gpus
    packages, cpu, cuda = survey_packages(version_of), host.describe_cpu(), torch_cuda()
    result = {
        "schema": SCHEMA,
        "surogate": installed_version("surogate"),
        "python": host.describe_python(),
        "gpus": [{**asdict(gpu), "capability": _dotted(gpu.capability)} for gpu in gpus.gpus],
        "driver": {
            "version": gpus.driver,
            "cuda": _dotted(gpus.cuda) if gpus.cuda else None,
            "source": gpus.source,
        },
        "torch_cuda": cuda,
        "devices": [
            {
                "device": device.name,
                "capability": _dotted(device.capability) if device.capability else None,
                "abilities": [asdict(ability) for ability in abilities(device)],
            }
            for device in _devices(gpus, cpu["bfloat16"], version_of)
        ],
        "packages": [asdict(package) for package in packages],
        "cpu": cpu,
        "memory": host.describe_memory(),
        "disks": host.describe_disks(),
        "slurm": host.describe_slurm(),
        "problems": list(_problems(gpus, packages, cuda)),
    }
    if full:
        from surogate.machine.torch_probe import probe

        result["probe"] = probe()
    return result


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _devices(gpus: Gpus, has_bf16: bool, version_of: Callable[[str], str | None]) -> Iterator[Device]:
    """Yield a device for each kind of GPU, or the CPU where there is none."""

    def device(name: str, capability: tuple[int, int] | None) -> Device:
        return Device(
            name=name,
            capability=capability,
            has_bf16=has_bf16,
            installed=lambda package: version_of(package) is not None,
            vllm_line=install_line(),
        )

    kinds: dict[tuple[int, int], str] = {}
    for gpu in gpus.gpus:
        kinds.setdefault(gpu.capability, gpu.name)
    for capability, name in kinds.items():
        yield device(name, capability)
    if not kinds:
        yield device("CPU", None)


def _problems(gpus: Gpus, packages: list[Package], cuda: str | None) -> Iterator[str]:
    """Yield a sentence for all that must be changed."""
    if gpus.problem:
        yield f"The NVIDIA driver does not answer ({gpus.problem}), so no GPU can be used: look at nvidia-smi."
    if gpus.gpus and cuda is None:
        yield "The installed torch is a build without CUDA, so the GPUs are not used: install the CUDA build of torch."
    if gpus.gpus and cuda and gpus.cuda and int(cuda.partition(".")[0]) > gpus.cuda[0]:
        yield (
            f"torch was built for CUDA {cuda}, and the driver {gpus.driver} serves up to {_dotted(gpus.cuda)}: "
            "update the driver, or install a torch built for an older CUDA."
        )
    for gpu in gpus.gpus:
        if gpu.capability < KERNELS:
            yield (
                f"GPU {gpu.index} ({gpu.name}) has compute capability {_dotted(gpu.capability)}; the kernels need "
                f"{_dotted(KERNELS)}."
            )
    for package in packages:
        if package.is_problem:
            wanted = f", wanted {package.wanted}" if package.wanted else ""
            found = f"{package.version} is {package.state}" if package.version else "is missing"
            yield f"{package.name} {found}{wanted}: {package.note}."
