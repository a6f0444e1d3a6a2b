from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from surogate.config.flat import PtConfig, SftConfig
from surogate.config.keys import keys_of
from surogate.config.lower import to_environment, to_lightning
from surogate.config.parts import DatasetSpec
from surogate.config.slurm import DistributedSpec


def config(**changes: Any) -> SftConfig:
    return SftConfig(**{"model": "some/model", "datasets": [DatasetSpec(path="rows.jsonl")], **changes})


def lowered(environ: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    return to_lightning(config(**changes), environ or {})


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        yield path, value
    else:
        yield path, type(value)
        for key, child in children:
            yield from leaves(child, (*path, key))


def callback(nested: dict[str, Any], name: str) -> dict[str, Any]:
    found = [spec for spec in nested["trainer"]["callbacks"] if spec["class_path"] == f"surogate.callbacks.{name}"]
    return found[0]["init_args"]


FOR_SUBMIT = {"slurm"}
"""Keys of `surogate submit`; tests/unit/cli/test_submit.py shows that each changes the script."""


class Recording:
    """Notes which attributes are read."""

    def __init__(self, wrapped: SftConfig) -> None:
        self._wrapped, self.read = wrapped, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._wrapped, name)


def test_every_flat_key_is_consumed():
    recording = Recording(config())
    to_lightning(recording, {})  # type: ignore[arg-type]
    to_environment(recording)  # type: ignore[arg-type]
    assert set(keys_of(SftConfig)) - recording.read == FOR_SUBMIT


OTHER_VALUES: dict[str, Any] = {
    "run_name": "r", "output_dir": "o", "checkpoint_dir": "c", "resume_from_checkpoint": "p", "save_steps": 7,
    "save_total_limit": 7, "num_epochs": 7, "max_steps": 7, "eval_steps": 7, "logging_steps": 7, "train_seed": 7,
    "eval_seed": 7, "sample_prompts": 7, "sample_max_tokens": 7, "model": "m", "model_type": "llama", "sequence_len": 7,
    "max_model_len": 7, "rope_scaling": "yarn",
    "model_dtype": "float32", "tokenizer": "t", "from_scratch": True, "freeze_modules": ["h"],
    "master_dtype": "float32", "merge_adapter": True, "attn_implementation": "eager", "trust_remote_code": True,
    "lora": False, "lora_rank": 7, "lora_alpha": 7.0, "lora_dropout": 0.7, "lora_target_modules": ["q"],
    "lora_dtype": "bf16", "use_rslora": True, "use_dora": True, "init_lora_weights": "pissa", "modules_to_save":
    ["h"], "adapter_path": "a", "adapter_init_mode": "trainable", "recipe": "other", "learning_rate": 0.7,
    "optimizer": "adamw", "lr_scheduler_type": "wsd", "warmup_ratio": 0.7, "warmup_steps": 7, "cooldown_steps": 7,
    "final_lr_fraction": 0.7, "weight_decay": 0.7, "max_grad_norm": 0.7, "adamw_beta1": 0.7, "adamw_beta2": 0.7,
    "adamw_epsilon": 0.7, "normuon_momentum": 0.7, "normuon_beta2": 0.7, "normuon_cautious_wd": False,
    "per_device_train_batch_size": 7, "gradient_accumulation_steps": 7, "recompute": False,
    "lmhead_chunks": 7, "datasets": [DatasetSpec(path="x")], "validation_datasets": [DatasetSpec(path="v")],
    "validation_split_ratio": 0.7, "sample_packing": False, "dataloader_num_workers": 7, "max_bad_row_fraction":
    0.7, "truncation_strategy": "left", "max_length": 7, "use_chat_template": False, "template": "t", "system": "s",
    "response_prefix": "p", "loss_scale": "all", "gpus": 7, "report_to": ["wandb"], "wandb_project": "p",
    "wandb_name": "n", "wandb_group": "g", "wandb_tags": ["t"], "wandb_mode": "offline", "hub_token": "t",
    "qlora_bnb": True, "qlora_bnb_block_size": 128, "qlora_bnb_double_quant": False, "qlora_fp8": True,
    "qlora_block_size": 64, "qlora_fp4": True, "qlora_four_over_six": False, "skip_quant_first_layers": 7,
    "skip_quant_last_layers": 7, "recipe_emulate": True, "matmul_dtype": "float32", "gradient_dtype": "float32",
    "fp8_amax_history": 7, "fp8_amax_compute_algo": "most_recent", "fp8_margin": 7, "fp4_backend": "emulate",
    "no_fp4_stochastic_rounding": True, "precision_canary_steps": 7,
    "distributed": DistributedSpec(num_nodes=7), "max_skipped_steps": 7, "auto_lr_reduction": True, "early_stop": True,
    "epoch_adjustment": True, "stall_seconds": 7.0, "stall_abort_seconds": 7.0, "log_file": "f", "log_gpu_util": 7,
    "debug_memory_breakdown": True, "debug_time_breakdown": True, "zero_level": 3,
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(keys_of(SftConfig).keys() - FOR_SUBMIT))
def test_every_flat_key_changes_what_runs(key):
    needed = {"wandb": "report_to", "run_name": "report_to", "qlora_bnb_": "qlora_bnb", "qlora_block": "qlora_fp8",
        "sample_max": "sample_prompts",
        "qlora_four": "qlora_fp4", "skip_quant": "qlora_bnb"}  # fmt: skip
    base = {
        name: ["wandb"] if name == "report_to" else True for prefix, name in needed.items() if key.startswith(prefix)
    }
    before, after = config(**base), config(**base, **{key: OTHER_VALUES[key]})
    assert (to_lightning(before, {}), to_environment(before)) != (to_lightning(after, {}), to_environment(after))


