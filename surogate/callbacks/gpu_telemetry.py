"""GpuTelemetry: what the GPUs are doing, as the driver (NVML) sees it.

What is not here: how fast the run is and what torch has allocated (metrics.py).

The one idea: the GPUs of global rank 0's machine stand for all; of several, the least busy and the hottest count,
because a run goes as fast as its slowest GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from surogate.callbacks.metrics import MetricsWriter

log = logging.getLogger(__name__)


class GpuTelemetry(pl.Callback):
    """Record utilisation, memory, temperature and power every n optimizer steps; nothing where there is no GPU.

    Args:
        every_n_steps: optimizer steps between two records.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        self.every_n_steps = every_n_steps
        self._nvml: Any = None
        self._handles: list[Any] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or pl_module.device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            log.warning("log_gpu_util: GPUs are not observed without NVML. Install it with `pip install nvidia-ml-py`.")
            return
        try:
            pynvml.nvmlInit()
            self._handles = _handles(pynvml, trainer)
        except pynvml.NVMLError as error:
            log.warning("log_gpu_util: the GPUs cannot be observed here: %s.", error)
            return
        self._nvml = pynvml

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._nvml is None or trainer.global_step % self.every_n_steps:
            return
        metrics = read_gpus(self._nvml, self._handles)
        writer = next((c for c in trainer.callbacks if isinstance(c, MetricsWriter)), None)  # type: ignore[attr-defined]
        if writer is not None:
            writer.record(trainer, metrics)


def _handles(nvml: Any, trainer: pl.Trainer) -> list[Any]:
    """Return the GPUs that the run uses on this machine; torch numbers those that are visible, NVML all."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    count = min(trainer.num_devices, torch.cuda.device_count()) if trainer.world_size > 1 else 1
    first = trainer.strategy.root_device.index or 0 if trainer.world_size == 1 else 0
    handles = []
    for number in range(first, first + count):
        name = visible[number] if number < len(visible) else str(number)
        by_name = nvml.nvmlDeviceGetHandleByIndex if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID
        handles.append(by_name(int(name) if name.isdigit() else name))
    return handles


def read_gpus(nvml: Any, handles: list[Any]) -> dict[str, float]:
    """Read some GPUs.

    Args:
        nvml: the module pynvml.
        handles: of the GPUs.

    Returns:
        Metrics by name; what a GPU does not tell is left out.
    """
    readings: dict[str, tuple[Callable[[Any], float], Callable[[list[float]], float]]] = {
        "gpu/utilisation_percent": (lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu, _mean),
        "gpu/lowest_utilisation_percent": (lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu, min),
        "gpu/memory_used_gib": (lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30, max),
        "gpu/temperature_celsius": (lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU), max),
        "gpu/power_watts": (lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000, _mean),
    }
    if len(handles) == 1:
        del readings["gpu/lowest_utilisation_percent"]
    metrics = {}
    for name, (read, combine) in readings.items():
        try:
            metrics[name] = float(combine([read(gpu) for gpu in handles]))
        except nvml.NVMLError as error:
            log.debug("%s is not known: %s", name, error)
    return metrics


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
