"""TimeBreakdown: where the time of a step goes, said once.

The one idea: the phases that the watchdog reports are the parts of a step, so they are timed where they change, and the
device is waited for there. Work that would have overlapped is then told apart, and these steps take longer than others.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from surogate.callbacks.heartbeats import place_in_step
from surogate.modes.activity import split_phase

log = logging.getLogger(__name__)

WARMUP_STEPS = 2
"""Of this process: memory is allocated and kernels are compiled in them."""

MEASURED_STEPS = 10


class TimeBreakdown(pl.Callback):
    """Say after some steps, or at the end of a shorter run, how long each part of a step takes on the first rank."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds: dict[str, float] = {}
        self._part, self._began = "", 0.0
        self._device = torch.device("cpu")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        self._steps += 1
        activity: Any = pl_module.activity
        if self._steps == WARMUP_STEPS:
            self._device = pl_module.device
            self._note(activity.doing.phase)
            activity.listener = self._note
        if self._steps == WARMUP_STEPS + MEASURED_STEPS:
            self._report(activity)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self._steps < WARMUP_STEPS + MEASURED_STEPS:
            self._report(pl_module.activity)

    def _note(self, phase: str) -> None:
        """End a part and begin the next one."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._part:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._began
        self._part, self._began = split_phase(phase)[0], now

    def _report(self, activity: Any) -> None:
        activity.listener = None
        measured = self._steps - WARMUP_STEPS
        if measured <= 0:
            log.info("The time of a step is broken down after the first %d; this run had no more.", WARMUP_STEPS)
            return
        self._note(self._part)
        self._seconds.pop("ending the run", None)
        parts = sorted(self._seconds, key=place_in_step)
        log.info("%s", describe({part: self._seconds[part] / measured for part in parts}, measured))


def describe(seconds: dict[str, float], num_steps: int) -> str:
    """Write the parts on lines.

    Args:
        seconds: of each part, in a step.
        num_steps: of which they are the mean.
    """
    whole = sum(seconds.values())
    parts = {**seconds, "whole step": whole}
    width = max(map(len, parts))
    lines = [f"  {part:{width}}  {1000 * of:9.1f} ms  {of / whole:6.1%}" for part, of in parts.items()]
    return "\n".join([f"Time of a step, mean of {num_steps}:", *lines])
