"""Rollouts as JSON: plain values, the same floats back, since JSON writes the shortest text that reads as the same.

An example's columns stay behind: only its reward needs them, and they may hold anything.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from surogate.rl.evaluation import EvalResult
from surogate.rl.types import Example, Group, Rollout, RolloutBatch


def group_to_json(group: Group) -> dict[str, Any]:
    """Return a group as plain values."""
    example = {**_values(group.example), "columns": {}}
    return {**_values(group), "example": example, "rollouts": [_values(rollout) for rollout in group.rollouts]}


def group_from_json(value: dict[str, Any]) -> Group:
    """Return the group that `group_to_json` was given, but for its example's columns."""
    rollouts = tuple(Rollout(**rollout) for rollout in value["rollouts"])
    return Group(**{**value, "example": Example(**value["example"]), "rollouts": rollouts})


def batch_to_json(batch: RolloutBatch) -> dict[str, Any]:
    """Return a batch as plain values."""
    return {**_values(batch), "groups": [group_to_json(group) for group in batch.groups]}


def batch_from_json(value: dict[str, Any]) -> RolloutBatch:
    """Return the batch that `batch_to_json` was given, but for the columns of its examples."""
    return RolloutBatch(**{**value, "groups": tuple(map(group_from_json, value["groups"]))})


def evaluation_to_json(result: EvalResult) -> dict[str, Any]:
    """Return an evaluation as plain values."""
    return {**_values(result), "rollouts": [_values(rollout) for rollout in result.rollouts]}


def evaluation_from_json(value: dict[str, Any]) -> EvalResult:
    """Return the evaluation that `evaluation_to_json` was given."""
    return EvalResult(**{**value, "rollouts": [Rollout(**rollout) for rollout in value["rollouts"]]})


def _values(item: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as they are; asdict would copy each of a million numbers."""
    return {field.name: getattr(item, field.name) for field in fields(item)}