def test_the_result_is_plain_data_without_anchors():
    text = yaml.safe_dump(lowered(report_to=["wandb", "tensorboard"]))
    assert "&id" not in text
    assert yaml.safe_load(text) == lowered(report_to=["wandb", "tensorboard"])


def test_weights_are_sharded_from_level_2_on_and_gathered_once_or_twice():
    assert lowered()["trainer"]["strategy"] == "auto" and lowered()["trainer"]["inference_mode"]
    for level, reshards in ((2, False), (3, True)):
        trainer = lowered(zero_level=level, lora=False)["trainer"]
        arguments = {"reshard_after_forward": reshards}
        assert trainer["strategy"] == {"class_path": "surogate.modes.ShardedStrategy", "init_args": arguments}
        assert trainer["inference_mode"] is False


def test_precision_is_the_plugins_business():
    trainer = lowered()["trainer"]
    assert "precision" not in trainer
    assert trainer["plugins"] == [{"class_path": "surogate.precision.RecipePrecision", "init_args": {"recipe": "bf16"}}]


def test_keys_of_a_recipe_become_its_options_under_every_plugin():
    options = {"recipe": "fp8_hybrid", "recipe_options": {"emulate": True, "margin": 1}}
    plain = lowered(recipe="fp8_hybrid", recipe_emulate=True, fp8_margin=1)["trainer"]["plugins"][0]
    assert plain == {"class_path": "surogate.precision.RecipePrecision", "init_args": options}
    stored = lowered(recipe="fp8_hybrid", recipe_emulate=True, fp8_margin=1, qlora_bnb=True)["trainer"]["plugins"][0]
    assert stored["class_path"] == "surogate.precision.Nf4Precision"
    assert options.items() <= stored["init_args"].items()


def test_max_steps_wins_over_epochs():
    assert [lowered(max_steps=5)["trainer"][key] for key in ("max_steps", "max_epochs")] == [5, -1]
    assert [lowered(num_epochs=2)["trainer"][key] for key in ("max_steps", "max_epochs")] == [-1, 2]


