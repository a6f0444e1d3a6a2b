"""Lowering: the ONE place where flat keys become the nested configuration that LightningCLI runs.

Every flat key is read here, in `to_lightning` or `to_environment` (a test proves it), so none can be accepted and then
ignored. What is not here: reading and checking (read.py, checks.py), running (cli/fit.py), and what only reinforcement
learning has (lower_grpo.py). The result is plain data, without torch, and `surogate fit` accepts it as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath

from surogate.config.flat import TrainConfig, TrainerConfig
from surogate.config.identity import Nested
from surogate.config.launcher import launcher


def to_lightning(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> Nested:
    """Return the nested configuration: seed_everything, trainer, model, data.

    Args:
        config: a checked flat configuration.
        environ: where a launcher such as torchrun says how many processes there are.
    """
    return {
        "seed_everything": config.train_seed,
        "trainer": _trainer(config, environ),
        "model": _model(config),
        "data": _data(config),
    }


def to_environment(config: TrainerConfig) -> dict[str, str]:
    """Return what goes into the environment of the process, and into no file."""
    return {"HF_TOKEN": config.hub_token} if config.hub_token else {}


def _model(c: TrainConfig) -> Nested:
    return {"class_path": f"surogate.modes.{_CLASSES[c.verb][0]}", "init_args": module_arguments(c)}


def module_arguments(c: TrainerConfig) -> Nested:
    """Return what the module of every training verb takes."""
    model = {
        "source": c.model,
        "model_type": c.model_type,
        "dtype": c.model_dtype,
        "max_model_len": c.max_model_len,
        "rope_scaling": _rope_scaling(c.rope_scaling),
        "attn_implementation": c.attn_implementation,
        "from_scratch": c.from_scratch,
        "freeze_modules": c.freeze_modules,
        "recompute": c.recompute,
        "trust_remote_code": c.trust_remote_code,
    }
    lora = {
        "enabled": c.lora,
        "rank": c.lora_rank,
        "alpha": c.lora_alpha,
        "dropout": c.lora_dropout,
        "target_modules": c.lora_target_modules,
        "dtype": c.lora_dtype,
        "use_rslora": c.use_rslora,
        "use_dora": c.use_dora,
        "init_lora_weights": c.init_lora_weights,
        "modules_to_save": c.modules_to_save,
        "adapter_path": c.adapter_path,
        "adapter_init_mode": c.adapter_init_mode,
    }
    optim = {
        "name": c.optimizer,
        "learning_rate": c.learning_rate,
        "schedule": c.lr_scheduler_type,
        "warmup_ratio": c.warmup_ratio,
        "warmup_steps": c.warmup_steps,
        "cooldown_steps": c.cooldown_steps,
        "final_lr_fraction": c.final_lr_fraction,
        "weight_decay": c.weight_decay,
        "max_grad_norm": c.max_grad_norm,
        "beta1": c.adamw_beta1,
        "beta2": c.adamw_beta2,
        "epsilon": c.adamw_epsilon,
        "normuon_momentum": c.normuon_momentum,
        "normuon_beta2": c.normuon_beta2,
        "normuon_cautious_wd": c.normuon_cautious_wd,
        "master_dtype": c.master_dtype,
    }
    return {"model": model, "lora": lora, "optim": optim, "lmhead_chunks": c.lmhead_chunks}


_CLASSES = {"sft": ("SftModule", "ChatDataModule"), "pt": ("PtModule", "TextDataModule")}
"""Module and data module of each verb."""


def _rope_scaling(value: str | Nested | None) -> str | Nested | None:
    """Return it with `rope_type`, which older models' dictionaries call `type`."""
    if isinstance(value, dict) and "type" in value:
        return {"rope_type": value["type"], **{key: item for key, item in value.items() if key != "type"}}
    return value


def _data(c: TrainConfig) -> Nested:
    batch = {
        "sequence_len": c.sequence_len,
        "per_device_train_batch_size": c.per_device_train_batch_size,
        "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "sample_packing": c.sample_packing,
        "num_workers": None if c.dataloader_num_workers == "auto" else c.dataloader_num_workers,
        "train_seed": c.train_seed,
        "eval_seed": c.eval_seed,
    }
    chat = {
        "use_chat_template": c.use_chat_template,
        "template": c.template,
        "system": c.system,
        "response_prefix": c.response_prefix,
        "loss_scale": c.loss_scale,
        "max_length": c.max_length,
        "truncation_strategy": c.truncation_strategy,
        "max_bad_row_fraction": c.max_bad_row_fraction,
    }
    init_args = {
        "tokenizer": c.tokenizer or c.model,
        "datasets": [asdict(spec) for spec in c.datasets],
        "validation_datasets": [asdict(spec) for spec in c.validation_datasets],
        "validation_split_ratio": c.validation_split_ratio,
        "batch": batch,
        "chat": chat,
        "trust_remote_code": c.trust_remote_code,
    }
    return {"class_path": f"surogate.data.datamodule.{_CLASSES[c.verb][1]}", "init_args": init_args}


