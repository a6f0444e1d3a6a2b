"""Three flat files become one nested configuration, and no key of them is lost on the way."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import ArgumentParser

from surogate.config.flat_grpo import SCHEMAS_GRPO, GrpoConfig, InferConfig, OrchConfig
from surogate.config.keys import Key, choices, expanded, item_schema, keys_of
from surogate.config.lower import to_environment
from surogate.config.lower_grpo import to_lightning_grpo
from surogate.config.parts_grpo import (
    EnvSpec,
    FilterSpec,
    InferenceSpec,
    LossSpec,
    NoiseSpec,
    OrchestratorSpec,
    RolloutBatchSpec,
)
from surogate.config.read import Resolved
from surogate.config.read_grpo import GrpoResolved
from surogate.config.settle import settle

BASE: dict[str, dict[str, Any]] = {
    "train": {"model": "m", "max_steps": 9, "precision_canary_steps": 5, "max_async_level": 1},
    "infer": {"model": "m", "max_model_len": 900, "max_lora_rank": 64},
    "orch": {"env": [EnvSpec(id="math")], "filters": [FilterSpec()], "eval.env": [EnvSpec(id="math")]},
}
"""Keys without which others would mean nothing, or would be taken from another file."""

NEEDED = {
    "wandb": {"report_to": ["wandb"]},
    "run_name": {"report_to": ["wandb"]},
    "qlora_bnb_": {"qlora_bnb": True},
    "qlora_block": {"qlora_fp8": True},
    "qlora_four": {"qlora_fp4": True},
    "skip_quant": {"qlora_bnb": True},
}
"""What a family of keys of train.yaml needs to mean something."""


def build(schema: type, values: dict[str, Any]) -> Any:
    """Fill a schema from dotted names."""
    arguments: dict[str, Any] = {}
    for key in keys_of(schema).values():
        inner = None if typing.get_origin(key.type) is list else item_schema(key.type)
        prefix = f"{key.name}."
        parts = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        if inner and parts:
            arguments[key.name] = build(inner, parts)
        elif key.name in values:
            arguments[key.name] = values[key.name]
    return schema(**arguments)


def lowered(environ: dict[str, str] | None = None, **changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Lower the three files, with changes on top of BASE by file and dotted name."""
    configs = {file: build(SCHEMAS_GRPO[file], {**BASE[file], **changes.get(file, {})}) for file in SCHEMAS_GRPO}
    settled = settle(configs["train"], configs["infer"], configs["orch"])
    resolved = GrpoResolved(*(Resolved(config, {}, {}) for config in settled))
    return to_lightning_grpo(resolved, environ or {}), to_environment(resolved.train.config)


OTHER_VALUES = {
    "model.name": None,  # has to be train.yaml's, so it says nothing new
    "lr_scheduler_type": "wsd",
    "rope_scaling": "yarn",
    "env": [EnvSpec(id="code", args={"a": 1})],
    "eval.env": [EnvSpec(id="code")],
    "filters": [FilterSpec(span=3)],
    "report_to": ["tensorboard"],
    "client.base_url": ["http://a"],
    "init_lora_weights": "pissa",
    "resume_from_checkpoint": "p",
    "recipe": "nvfp4",
    "sampling.temp_scheduler": {"start": 1.0, "end": 0.5, "steps": 3},
}


def other_value(key: Key) -> Any:
    """Return a value of the key's type that is not its default."""
    if key.name in OTHER_VALUES:
        return OTHER_VALUES[key.name]
    for word in choices(key.type):
        if word != key.default and word != "auto":
            return word
    types = typing.get_args(key.type) if typing.get_args(key.type) and typing.get_origin(key.type) is None else ()
    kind = next((t for t in (types or typing.get_args(key.type) or (key.type,)) if t is not type(None)), key.type)
    if typing.get_origin(key.type) is list:
        return ["x"]
    if isinstance(key.default, bool):
        return not key.default
    if typing.get_origin(key.type) is dict or isinstance(key.default, dict):
        return {"x": 1}
    if isinstance(kind, type) and issubclass(kind, int):
        return 7
    return 0.7 if isinstance(kind, type) and issubclass(kind, float) else "x"


def has_one_value(key: Key) -> bool:
    return typing.get_origin(key.type) is Literal and choices(key.type) == (key.default,)


KEYS = [
    (file, key)
    for file, schema in SCHEMAS_GRPO.items()
    for key in expanded(schema).values()
    if not has_one_value(key) and OTHER_VALUES.get(key.name, key) is not None
    if not key.name.startswith("slurm.")  # of `surogate submit`
]


