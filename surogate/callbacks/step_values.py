"""What the last steps gave: loss, gradient norm and whether the step was skipped, as floats.

What is not here: what follows from them (health.py, early_stop.py).

The one idea: **a step never waits for the device.** On a GPU a step's values travel to the host while the next steps
run, and are taken up a fixed number of steps later. The number is fixed so that all ranks take up the same step at the
same time, and so that a resumed run decides as an undisturbed one does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

LAG_STEPS = 2
"""Steps after which a GPU is asked for the values of one; it is then done with them, or the host is far ahead."""


@dataclass(frozen=True, slots=True)
class StepValues:
    """One optimizer step.

    Attributes:
        step: its number, counted from 1.
        loss: mean over supervised tokens of all ranks.
        grad_norm: before clipping.
        skipped: loss or gradient is not finite, and nothing was updated.
        batch: this rank's StepBatch; None where the run was continued from a checkpoint in between.
        micro_losses: this rank's sum of each micro-batch.
    """

    step: int
    loss: float
    grad_norm: float
    skipped: bool
    batch: Any = None
    micro_losses: tuple[Tensor, ...] = ()


class _OnTheWay:
    """The values of a step on their way to the host."""

    def __init__(self, step: int, values: Tensor, batch: Any, micro_losses: tuple[Tensor, ...]) -> None:
        self.step, self._batch, self._micro_losses = step, batch, micro_losses
        self._arrival: torch.cuda.Event | None = None
        if values.is_cuda:
            device_values = values.float()
            values = torch.empty(3, pin_memory=True).copy_(device_values, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()
        self._values = values

    def arrived(self) -> StepValues:
        """Wait for them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        loss, grad_norm, skipped = self._values.tolist()
        return StepValues(self.step, loss, grad_norm, bool(skipped), self._batch, self._micro_losses)


class StepValuesCallback(pl.Callback):
    """A callback that is handed the values of each step, on every rank alike, and in order.

    A subclass with a state of its own puts it beside this one's.
    """

    def __init__(self) -> None:
        self._on_the_way: deque[_OnTheWay] = deque()

    def on_step_values(self, trainer: pl.Trainer, pl_module: pl.LightningModule, values: StepValues) -> None:
        """Take the values of a step; on a GPU LAG_STEPS steps after it, at the end of a run sooner."""
        raise NotImplementedError

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        values, losses = module.facts.values, tuple(module.facts.micro_losses)
        self._on_the_way.append(_OnTheWay(trainer.global_step, values, batch, losses))
        self._take(trainer, pl_module, LAG_STEPS if values.is_cuda else 0)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take(trainer, pl_module, 0)

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule, left: int) -> None:
        while len(self._on_the_way) > left:
            self.on_step_values(trainer, pl_module, self._on_the_way.popleft().arrived())

    @override
    def state_dict(self) -> dict[str, Any]:
        """Give the values that nobody has taken up yet; their batches are not kept."""
        values = [on_the_way.arrived() for on_the_way in self._on_the_way]
        return {"on_the_way": [[v.step, v.loss, v.grad_norm, float(v.skipped)] for v in values]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for step, *values in state_dict["on_the_way"]:
            self._on_the_way.append(_OnTheWay(step, torch.tensor(values, dtype=torch.float64), None, ()))