def test_validation_runs_only_where_there_is_data_for_it():
    assert lowered(validation_split_ratio=0.0)["trainer"]["limit_val_batches"] == 0
    assert lowered()["trainer"]["limit_val_batches"] is None
    own = [DatasetSpec(path="v.jsonl")]
    assert lowered(validation_split_ratio=0.0, validation_datasets=own)["trainer"]["limit_val_batches"] is None


def test_the_tokenizer_is_the_models_unless_another_is_named():
    assert lowered(model="m")["data"]["init_args"]["tokenizer"] == "m"
    assert lowered(model="m", tokenizer="t")["data"]["init_args"]["tokenizer"] == "t"


def test_pretraining_has_its_own_classes_and_trains_all_weights():
    nested = to_lightning(PtConfig(model="m", datasets=[DatasetSpec(path="corpus.txt")]), {})
    assert nested["model"]["class_path"] == "surogate.modes.PtModule"
    assert nested["data"]["class_path"] == "surogate.data.datamodule.TextDataModule"
    assert nested["model"]["init_args"]["lora"]["enabled"] is False
    assert nested["data"]["init_args"]["chat"]["loss_scale"] == "all"


def test_a_run_leaves_an_adapter_a_model_or_both():
    def exports(**changes: Any) -> list[str]:
        names = [spec["class_path"].rpartition(".")[2] for spec in lowered(**changes)["trainer"]["callbacks"]]
        return [name for name in names if name.endswith("Export")]

    assert exports() == ["AdapterExport"]
    assert exports(lora=False) == ["ModelExport"]
    assert exports(merge_adapter=True) == ["AdapterExport", "ModelExport"]
    assert callback(lowered(merge_adapter=True), "ModelExport")["merge"] is True
    assert callback(lowered(lora=False), "ModelExport")["merge"] is False


def test_gpus_counts_devices_and_zero_takes_all():
    assert lowered(gpus=3)["trainer"]["devices"] == 3
    assert lowered(gpus=0)["trainer"]["devices"] == "auto"


def test_torchrun_decides_over_gpus():
    environ = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    trainer = lowered(environ, gpus=1)["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == (4, 2)


def test_srun_decides_over_gpus_and_requeueing_is_not_lightnings():
    environ = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
    trainer = lowered(environ, gpus=1)["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == (4, 2)
    assert trainer["plugins"][1]["init_args"] == {"auto_requeue": False}


def test_an_interactive_slurm_shell_leaves_gpus_alone():
    environ = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "interactive"}
    assert lowered(environ, gpus=1)["trainer"]["devices"] == 1


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/Model-1.7B", "sft-Model-1.7B"), ("pkg://p/Model.Q4_1.gguf", "sft-Model.Q4_1"), ("folder/m/", "sft-m")],
)
def test_the_run_is_named_after_the_model_the_same_on_every_start(model, name):
    loggers = lowered(model=model, report_to=["wandb"])["trainer"]["logger"]
    assert loggers[0]["init_args"]["name"] == name


def test_the_hub_token_goes_to_the_environment_and_nowhere_else():
    assert to_environment(config(hub_token="hf_secret")) == {"HF_TOKEN": "hf_secret"}
    assert to_environment(config()) == {}
    assert "hf_secret" not in str(lowered(hub_token="hf_secret"))


def test_the_dictionary_of_an_older_model_names_its_rope_type():
    model = lowered(rope_scaling={"type": "linear", "factor": 2.0})["model"]["init_args"]["model"]
    assert model["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_the_last_step_is_validated_and_checkpoints_come_last():
    names = [spec["class_path"].rpartition(".")[2] for spec in lowered()["trainer"]["callbacks"]]
    assert "FinalValidation" in names
    assert names[-2:] == ["StepCheckpoints", "Preemption"]


def test_no_identity_is_written_that_could_become_stale():
    assert "identity" not in callback(lowered(), "StepCheckpoints")
