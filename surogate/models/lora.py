"""LoRA adapters, by PEFT and in PEFT's own format; the only file that imports peft.

The one idea: the adapter is created by PEFT and saved by PEFT, so whatever loads PEFT adapters (peft, transformers,
vLLM) loads ours. What is ours: which layers `all` means, the adapter's dtype, and injection into a model that is still
on the meta device.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surogate.config.parts import LoraSpec
from surogate.errors import ModelError

logger = logging.getLogger(__name__)

_START = "_surogate_start"

ADAPTER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def needs_base_weights(spec: LoraSpec) -> bool:
    """Whether creating the adapter reads the base weights, which then cannot be deferred."""
    plain_init = isinstance(spec.init_lora_weights, bool) or spec.init_lora_weights == "gaussian"
    return not plain_init or spec.use_dora or bool(spec.modules_to_save) or spec.adapter_path is not None


def inject(model: nn.Module, spec: LoraSpec, base_location: str) -> nn.Module:
    """Put a trainable adapter on a frozen model.

    Args:
        model: a transformers model, real or on the meta device; changed in place.
        spec: the adapter.
        base_location: what the adapter records as its base model.

    Returns:
        A `peft.PeftModel` whose only trainable parameters are the adapter (and modules_to_save). The adapter is real,
        on the CPU, also where the base is still on the meta device.

    Raises:
        ModelError: a target or module to save matches nothing, or adapter_path does not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    if spec.adapter_path is not None:
        model = _stack(model, spec)
        if spec.adapter_init_mode == "trainable":
            return _cast_adapter_(model, spec)
    targets = target_names(model, spec.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=spec.dropout,
        target_modules=targets,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        init_lora_weights=spec.init_lora_weights,  # type: ignore[arg-type]
        modules_to_save=_checked_modules_to_save(model, spec.modules_to_save) or None,
    )
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    adapted.peft_config["default"].base_model_name_or_path = base_location
    if not needs_base_weights(spec):
        _reset_adapter_(adapted, spec)
    _cast_adapter_(adapted, spec)
    if _changes_base(spec):
        _keep_start(adapted)
    return adapted


def target_names(model: Any, asked: list[str]) -> list[str]:
    """Resolve `lora_target_modules` to layer names.

    `all` means every linear layer but the LM head. Short names (`q_proj`) are given where they are unambiguous, since
    they are what vLLM and people read.

    Raises:
        ModelError: a name matches no linear layer.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    body = [name for name in linear if model.get_submodule(name) is not head]
    leaves = sorted({name.rpartition(".")[2] for name in body})
    if asked == ["all"]:
        if not body:
            raise ModelError("lora_target_modules: the model has no linear layers besides its head.")
        ambiguous = {name.rpartition(".")[2] for name in set(linear) - set(body)}
        return leaves if not ambiguous & set(leaves) else sorted(body)
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ModelError(
                f"lora_target_modules: no linear layer is named {target}. This model has: {', '.join(leaves)}."
            )
    return sorted(asked)


def _reset_adapter_(model: nn.Module, spec: LoraSpec) -> None:
    """Draw the adapter's start values on the CPU, from a generator seeded once and in module order.

    PEFT puts the adapter of a meta base on the meta device, without values. Drawing them here, for every model, makes a
    deferred model start exactly where one loaded at once does.
    """
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(torch.initial_seed())
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        projections: Any
        for projections in (module.lora_A, module.lora_B, module.lora_embedding_A, module.lora_embedding_B):
            for name, layer in list(projections.items()):
                if isinstance(layer, nn.Module):
                    layer.to_empty(device="cpu")
                elif layer.is_meta:
                    projections[name] = nn.Parameter(torch.empty_like(layer, device="cpu"))
        module.reset_lora_parameters("default", spec.init_lora_weights)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter in PEFT's format (adapter_config.json, adapter_model.safetensors), for the untouched base.

    An adapter that started from a factorisation of the base (PiSSA, OLoRA) is written as its difference to its start,
    which is plain LoRA of twice the rank.
    """
    start: dict[str, torch.Tensor] | None = getattr(model, _START, None)
    config = model.peft_config["default"]
    state = None
    if start is not None:
        # W + BA - B0 A0 = W + [B, -B0] [A; A0]
        state = model.state_dict()
        for name, first in start.items():
            joined = ([state[name], first], 0) if "lora_A" in name else ([state[name], -first], 1)
            state[name] = torch.cat(*joined)
        wider = math.sqrt(2) if config.use_rslora else 2  # keeps the scaling alpha / r, or alpha / sqrt(r)
        model.peft_config["default"] = replace(
            config, r=2 * config.r, lora_alpha=wider * config.lora_alpha, init_lora_weights=True
        )
    try:
        # "auto" would ask the hub whether the vocabulary was resized.
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    finally:
        model.peft_config["default"] = config


def _changes_base(spec: LoraSpec) -> bool:
    """Whether the initialisation takes a part out of the base weights."""
    init = spec.init_lora_weights
    return isinstance(init, str) and init.startswith(("pissa", "olora"))


def _keep_start(model: Any) -> None:
    setattr(model, _START, {k: v.detach().clone() for k, v in model.state_dict().items() if "lora_" in k})


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on a model.

    Raises:
        ModelError: the folder holds no adapter, or one of another architecture.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        raise ModelError(f"adapter: {folder} holds no adapter_config.json, so it is not an adapter folder.")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"adapter: {folder} does not fit this model: {str(error).splitlines()[0]}") from error


def check_tokenizer(folder: str | Path, tokenizer: Any) -> None:
    """Refuse an adapter that was trained with another tokenizer, where its folder holds the one it was trained with.

    Raises:
        ModelError: the vocabularies differ.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").exists():
        return
    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"adapter_path: {folder} was trained with another tokenizer ({len(theirs)} tokens) than this model's "
            f"({len(tokenizer)}), so its token ids mean other words here."
        )


def vllm_limits(spec: LoraSpec) -> list[str]:
    """Name what vLLM cannot serve of this adapter, in sentences."""
    limits = []
    if spec.use_dora:
        limits.append("use_dora: vLLM cannot serve DoRA adapters; merge the adapter to serve it.")
    if spec.modules_to_save:
        limits.append("modules_to_save: vLLM ignores modules trained whole; merge the adapter to serve it.")
    return limits


def _stack(model: nn.Module, spec: LoraSpec) -> nn.Module:
    assert spec.adapter_path is not None
    trainable = spec.adapter_init_mode == "trainable"
    adapted = load_adapter(model, spec.adapter_path, trainable=trainable)
    if not trainable:
        logger.warning(
            "adapter_path: %s is merged into the base, so the new adapter only fits that merged base. "
            "`surogate chat RUN` knows; other programs must merge the first adapter too.",
            spec.adapter_path,
        )
    return adapted if trainable else adapted.merge_and_unload()


def _cast_adapter_(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Give the adapter its dtype; modules_to_save keep the base's, which the layers around them compute in."""
    dtype = ADAPTER_DTYPES[spec.dtype]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return model


def _checked_modules_to_save(model: nn.Module, names: list[str]) -> list[str]:
    known = {name for name, _ in model.named_modules()}
    if names and any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ModelError(
            "modules_to_save: weights in float16 cannot be trained whole, the optimizer's steps vanish in it. "
            "Set model_dtype to bfloat16 or float32."
        )
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in known):
            raise ModelError(f"modules_to_save: the model has no module named {name}.")
    return names
