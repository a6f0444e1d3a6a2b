"""What is recorded of GPUs, with a stand-in for NVML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surogate.callbacks.gpu_telemetry import GpuTelemetry, read_gpus
from surogate.callbacks.metrics import MetricsWriter


class FakeNvml:
    """Three GPUs, of which the third tells no power."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.is_ready = False

    def nvmlInit(self) -> None:
        self.is_ready = True

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.is_ready
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        assert self.is_ready
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=[90, 50, 10][gpu], memory=1)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=[2, 3, 1][gpu] * 2**30, total=8 * 2**30)

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return [60, 70, 50][gpu]

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 2:
            raise self.NVMLError("Not Supported")
        return [300_000, 100_000][gpu]


def test_of_several_gpus_the_least_busy_the_fullest_and_the_hottest_count() -> None:
    assert read_gpus(FakeNvml(), [0, 1]) == {
        "gpu/utilisation_percent": 70.0,
        "gpu/lowest_utilisation_percent": 50.0,
        "gpu/memory_used_gib": 3.0,
        "gpu/temperature_celsius": 70.0,
        "gpu/power_watts": 200.0,
    }


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert read_gpus(FakeNvml(), [2]) == {
        "gpu/utilisation_percent": 10.0,
        "gpu/memory_used_gib": 1.0,
        "gpu/temperature_celsius": 50.0,
    }


def run(tmp_path: Path, device: str = "cuda", steps: int = 4) -> list[dict[str, Any]]:
    """Record every second step of a run on the second visible GPU."""
    writer, telemetry = MetricsWriter(str(tmp_path)), GpuTelemetry(every_n_steps=2)
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        world_size=1,
        num_devices=1,
        global_step=0,
        current_epoch=0,
        loggers=[],
        callbacks=[writer, telemetry],
        strategy=SimpleNamespace(root_device=torch.device("cuda", 1)),
    )
    module: Any = SimpleNamespace(device=torch.device(device))
    writer.on_train_start(trainer, module)
    telemetry.on_train_start(trainer, module)
    for trainer.global_step in range(1, steps + 1):
        telemetry.on_train_batch_end(trainer, module, None, None, 0)
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("visible", "degrees"), [(None, 70.0), ("2,0", 60.0), ("GPU-0,GPU-2", 50.0)])
def test_the_gpu_is_the_one_that_the_run_sees_under_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, degrees: float
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    records = run(tmp_path)
    assert [record["step"] for record in records] == [2, 4]
    assert {record["gpu/temperature_celsius"] for record in records} == {degrees}


def test_without_a_gpu_or_without_nvml_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert run(tmp_path, device="cpu") == [] and not caplog.text
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert run(tmp_path) == []
    assert "pip install nvidia-ml-py" in caplog.text