@pytest.mark.parametrize(("file", "key"), KEYS, ids=[f"{file}.{key.name}" for file, key in KEYS])
def test_every_flat_key_changes_what_runs(file: str, key: Key):
    base: dict[str, Any] = {}
    for prefix, needed in NEEDED.items():
        if file == "train" and key.name.startswith(prefix):
            base |= needed
    after = {**base, key.name: other_value(key)}
    assert lowered(**{file: base}) != lowered(**{file: after})


def test_the_keys_that_cannot_change_anything_have_one_value():
    left_out = {
        f"{file}.{key.name}"
        for file, schema in SCHEMAS_GRPO.items()
        for key in expanded(schema).values()
        if (file, key) not in KEYS and not key.name.startswith("slurm.")
    }
    assert left_out == {"train.transport_type", "train.weight_broadcast_type", "orch.model.name"}


def test_the_result_is_plain_data_without_anchors():
    nested, _ = lowered(train={"report_to": ["wandb"]})
    text = yaml.safe_dump(nested)
    assert "&id" not in text
    assert yaml.safe_load(text) == nested


def test_module_and_data_are_those_of_reinforcement_learning():
    nested, _ = lowered(train={"loss.type": "dapo"})
    assert nested["model"]["class_path"] == "surogate.modes.GrpoModule"
    assert nested["data"]["class_path"] == "surogate.modes.RolloutDataModule"
    assert nested["model"]["init_args"]["loss"]["type"] == "dapo"
    assert nested["data"]["init_args"]["environments"] == [dataclasses.asdict(EnvSpec(id="math"))]


def test_the_callbacks_are_those_of_rollouts_and_checkpoints_come_last():
    def names(**changes: Any) -> list[str]:
        callbacks = lowered(train={"precision_canary_steps": 0, **changes})[0]["trainer"]["callbacks"]
        return [spec["class_path"].removeprefix("surogate.callbacks.") for spec in callbacks]

    watching = ["EnvironmentRecord", "RolloutMetrics", "RolloutProgress", "RolloutRecords", "RewardPlot"]
    watching += ["Watchdog", "StepHealth", "GpuTelemetry"]
    assert names() == [*watching, "AdapterExport", "StepCheckpoints", "Preemption"]
    assert names(merge_adapter=True) == [*watching, "AdapterExport", "ModelExport", "StepCheckpoints", "Preemption"]


def test_nothing_is_validated_by_the_trainer_and_steps_end_the_run():
    trainer = lowered()[0]["trainer"]
    assert {key: trainer[key] for key in ("max_steps", "max_epochs", "limit_val_batches", "num_sanity_val_steps")} == {
        "max_steps": 9,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
    }


def test_a_quantised_base_and_a_launcher_are_told_as_in_the_other_verbs():
    environ = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    trainer = lowered(environ, train={"qlora_bnb": True})[0]["trainer"]
    assert trainer["plugins"][0]["class_path"] == "surogate.precision.Nf4Precision"
    assert (trainer["devices"], trainer["num_nodes"]) == (2, 2)


def test_the_run_is_named_after_its_verb_and_model():
    loggers = lowered(train={"report_to": ["wandb"], "model": "org/Model-1B"})[0]["trainer"]["logger"]
    assert loggers[0]["init_args"]["name"] == "grpo-Model-1B"


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (OrchestratorSpec, lambda nested: nested["data"]["init_args"]["orchestrator"]),
        (InferenceSpec, lambda nested: nested["data"]["init_args"]["inference"]),
        (RolloutBatchSpec, lambda nested: nested["data"]["init_args"]["batch"]),
        (NoiseSpec, lambda nested: nested["data"]["init_args"]["link"]["noise"]),
        (LossSpec, lambda nested: nested["model"]["init_args"]["loss"]),
    ],
)
def test_each_part_is_what_its_spec_takes_and_holds_plain_numbers(spec: type, part: Callable[[Any], dict[str, Any]]):
    nested = part(lowered()[0])
    assert nested.keys() == keys_of(spec).keys()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--spec", type=spec)
    built = parser.instantiate(parser.parse_object({"spec": deepcopy(nested)})).spec
    assert dataclasses.asdict(built) == nested
    numbers = [value for value in vars(built).values() if isinstance(value, int | float)]
    assert {type(value) for value in numbers} <= {int, float, bool}


def test_the_schemas_of_the_three_files_are_those_that_are_lowered():
    assert list(SCHEMAS_GRPO.values()) == [GrpoConfig, InferConfig, OrchConfig]
