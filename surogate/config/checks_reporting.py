"""Combinations of keys for validation, samples and reporting that cannot run; part of checks.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from surogate.config.contradiction import Contradiction
from surogate.config.flat import TrainConfig, TrainerConfig


def validation_contradictions(c: TrainConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield what is wrong with validation and samples; see checks.contradictions."""
    if "eval_steps" in given and not c.validation_datasets and c.validation_split_ratio == 0:
        yield (
            ("eval_steps", "validation_split_ratio"),
            "eval_steps needs validation data. Set validation_datasets, or a validation_split_ratio above 0.",
        )
    if c.sample_prompts and not c.validation_datasets and c.validation_split_ratio == 0:
        yield (
            ("sample_prompts", "validation_split_ratio"),
            "sample_prompts takes its prompts from validation data. Set validation_datasets, or a "
            "validation_split_ratio above 0.",
        )
    if c.sample_prompts and c.zero_level > 1:
        yield (
            ("sample_prompts", "zero_level"),
            "sample_prompts asks the model on one rank, which has no more than its share of the weights with "
            f"zero_level {c.zero_level}. Set sample_prompts: 0, or zero_level: 1.",
        )
    if "sample_max_tokens" in given and not c.sample_prompts:
        yield ("sample_max_tokens",), "sample_max_tokens needs sample_prompts above 0."


def reporting_contradictions(c: TrainerConfig, given: dict[str, Any]) -> Iterator[Contradiction]:
    """Yield what is wrong with where metrics go; see checks.contradictions."""
    for key in ("wandb_project", "wandb_name", "wandb_group", "wandb_tags", "wandb_mode"):
        if key in given and "wandb" not in c.report_to:
            yield ((key, "report_to"), f"{key} needs report_to: [wandb].")
    for name, modules in {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}.items():
        if name in c.report_to and not any(importlib.util.find_spec(module) for module in modules):
            yield (("report_to",), f"report_to: {name} needs the {name} package. Install it with `pip install {name}`.")
