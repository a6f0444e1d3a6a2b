from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

from surogate.machine.gpus import Gpu, Gpus, from_nvidia_smi, from_nvml

H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_gib=79.6)


class NVMLError(Exception):
    pass


def fake_nvml(**changes: Any) -> Any:
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: [9, 0],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=81559 * 2**20),
    }
    return SimpleNamespace(**{**functions, **changes})


def failing(error: Exception) -> Any:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_nvml_tells_each_gpu_and_what_the_driver_serves() -> None:
    assert from_nvml(fake_nvml()) == Gpus(gpus=[H100], driver="580.65.06", cuda=(13, 0), source="nvml")


def test_a_machine_without_a_driver_has_no_gpu_and_no_problem() -> None:
    assert from_nvml(fake_nvml(nvmlInit=failing(NVMLError("NVML Shared Library Not Found")))) == Gpus()
    assert from_nvidia_smi(failing(FileNotFoundError())) == Gpus()


def test_a_driver_that_fails_is_a_problem() -> None:
    mismatch = NVMLError("Driver/library version mismatch")
    assert from_nvml(fake_nvml(nvmlInit=failing(mismatch))).problem == str(mismatch)
    assert from_nvml(fake_nvml(nvmlDeviceGetName=failing(NVMLError("GPU is lost")))).problem == "GPU is lost"
    said = subprocess.CalledProcessError(9, "nvidia-smi", output="Failed to initialize NVML\n")
    assert from_nvidia_smi(failing(said)).problem == "Failed to initialize NVML"
    assert "no answer" in str(from_nvidia_smi(failing(subprocess.TimeoutExpired("nvidia-smi", 10))).problem)
    assert "cannot be read" in str(from_nvidia_smi(lambda: "No devices were found\n").problem)


def test_nvidia_smi_tells_the_same() -> None:
    answer = "0, NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65.06\n1, NVIDIA L4, 8.9, 23034, 580.65.06\n"
    found = from_nvidia_smi(lambda: answer)
    assert found.gpus[0] == H100 and found.gpus[1].capability == (8, 9)
    assert (found.driver, found.cuda, found.source, found.problem) == ("580.65.06", None, "nvidia-smi", None)
