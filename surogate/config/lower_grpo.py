"""Lowering of `surogate grpo`: where the keys of three flat files become one nested configuration for LightningCLI.

The three have been settled (settle.py), so each key is read from the file that it belongs to. What is not here: keys
that all training verbs have (lower.py). Every key is read in one of the two; a test changes each and looks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from surogate.config.flat_grpo import GrpoConfig, InferConfig, OrchConfig
from surogate.config.identity import Nested
from surogate.config.keys import keys_of
from surogate.config.lower import (
    callbacks,
    health,
    leaving_callbacks,
    module_arguments,
    precision_canary,
    trainer_arguments,
)
from surogate.config.parts_grpo import OrchestratorSpec
from surogate.config.read_grpo import GrpoResolved


def to_lightning_grpo(resolved: GrpoResolved, environ: Mapping[str, str] = os.environ) -> Nested:
    """Return the nested configuration: seed_everything, trainer, model, data.

    Args:
        resolved: three checked files, as read_grpo returns them.
        environ: where a launcher such as torchrun says how many processes there are.
    """
    train = resolved.train.config
    return _nested(train, _data(train, resolved.infer.config, resolved.orch.config), environ)


def to_lightning_grpo_train(train: GrpoConfig, environ: Mapping[str, str] = os.environ) -> Nested:
    """Return the nested configuration of a trainer that meets its orchestrator in output_dir.

    Args:
        train: train.yaml, checked by itself.
        environ: as for to_lightning_grpo.
    """
    data = {
        "tokenizer": train.tokenizer or train.model,
        "orchestrator": {"max_steps": train.max_steps},
        "batch": _batch(train),
        "link": {**_weights_link(train), "feed": "folder"},
    }
    return _nested(train, data, environ)


def _nested(train: GrpoConfig, data: Nested, environ: Mapping[str, str]) -> Nested:
    module = {**module_arguments(train), "loss": asdict(train.loss)}
    return {
        "seed_everything": train.train_seed,
        "trainer": _trainer(train, environ),
        "model": {"class_path": "surogate.modes.GrpoModule", "init_args": module},
        "data": {"class_path": "surogate.modes.RolloutDataModule", "init_args": data},
    }


def inference(infer: InferConfig, orch: OrchConfig | None = None) -> Nested:
    """Return the fields of an InferenceSpec.

    Args:
        infer: settled, or that of `surogate grpo-infer` by itself.
        orch: says how adapters are called, and how servers are asked.
    """
    if orch is None:
        return asdict(infer)
    client = {"request_timeout": orch.client.timeout, "api_key_var": orch.client.api_key_var}
    return {**asdict(infer), "adapter_name": orch.model.lora_adapter, **client}


def orchestrator(orch: OrchConfig) -> Nested:
    """Return the fields of an OrchestratorSpec."""
    values: dict[str, Any] = asdict(orch)
    return {name: values[name] for name in keys_of(OrchestratorSpec)}


def _data(train: GrpoConfig, infer: InferConfig, orch: OrchConfig) -> Nested:
    return {
        "tokenizer": train.tokenizer or train.model,
        "orchestrator": orchestrator(orch),
        "inference": inference(infer, orch),
        "environments": [asdict(spec) for spec in orch.env],
        "batch": _batch(train),
        "link": {**_weights_link(train), "server_urls": list(orch.client.base_url)},
    }


def _batch(train: GrpoConfig) -> Nested:
    return {
        "sequence_len": train.sequence_len,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "min_micro_batches": train.gradient_accumulation_steps,
    }


def _weights_link(train: GrpoConfig) -> Nested:
    return {"weight_sync": train.weight_sync, "noise": asdict(train.noise_scheduler)}


def _trainer(c: GrpoConfig, environ: Mapping[str, str]) -> Nested:
    folder, steps = {"folder": c.output_dir}, {"every_n_steps": c.logging_steps}
    watching: dict[str, Nested] = {
        "EnvironmentRecord": folder,
        "RolloutMetrics": {**folder, **steps},
        "RolloutProgress": steps,
        "RolloutRecords": folder,
        "RewardPlot": folder,
        **precision_canary(c),
        **health(c),
    }
    return {
        **trainer_arguments(c, environ),
        "max_epochs": -1,
        "limit_val_batches": 0,  # evaluation is the orchestrator's
        "num_sanity_val_steps": 0,
        "callbacks": callbacks({**watching, **leaving_callbacks(c)}),
    }
