"""Two checkpoints compared: trained weights, optimizer, schedule and data position, bit for bit.

What is not here: running what made them (resume.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from surogate.modes.sharding import VALUES_FILE, is_sharded
from surogate.run_folder import TRAINER_STATE

_COMPARED = ("epoch", "global_step", "state_dict", "optimizer_states", "optimizers", "lr_schedulers")


@dataclass(frozen=True, kw_only=True)
class StateDifference:
    """What differs between two checkpoints.

    Attributes:
        num_tensors: of both.
        differing: names of the tensors that differ in a bit.
        largest: largest absolute difference among them; NaN where shapes or dtypes differ.
        where: the tensor that has it.
        values: names of other values that differ, such as a position in the data.
    """

    num_tensors: int
    differing: tuple[str, ...] = ()
    largest: float = 0.0
    where: str = ""
    values: tuple[str, ...] = ()

    @property
    def is_none(self) -> bool:
        """Whether all is equal bit for bit."""
        return not self.differing and not self.values


def compare_checkpoints(one: Path, other: Path) -> StateDifference:
    """Compare two step_N folders."""
    return compare_states(load_state(one), load_state(other))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the leaves of a checkpoint that decide how a run goes on, by their paths.

    Args:
        checkpoint: a step_N folder; the shards of a sharded one are compared as they lie there, rank by rank.
    """
    path = checkpoint / TRAINER_STATE
    values = path / VALUES_FILE if is_sharded(path) else path
    state: dict[str, Any] = torch.load(values, map_location="cpu", weights_only=True, mmap=True)
    parts = {key: state[key] for key in _COMPARED if key in state}
    if is_sharded(path):
        parts["shards"] = {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    parts |= {key: part for key, part in state.items() if isinstance(part, dict) and "ledger" in part}
    return dict(_leaves(parts, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
        return
    for key, child in items:
        yield from _leaves(child, f"{path}/{key}" if path else str(key))


def compare_states(one: dict[str, Any], other: dict[str, Any]) -> StateDifference:
    """Compare leaves by their paths; what only one has differs."""
    differing, values, largest, where = [], [], 0.0, ""
    for path in sorted(one.keys() | other.keys()):
        a, b = one.get(path), other.get(path)
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
                values.append(path)
        elif not _same_bits(a, b):
            differing.append(path)
            distance = _distance(a, b)
            if not distance <= largest:
                largest, where = distance, path
    num_tensors = sum(isinstance(leaf, Tensor) for leaf in one.values())
    return StateDifference(
        num_tensors=num_tensors, differing=tuple(differing), largest=largest, where=where, values=tuple(values)
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return torch.equal(*flat)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("nan")
    return (a.double() - b.double()).abs().max().item()
