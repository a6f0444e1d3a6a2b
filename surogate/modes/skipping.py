"""Skipping an optimizer step whose loss or gradient is not finite, and what is known of a step's health.

What is not here: what a run says of it, and when it gives up (callbacks/health.py).

The one idea: **a skipped step leaves every bit of weights and optimizer state as it was**, weight decay and the
optimizer's own count of steps included. It is a step all the same for everything else: the data and the learning-rate
schedule go on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepFacts:
    """What the last step gave, on the device.

    Attributes:
        values: (3,) loss, gradient norm, and 1 where the step was skipped; from one reduction, so every rank's are the
            same.
        micro_losses: this rank's sum of each micro-batch.
    """

    def __init__(self) -> None:
        self.values = torch.zeros(3)
        self.micro_losses: list[Tensor] = []

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Note a step's loss and gradient norm, which all ranks share; return whether it counts, a scalar."""
        is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self.values = torch.stack([loss, grad_norm.to(loss.dtype), (~is_finite).to(loss.dtype)])
        return is_finite


def step_if_finite(optimizer: Any, is_finite: Tensor) -> None:
    """Let the optimizer step, or leave everything as it is.

    torch's fused Adam takes a flag on the device, and the host goes on without knowing. For every other optimizer the
    host has to read the flag; bitsandbytes' waits for the device after each parameter anyway.

    Args:
        optimizer: Lightning's wrapper; its step is called in either case, so that the trainer counts it.
        is_finite: scalar on the device, the same on every rank.
    """
    inner = optimizer.optimizer
    inner = getattr(inner, "optim", inner)  # of a ZeroRedundancyOptimizer, the one that updates this rank's share
    if all(group.get("fused") for group in inner.param_groups):
        inner.found_inf = 1.0 - is_finite.float()
        optimizer.step()
        del inner.found_inf
        return
    if not is_finite:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # optimizers pass over parameters without a gradient
    optimizer.step()
