"""Optimizers, and which parameters decay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn
from torch.optim import Optimizer

from surogate.config.parts import OptimSpec

logger = logging.getLogger(__name__)


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def parameter_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Split parameters: matrices decay; biases, norms and other vectors and scalars do not."""
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(spec: OptimSpec, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Build the optimizer over parameters that are already on their device.

    adamw_8bit is bitsandbytes' AdamW with 8-bit state (tensors under 4,096 elements keep 32 bits, as upstream). Where
    bitsandbytes is not installed, it becomes adamw, and says so once.
    """
    groups = parameter_groups(parameters, spec.weight_decay)
    if spec.name == "adamw_8bit":
        eight_bit = _eight_bit_adamw(spec, groups)
        if eight_bit is not None:
            return eight_bit
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)


def _eight_bit_adamw(spec: OptimSpec, groups: list[dict[str, object]]) -> Optimizer | None:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        _say_once(f"adamw_8bit: bitsandbytes cannot be used here ({error}); optimising with adamw.")
        return None
    return AdamW8bit(groups, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
