"""Combinations of keys that several machines or processes cannot run. No torch.

What is not here: everything else that cannot run (checks.py), and the keys under `slurm:` by themselves (slurm.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from surogate.config.contradiction import Contradiction
from surogate.config.flat import TrainerConfig
from surogate.config.slurm import slurm_contradictions


def machine_contradictions(config: TrainerConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield every reason why the processes of a run could not work together.

    Args:
        config: all values, defaults filled in.
        given: only what the user set.
    """
    yield from _devices(config, given)
    yield from _sharding(config)
    yield from _standstill(config)
    yield from slurm_contradictions(config.slurm)


def _devices(c: TrainerConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    per_node = c.distributed.gpus_per_node
    if per_node and "gpus" in given and c.gpus != per_node:
        yield (
            ("gpus", "distributed"),
            f"gpus {c.gpus} and distributed.gpus_per_node {per_node} both say how many GPUs a machine has. Keep one.",
        )


def _sharding(c: TrainerConfig) -> Iterator[Contradiction]:
    """Yield what cannot be done with weights that no rank has whole."""
    if c.zero_level == 1:
        return
    level = f"zero_level {c.zero_level} shards the weights that train"
    if c.lora:
        yield (
            ("zero_level", "lora"),
            f"{level}, and with lora: true these are a small adapter. Use zero_level: 1, and a qlora_* key where the "
            "base does not fit.",
        )
    elif c.recipe != "bf16":
        yield (
            ("zero_level", "recipe"),
            f"{level}, which recipe {c.recipe} cannot work on yet. Use recipe: bf16, or zero_level: 1.",
        )
    if c.optimizer == "normuon":
        yield (
            ("zero_level", "optimizer"),
            f"{level}, and normuon needs whole matrices. Use zero_level: 1, which shares its state out, or optimizer: "
            "adamw.",
        )
    if c.precision_canary_steps:
        yield (
            ("zero_level", "precision_canary_steps"),
            f"{level}, which the precision canary cannot compare. Remove precision_canary_steps.",
        )


def _standstill(c: TrainerConfig) -> Iterator[Contradiction]:
    if 0 < c.stall_abort_seconds <= c.stall_seconds:
        yield (
            ("stall_abort_seconds", "stall_seconds"),
            f"stall_abort_seconds {c.stall_abort_seconds:g} must be more than stall_seconds {c.stall_seconds:g}, so "
            "that the run says what it waited for before it ends.",
        )
