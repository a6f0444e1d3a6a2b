"""EngineLink: what the engine is given of the model that trains: a base to load, and weights after each step.

What is not here: engines (rl/generators/) and when weights are sent (modes/grpo.py).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from surogate.config.parts_grpo import InferenceSpec, LinkSpec
from surogate.models.hidden import base_model
from surogate.models.lora import ADAPTER_DTYPES
from surogate.models.serving import export_base, is_stored, is_untied, served_tensors
from surogate.models.source import ModelSource
from surogate.rl import parity
from surogate.rl.generators.checks import fit_lora_rank
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.noise import noise_sigma
from surogate.rl.weight_files import write_weights, write_whole

BASE_DIR = "generator_base"
WEIGHTS_DIR = "generator_weights"
_KEPT_VERSIONS = 2


class EngineLink:
    """Prepares base and weights in the form that the engine takes.

    Args:
        module: the GrpoModule, its model as it trains.
        spec: how weights get to the engine.
        inference: of the engine.
        max_steps: of the run, for the noise.
    """

    def __init__(self, module: Any, spec: LinkSpec, inference: InferenceSpec, max_steps: int) -> None:
        self._module, self._spec, self._inference = module, spec, inference
        self._max_steps = max_steps
        self._folder = Path(module.trainer.default_root_dir)
        self._is_stored = is_stored(module.model)
        self.dtype: torch.dtype = base_model(module.model).get_input_embeddings().weight.dtype
        self.sync = self._chosen_sync()
        self.base_hint = ""
        """What servers that this run does not start have to serve, where that is not the model itself."""
        coarsest = _coarsest(self.dtype, ADAPTER_DTYPES[module.lora_spec.dtype], inference.dtype)
        self.tolerance = parity.TOLERANCES[coarsest]
        """Largest differences between engine and trainer that rounding explains."""

    def __str__(self) -> str:
        sent = "the adapter" if self.sync == "adapter" else "the merged weights"
        return f"After each step the engine gets {sent} (weight_sync: {self.sync})"

    def _chosen_sync(self) -> Literal["adapter", "full"]:
        if self._spec.weight_sync != "auto":
            return self._spec.weight_sync
        is_slow_on_cpu = self._module.device.type == "cpu" and not self._is_stored
        return "full" if is_slow_on_cpu else "adapter"

    def resolved_inference(self, seq_len: int) -> InferenceSpec:
        """Return the engine's spec with what follows from the trainer filled in."""
        lora = self._module.lora_spec
        starts_in_base = str(lora.init_lora_weights).startswith(("pissa", "olora"))
        rank = lora.rank * (2 if starts_in_base else 1)  # such an adapter is written with twice the rank
        inference = self._inference
        return replace(
            inference,
            dtype=_dtype_name(self.dtype) if inference.dtype == "auto" else inference.dtype,
            max_model_len=inference.max_model_len or seq_len,
            max_lora_rank=fit_lora_rank(rank, inference.max_lora_rank) if self.sync == "adapter" else None,
            enable_lora=self.sync == "adapter",
            own_process=self._needs_process(),
        )

    def _needs_process(self) -> bool:
        """Whether the engine needs a process of its own; inside one rank of several it would wait for the others."""
        return bool(self._inference.own_process or self._module.trainer.world_size > 1)

    def model_dir(self, tokenizer: Any) -> Path:
        """Return the folder of the base that the engine loads: the model's own, or what trains, written out once."""
        lora, source = self._module.lora_spec, ModelSource.of(self._module.model_spec.source)
        untied = is_untied(self._module.model)
        # Where adapter_path goes on training there may be others below it, merged into the base.
        is_changed = untied or self._is_stored or lora.adapter_path is not None
        if not is_changed and source.gguf_file is None:
            return Path(source.downloaded().folder)
        fingerprint = {
            "model": source.fingerprint(),
            "adapter_path": lora.adapter_path,
            "storage": str(getattr(self._module.trainer.precision_plugin, "storage", None)),
            "dtype": str(self.dtype),
            "untied": untied,
        }
        folder = export_base(self._module.model, self._folder / BASE_DIR, tokenizer, fingerprint)
        if is_changed and (self._spec.server_urls or self._spec.feed == "folder"):
            self.base_hint = (
                f"Most likely the servers serve {self._module.model_spec.source} as it is, and what trains is what "
                f"quantisation or adapter_path made of it. Start them with `surogate grpo-infer infer.yaml --model "
                f"{folder.resolve()}`, which holds it."
            )
        return folder

    def update(self, version: int, *, noisy: bool = True) -> WeightUpdate:
        """Return the weights as they stand.

        Args:
            version: optimizer steps behind them.
            noisy: with the noise that is due.
        """
        sigma = self.sigma(version) if noisy else 0.0
        tensors = partial(served_tensors, self._module.model, with_adapter=True)
        in_process = not (self._spec.server_urls or self._spec.server_gpus or self._needs_process())
        if self.sync == "full" and (in_process or self._spec.feed == "folder"):
            return WeightUpdate(version=version, tensors=tensors, norm_noise_sigma=sigma)
        folder = self._folder / WEIGHTS_DIR / f"version_{version}"
        self._forget(version)
        if self.sync == "full":
            write_whole(partial(write_weights, tensors()), folder)
            return WeightUpdate(version=version, weights_dir=folder, norm_noise_sigma=sigma)
        write_whole(self._module.save_adapter, folder)
        return WeightUpdate(version=version, adapter_dir=folder, norm_noise_sigma=sigma)

    def sigma(self, version: int) -> float:
        """Return the noise on the engine's weights, which is a difference from the trainer's on purpose."""
        return noise_sigma(self._spec.noise, version, self._max_steps)

    def _forget(self, newest: int) -> None:
        for path in (self._folder / WEIGHTS_DIR).glob("version_*"):
            if int(path.name.removeprefix("version_")) <= newest - _KEPT_VERSIONS:
                shutil.rmtree(path, ignore_errors=True)


def _dtype_name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _coarsest(trained: torch.dtype, of_adapter: torch.dtype, served: str) -> torch.dtype:
    dtypes = [trained, of_adapter] if served == "auto" else [trained, of_adapter, getattr(torch, served)]
    return next(dtype for dtype in (torch.bfloat16, torch.float16, torch.float32) if dtype in dtypes)