def _trainer(c: TrainConfig, environ: Mapping[str, str]) -> Nested:
    has_validation = bool(c.validation_datasets) or c.validation_split_ratio > 0
    return {
        **trainer_arguments(c, environ),
        "max_epochs": -1 if c.max_steps > 0 else c.num_epochs,
        "val_check_interval": c.eval_steps,
        "check_val_every_n_epoch": None,  # so that the interval counts across epochs
        "limit_val_batches": None if has_validation else 0,
        # The whole validation before the first step, so that a continued pretraining shows what it changed.
        "num_sanity_val_steps": -1 if c.verb == "pt" and not c.from_scratch else 0,
        "callbacks": _callbacks(c),
    }


def trainer_arguments(c: TrainerConfig, environ: Mapping[str, str]) -> Nested:
    """Return what the Trainer of every training verb takes."""
    machine, plugins = _machine(c, environ)
    return {
        **machine,
        "strategy": _strategy(c),
        "inference_mode": c.zero_level == 1,  # FSDP2 trains on with the buffers that validation gathers into
        "max_steps": c.max_steps,
        "log_every_n_steps": c.logging_steps,
        "enable_checkpointing": False,  # StepCheckpoints does it
        "enable_progress_bar": False,  # ProgressLine does it
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": c.output_dir,
        "plugins": [_precision(c), *plugins],
        "logger": _loggers(c),
    }


def _precision(c: TrainerConfig) -> Nested:
    """Return the one Precision plugin: how weights are stored, and how products are computed."""
    formats: dict[str, tuple[bool, Nested]] = {
        "Nf4Precision": (
            c.qlora_bnb,
            {"block_size": c.qlora_bnb_block_size, "double_quant": c.qlora_bnb_double_quant},
        ),
        "Fp8Precision": (c.qlora_fp8, {"block_size": c.qlora_block_size}),
        "Nvfp4Precision": (c.qlora_fp4, {"four_over_six": c.qlora_four_over_six}),
    }
    options = _recipe_options(c)
    recipe = {"recipe": c.recipe, **({"recipe_options": options} if options else {})}
    skip = {"skip_first_layers": c.skip_quant_first_layers, "skip_last_layers": c.skip_quant_last_layers}
    for name, (asked, init_args) in formats.items():
        if asked:
            return {"class_path": f"surogate.precision.{name}", "init_args": {**init_args, **skip, **recipe}}
    return {"class_path": "surogate.precision.RecipePrecision", "init_args": recipe}


def _recipe_options(c: TrainerConfig) -> Nested:
    """Return the fields of the recipe that the flat keys override."""
    options = {
        "emulate": c.recipe_emulate or None,
        "matmul_dtype": c.matmul_dtype,
        "gradient_dtype": c.gradient_dtype,
        "amax_history": c.fp8_amax_history,
        "amax_compute_algo": c.fp8_amax_compute_algo,
        "margin": c.fp8_margin,
        "backend": None if c.fp4_backend == "auto" else c.fp4_backend,
        "stochastic_rounding": False if c.no_fp4_stochastic_rounding else None,
    }
    return {field: value for field, value in options.items() if value is not None}


def _machine(c: TrainerConfig, environ: Mapping[str, str]) -> tuple[Nested, list[Nested]]:
    """Return the trainer's keys for devices, and plugins; a launcher outside decides over what the keys say."""
    devices = c.distributed.gpus_per_node or c.gpus or "auto"
    num_nodes = c.distributed.num_nodes
    machine: Nested = {"accelerator": "auto", "devices": devices, "strategy": "auto", "num_nodes": num_nodes}
    plugins = []
    if found := launcher(environ):
        machine |= {"devices": found.processes_per_node, "num_nodes": found.num_nodes}
    if found and found.name == "srun":
        # Lightning's own requeue saves inside the signal handler, which can hang.
        environment = "lightning.pytorch.plugins.environments.SLURMEnvironment"
        plugins.append({"class_path": environment, "init_args": {"auto_requeue": False}})
    return machine, plugins


