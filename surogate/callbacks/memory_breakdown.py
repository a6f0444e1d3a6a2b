"""MemoryBreakdown: what the memory of a run is used for, said once.

The one idea: what can be counted is counted, and what is left of the peak is activations and workspaces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from surogate.callbacks.metrics import peak_memory_gib

log = logging.getLogger(__name__)

MEASURED_STEP = 2
"""Of this process: the first one that begins with the optimizer's state in place."""


class MemoryBreakdown(pl.Callback):
    """Say after the second step how much weights, gradients, optimizer state and the rest take on the first rank."""

    def __init__(self) -> None:
        self._steps = 0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        if self._steps == MEASURED_STEP and trainer.is_global_zero:
            parts = breakdown(pl_module, trainer.optimizers)
            log.info("%s", describe(parts, peak_memory_gib() * 2**30, on_gpu=pl_module.device.type == "cuda"))


def breakdown(module: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Return bytes on this rank by what they are for."""
    weights = list(module.parameters())
    known = set(map(id, weights))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    optimised = [parameter for group in groups for parameter in group["params"]]
    return {
        "trained weights": _bytes(p for p in weights if p.requires_grad),
        "frozen weights and buffers": _bytes(p for p in weights if not p.requires_grad) + _bytes(module.buffers()),
        "master weights": _bytes(p for p in optimised if id(p) not in known),
        "gradients": _bytes(p.grad for p in optimised if p.grad is not None),
        "optimizer state": _bytes(
            leaf
            for optimizer in optimizers
            for state in optimizer.state.values()
            for leaf in tree_leaves(state)
            if isinstance(leaf, Tensor)
        ),
    }


def describe(parts: dict[str, int], peak_bytes: float, on_gpu: bool) -> str:
    """Write the parts on lines; on a CPU the peak is that of the whole process."""
    parts = {name: size for name, size in parts.items() if size}
    if on_gpu:
        parts["activations and workspaces"] = max(0, round(peak_bytes) - sum(parts.values()))
    width = max(map(len, parts))
    lines = [f"  {name:{width}}  {size / 2**30:8.3f} GiB" for name, size in parts.items()]
    whole = "peak of this GPU" if on_gpu else "peak of this process, code and data included"
    return "\n".join(["Memory:", *lines, f"  {whole}: {peak_bytes / 2**30:.3f} GiB"])


def _bytes(tensors: Iterable[Any]) -> int:
    return sum((tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes for tensor in tensors)
