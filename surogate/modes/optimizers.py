"""Optimizers, and which parameters decay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from surogate.config.parts import OptimSpec
from surogate.errors import ConfigError
from surogate.modes.normuon import NorMuon

logger = logging.getLogger(__name__)

StateSharding = Literal["none", "by rank", "with weights"]
"""Each rank has all of an optimizer's state; that of whole parameters, and sends them on; that of its shards."""


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def parameter_groups(
    parameters: Sequence[nn.Parameter], weight_decay: float, is_hidden: Sequence[bool] | None = None
) -> list[dict[str, object]]:
    """Split parameters: matrices decay; biases, norms and other vectors and scalars do not.

    Args:
        parameters: those that train.
        weight_decay: of the matrices.
        is_hidden: of each parameter, for an optimizer that treats some matrices in its own way: these come first.
    """
    flagged = list(zip(parameters, is_hidden or [False] * len(parameters), strict=True))
    groups: list[dict[str, object]] = [
        {"params": [p for p, hidden in flagged if hidden], "weight_decay": weight_decay, "hidden": True},
        {"params": [p for p, hidden in flagged if not hidden and p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p, hidden in flagged if not hidden and p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    spec: OptimSpec,
    parameters: Sequence[nn.Parameter],
    sharding: StateSharding = "none",
    is_hidden: Sequence[bool] | None = None,
) -> Optimizer:
    """Build the optimizer over parameters that are already on their device.

    adamw_8bit is bitsandbytes' AdamW with 8-bit state (tensors under 4,096 elements keep 32 bits, as upstream). Where
    bitsandbytes is not installed, or the weights are sharded, it becomes adamw, and says so once.

    Args:
        spec: which one, and its numbers.
        parameters: those that train.
        sharding: where the ranks' shares of its state are.
        is_hidden: for normuon: of each parameter, whether it is orthogonalised (normuon.py); the others are AdamW's.

    Raises:
        ConfigError: normuon over sharded weights.
    """
    groups: Any = parameter_groups(parameters, spec.weight_decay, is_hidden)
    kind = _optimizer_class(spec.name, sharding)
    numbers: dict[str, Any] = {"lr": spec.learning_rate, "betas": (spec.beta1, spec.beta2), "eps": spec.epsilon}
    if kind is NorMuon:
        numbers |= {
            "momentum": spec.normuon_momentum,
            "row_beta": spec.normuon_beta2,
            "is_cautious": spec.normuon_cautious_wd,
        }
    takes_a_flag = kind in (torch.optim.AdamW, NorMuon) and sharding != "with weights"
    if takes_a_flag and parameters and all(p.is_cuda for p in parameters):
        numbers["fused"] = True  # then a flag on the device skips a step without the host waiting (skipping.py)
    if sharding == "by rank":
        return _shared_state_class()(groups, optimizer_class=kind, **numbers)
    return kind(groups, **numbers)


def steps_to_their_device_(optimizer: Optimizer) -> None:
    """Put the counts of steps where fused kernels read them; ZeroRedundancyOptimizer loads them onto the CPU."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = state["step"].to(parameter.device, torch.float32)


@cache
def _shared_state_class() -> type[Any]:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # compiles optimizers that nobody here uses

    class SharedStateOptimizer(ZeroRedundancyOptimizer):
        """ZeroRedundancyOptimizer that loads what bitsandbytes saves."""

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            # It goes around the inner optimizer's own loading, which takes 8-bit state out of its wrapping.
            wrapping = getattr(self.optim, "_FSDP_WRAPPED_QUANT_STATE_KEY", None)
            unwrapped = {index: {**values, **values.get(wrapping, {})} for index, values in state_dict["state"].items()}
            for values in unwrapped.values():
                values.pop(wrapping, None)
            super().load_state_dict({**state_dict, "state": unwrapped})
            steps_to_their_device_(self.optim)

    return SharedStateOptimizer


def _optimizer_class(name: str, sharding: StateSharding) -> type[Any]:
    if name == "normuon":
        if sharding == "with weights":
            raise ConfigError("optimizer: normuon needs whole matrices, and zero_level 2 and 3 cut them. Use adamw.")
        return NorMuon
    if name != "adamw_8bit":
        return torch.optim.AdamW
    if sharding == "with weights":
        _say_once("adamw_8bit: bitsandbytes has no kernel for sharded weights; optimising with adamw.")
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        _say_once(f"adamw_8bit: bitsandbytes cannot be used here ({error}); optimising with adamw.")
        return torch.optim.AdamW
    return AdamW8bit