def _strategy(c: TrainerConfig) -> str | Nested:
    if c.zero_level == 1:
        return "auto"
    return {"class_path": "surogate.modes.ShardedStrategy", "init_args": {"reshard_after_forward": c.zero_level == 3}}


def _loggers(c: TrainerConfig) -> list[Nested]:
    wandb = {
        "folder": c.output_dir,
        "name": c.wandb_name or _run_name(c),
        "project": c.wandb_project or "surogate",
        "mode": c.wandb_mode,
        "group": c.wandb_group,
        "tags": c.wandb_tags,
    }
    known: dict[str, Nested] = {
        "wandb": {"class_path": "surogate.callbacks.WandbRun", "init_args": wandb},
        "tensorboard": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": c.output_dir, "name": "tensorboard", "version": _run_name(c)},
        },
    }
    return [known[name] for name in c.report_to]


def _run_name(c: TrainerConfig) -> str:
    return c.run_name or f"{c.verb}-{PurePath(c.model).name.removesuffix('.gguf')}"


def _callbacks(c: TrainConfig) -> list[Nested]:
    folder, steps = {"folder": c.output_dir}, {"every_n_steps": c.logging_steps}
    watching: dict[str, Nested] = {
        "EnvironmentRecord": folder,
        "MetricsWriter": {**folder, **steps},
        "ProgressLine": steps,
        "FinalValidation": {},
        "LossPlot": folder,
        **precision_canary(c),
        **health(c),
        **({"EarlyStop": {}} if c.early_stop else {}),
        **({"TokenBudget": {}} if c.epoch_adjustment else {}),
        **samples(c),
        **({"TextSamples": folder} if c.verb == "pt" else {}),
    }
    return callbacks({**watching, **leaving_callbacks(c)})


def precision_canary(c: TrainerConfig) -> dict[str, Nested]:
    """Return the callback that watches what few bits cost, by its name, where it is asked for."""
    canary = {"every_n_steps": c.precision_canary_steps, "seed": c.train_seed}
    return {"PrecisionCanary": canary} if c.precision_canary_steps else {}


def samples(c: TrainConfig) -> dict[str, Nested]:
    """Return the callback that asks the model held-out prompts, by its name, where it is asked for."""
    asked = {"folder": c.output_dir, "num_prompts": c.sample_prompts, "max_new_tokens": c.sample_max_tokens}
    return {"SampleAnswers": asked} if c.sample_prompts else {}


def health(c: TrainerConfig) -> dict[str, Nested]:
    """Return the callbacks that watch over the run, by their names."""
    steps = {
        "folder": c.output_dir,
        "max_skipped_steps": c.max_skipped_steps,
        "auto_lr_reduction": c.auto_lr_reduction,
        "watch_loss": c.verb != "grpo",  # a policy's loss is about 0, whatever it learns
    }
    watchdog = {
        "folder": c.output_dir,
        "stall_seconds": c.stall_seconds,
        "abort_seconds": c.stall_abort_seconds,
    }
    telemetry = {"GpuTelemetry": {"every_n_steps": c.log_gpu_util}} if c.log_gpu_util else {}
    return {
        **({"LogFile": {"path": c.log_file}} if c.log_file else {}),
        "Watchdog": watchdog,
        "StepHealth": steps,
        **telemetry,
        **({"MemoryBreakdown": {}} if c.debug_memory_breakdown else {}),
        **({"TimeBreakdown": {}} if c.debug_time_breakdown else {}),
    }


def leaving_callbacks(c: TrainerConfig) -> dict[str, Nested]:
    """Return the callbacks that write what a run leaves behind, by their names; they come last."""
    folder = {"folder": c.output_dir}
    checkpoints = {
        **folder,
        "every_n_steps": c.save_steps,
        "keep_last": c.save_total_limit,
        "resume": c.resume_from_checkpoint,
        "checkpoint_dir": c.checkpoint_dir,
    }
    return {
        **({"AdapterExport": folder} if c.lora else {}),
        **({"ModelExport": {**folder, "merge": c.merge_adapter}} if c.merge_adapter or not c.lora else {}),
        # Last: a run killed between two callbacks then resumes before a step whose metrics it lacks, never after it.
        "StepCheckpoints": checkpoints,
        "Preemption": {},  # behind it, as it lets it save
    }


def callbacks(named: dict[str, Nested]) -> list[Nested]:
    """Return our callbacks in nested form, from their names and arguments."""
    return [{"class_path": f"surogate.callbacks.{name}", "init_args": {**args}} for name, args in named.items()]
