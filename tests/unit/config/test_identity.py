from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from surogate.config.flat import SftConfig
from surogate.config.identity import run_identity
from surogate.config.lower import to_lightning
from surogate.config.lower_grpo import to_lightning_grpo
from surogate.config.parts import DatasetSpec


def identity(**changes: Any) -> dict[str, Any]:
    keys = {"model": "some/model", "datasets": [DatasetSpec(path="rows.jsonl")], **changes}
    nested = to_lightning(SftConfig(**keys), {})
    return run_identity(nested["model"], nested["data"], nested["trainer"]["plugins"])


OTHER_RUNS = [
    {"model": "other"},
    {"model_type": "llama"},
    {"model_dtype": "float32"},
    {"max_model_len": 8192},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"lora_rank": 8},
    {"lora": False},
    {"tokenizer": "other"},
    {"from_scratch": True},
    {"freeze_modules": ["lm_head"]},
    {"master_dtype": "float32"},
    {"optimizer": "adamw"},
    {"datasets": [DatasetSpec(path="other.jsonl")]},
    {"validation_split_ratio": 0.2},
    {"loss_scale": "all"},
    {"train_seed": 1},
    {"sequence_len": 8},
    {"qlora_bnb": True},
    {"qlora_fp8": True, "skip_quant_last_layers": 1},
    {"recipe": "fp8_hybrid"},
]

SAME_RUN = [
    {"recipe_emulate": True},
    {"max_steps": 8},
    {"learning_rate": 1.0},
    {"gpus": 2},
    {"save_steps": 1},
    {"recompute": False},
    {"attn_implementation": "eager"},
    {"trust_remote_code": True},
    {"per_device_train_batch_size": 1},
    {"gradient_accumulation_steps": 8},
    {"output_dir": "elsewhere"},
]


@pytest.mark.parametrize("change", OTHER_RUNS, ids=str)
def test_what_makes_another_run_changes_its_identity(change):
    assert identity(**change) != identity()


@pytest.mark.parametrize("change", SAME_RUN, ids=str)
def test_what_may_change_between_stop_and_resume_leaves_its_identity(change):
    assert identity(**change) == identity()


def test_the_defaults_of_a_dataset_do_not_stand_in_it():
    assert identity()["datasets"] == [{"path": "rows.jsonl"}]


def test_classes_of_ones_own_have_the_parts_that_they_have():
    model = {"class_path": "my.Module", "init_args": {"model": "a name"}}
    assert run_identity(model, {"class_path": "my.Data"}) == {"model": "a name"}


def test_it_is_plain_data_that_shares_nothing():
    assert yaml.safe_load(yaml.safe_dump(identity())) == identity()


OTHER_GRPO_RUNS = [
    ("train", "loss: {type: dapo}"),
    ("train", "loss: {adv_tau: 2.0}"),
    ("train", "lora_rank: 8"),
    ("train", "qlora_bnb: true"),
    ("train", "train_seed: 3"),
    ("train", "sequence_len: 600"),
    ("train", "noise_scheduler: {enabled: true}"),
    ("orch", "batch_size: 64"),
    ("orch", "rollouts_per_example: 8"),
    ("orch", "sampling: {temperature: 0.7}"),
    ("orch", "sampling: {max_tokens: 64}"),
    ("orch", "advantage: {type: std}"),
    ("orch", "buffer: {easy_threshold: 0.9}"),
    ("orch", "filters: [{enforce: true}]"),
]

SAME_GRPO_RUN = [
    ("train", "learning_rate: 1.0"),
    ("train", "per_device_train_batch_size: 1"),
    ("train", "gradient_accumulation_steps: 4"),
    ("train", "weight_sync: full"),
    ("train", "max_async_level: 2"),
    ("infer", "gpu_memory_utilization: 0.5"),
    ("infer", "max_num_seqs: 8"),
    ("infer", "port: 9000"),
    ("orch", "client: {base_url: http://host:8000}"),
    ("orch", "eval: {env: {id: math}, interval: 5}"),
    ("orch", "ckpt: {interval: 5}"),
    ("orch", "oversampling_factor: 1.5"),
    ("orch", "output_dir: elsewhere"),
]


@pytest.fixture
def grpo_identity(read_files) -> Callable[..., dict[str, Any]]:
    """The identity of three files with more lines."""

    def identity_of(*overrides: str, **more: str) -> dict[str, Any]:
        nested = to_lightning_grpo(read_files(*overrides, **more), {})
        return run_identity(nested["model"], nested["data"], nested["trainer"]["plugins"])

    return identity_of


@pytest.mark.parametrize(("file", "lines"), OTHER_GRPO_RUNS)
def test_what_makes_another_grpo_run_changes_its_identity(grpo_identity, file, lines):
    assert grpo_identity(**{file: lines}) != grpo_identity()


@pytest.mark.parametrize(("file", "lines"), SAME_GRPO_RUN)
def test_what_may_change_between_stop_and_resume_leaves_the_identity_of_a_grpo_run(grpo_identity, file, lines):
    assert grpo_identity(**{file: lines}) == grpo_identity()


def test_steps_and_environments_of_a_grpo_run(grpo_identity):
    assert grpo_identity("--orch.max_steps", "90") == grpo_identity()
    assert grpo_identity("--orch.env.1.id", "math") != grpo_identity()
    assert grpo_identity("--orch.env.0.args.digits", "2") != grpo_identity()
