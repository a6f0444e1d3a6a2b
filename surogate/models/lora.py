"""LoRA adapters, by PEFT and in PEFT's own format; the only file that imports peft.

The one idea: the adapter is created by PEFT and saved by PEFT, so whatever loads PEFT adapters (peft, transformers,
vLLM) loads ours. What is ours: which layers `all` means, the adapter's dtype, and injection into a model that is still
on the meta device.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surogate.config.parts import LoraSpec
from surogate.errors import ModelError
from surogate.models.dequantized import plain_linear
from surogate.models.stacks import locate_adapter, stack_of
from surogate.quant.linear import FrozenQuantLinear

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
    targets = _without_experts(model, target_names(model, spec.target_modules), spec.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a float works
        lora_dropout=spec.dropout,
        target_modules=targets,
        fan_in_fan_out=_has_transposed_layers(model, targets),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        init_lora_weights=spec.init_lora_weights,  # type: ignore[arg-type]
        modules_to_save=checked_modules_to_save(model, spec.modules_to_save) or None,
    )
    try:
        with _quiet_about_tied_weights():
            adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"init_lora_weights: {spec.init_lora_weights}: {str(error).splitlines()[0]}") from error
    adapted.peft_config["default"].base_model_name_or_path = base_location
    if not needs_base_weights(spec):
        _reset_adapter_(adapted, spec)
    _cast_adapter_(adapted, spec)
    if _changes_base(spec):
        _keep_start(adapted, spec)
    return adapted


def target_names(model: Any, asked: list[str]) -> list[str]:
    """Resolve `lora_target_modules` to layer names.

    `all` means every linear layer but the LM head. Short names (`q_proj`) are given where they are unambiguous, since
    they are what vLLM and people read. A longer end of a name (`layers.0.self_attn.q_proj`) and a regular expression of
    one (`layers.[0-3].*.q_proj`) choose among layers.

    Raises:
        ModelError: a name or expression matches no linear layer.
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
    found = set()
    for target in asked:
        matching = _matching(target, linear)
        if not matching:
            raise ModelError(
                f"lora_target_modules: no linear layer is named {target}. This model has: {', '.join(leaves)}; written "
                f"out, {body[0] if body else linear[0]}."
            )
        found |= {target} if _PLAIN_NAME.fullmatch(target) else matching
    return sorted(found)


_PLAIN_NAME = re.compile(r"[\w.]+")


def _matching(target: str, names: list[str]) -> set[str]:
    """Return the layers that a name, the end of one, or a regular expression of either means."""
    pattern = re.escape(target) if _PLAIN_NAME.fullmatch(target) else target
    try:
        whole = re.compile(rf"(.*\.)?({pattern})")
    except re.error as error:
        raise ModelError(
            f"lora_target_modules: {target} is neither a name nor a regular expression: {error}."
        ) from error
    return {name for name in names if whole.fullmatch(name)}


def _without_experts(model: nn.Module, targets: list[str], asked: list[str]) -> list[str]:
    """Leave out names that PEFT takes for the fused experts of a mixture, whatever else bears them.

    In DeepSeek-V3, GLM-4-MoE and others `gate_proj` is a layer of the shared experts, and PEFT (0.21, when it makes an
    adapter and when it loads one) replaces it by the fused parameter of the routed ones, where dropout cannot work.

    Raises:
        ModelError: such a name was asked for.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=list(targets))
    convert_peft_config_for_transformers(config, model, None)
    lost = sorted(set(targets) - set(config.target_modules or []))
    if lost and asked != ["all"]:
        raise ModelError(
            f"lora_target_modules: {', '.join(lost)}: in this model PEFT takes these names for its fused experts, "
            "which cannot be adapted here. Leave them out."
        )
    if lost:
        logger.info("lora_target_modules: all leaves out %s, which PEFT takes for the fused experts.", ", ".join(lost))
    return [name for name in targets if name not in lost]


def _has_transposed_layers(model: nn.Module, targets: list[str]) -> bool:
    """Whether the targets are the transposed linear layers of GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(m, Conv1D) and name.endswith(tuple(targets)) for name, m in model.named_modules())


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
    which is plain LoRA of twice the rank. How it started no longer matters then and is not written, so that a loader
    does not compute it in vain.
    """
    start: dict[str, torch.Tensor] | None = getattr(model, _START, None)
    config = model.peft_config["default"]
    state, written = None, replace(config, init_lora_weights=True)
    if start is not None:
        # W + BA - B0 A0 = W + [B, -B0] [A; A0]
        state = model.state_dict()
        for name, first in start.items():
            joined = ([state[name], first], 0) if "lora_A" in name else ([state[name], -first], 1)
            state[name] = torch.cat(*joined)
        wider = math.sqrt(2) if config.use_rslora else 2  # keeps the scaling alpha / r, or alpha / sqrt(r)
        written = replace(written, r=2 * config.r, lora_alpha=wider * config.lora_alpha)
    model.peft_config["default"] = written
    try:
        # "auto" would ask the hub whether the vocabulary was resized.
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form of a model card, with nothing filled in
    finally:
        model.peft_config["default"] = config


def _changes_base(spec: LoraSpec) -> bool:
    """Whether the initialisation takes a part out of the base weights."""
    init = spec.init_lora_weights
    return isinstance(init, str) and init.startswith(("pissa", "olora"))


def _keep_start(model: Any, spec: LoraSpec) -> None:
    factors = {k: v.detach().clone() for k, v in model.state_dict().items() if "lora_A" in k or "lora_B" in k}
    for name, factor in factors.items():
        if "lora_A" in name and len(factor) < spec.rank:
            raise ModelError(
                f"init_lora_weights: {spec.init_lora_weights} finds only {len(factor)} directions in "
                f"{name.partition('.lora_A')[0]}, and lora_rank is {spec.rank}. Lower it, or leave the layer out."
            )
    setattr(model, _START, factors)


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False, name: str = "default") -> Any:
    """Put a saved adapter on a model.

    Args:
        model: a transformers model, or a PEFT model, which keeps the adapters that it has.
        folder: as `save_adapter` writes it.
        trainable: go on training it.
        name: by which `activate_` knows it.

    Raises:
        ModelError: the folder holds no adapter, or one of another architecture.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        raise ModelError(f"adapter: {folder} holds no adapter_config.json, so it is not an adapter folder.")
    try:
        with _quiet_about_tied_weights():
            # Without the cast to float32, PEFT rounds the adapter to the base's dtype before anything is computed.
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name, is_trainable=trainable, autocast_adapter_dtype=True)
                return model
            return PeftModel.from_pretrained(model, str(folder), name, trainable, autocast_adapter_dtype=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"adapter: {folder} does not fit this model: {str(error).splitlines()[0]}") from error


def activate_(adapted: Any, names: list[str]) -> None:
    """Let the named adapters of a PEFT model add their updates to the base, and no others; none = the base alone."""
    if not names:
        adapted.base_model.disable_adapter_layers()
        return
    adapted.base_model.enable_adapter_layers()
    adapted.base_model.set_adapter(names, inference_mode=True)


def fold(adapted: Any) -> Any:
    """Merge the active adapter into its base, in the dtype the base is held in; return the transformers model."""
    for layer, name, before, exact in merged_weights(adapted):
        setattr(layer, name, nn.Parameter(exact.to(before.dtype), requires_grad=False))
    return unwrap(adapted)


def merged_weights(adapted: Any) -> Iterator[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    """Fold the active adapter into the base, one layer at a time and in float32 whatever dtype the base is held in.

    A layer that is stored in few bits becomes a plain one. What the caller does not replace stays float32. Weights that
    were tied to a merged one no longer are.

    Yields:
        (layer, name of its parameter, the weight before, the weight with the update in float32).
    """
    from peft.tuners.lora import LoraLayer

    for module in list(adapted.modules()):
        if not isinstance(module, LoraLayer):
            continue
        layer, name = module.get_base_layer(), getattr(module, "parameter_name", "weight")
        if isinstance(layer, FrozenQuantLinear):
            layer = module.base_layer = plain_linear(layer, torch.float32)
        before = getattr(layer, name)
        setattr(layer, name, nn.Parameter(before.detach().to(torch.float32, copy=True), requires_grad=False))
        module.merge()
        yield layer, name, before.detach(), getattr(layer, name).detach()


def unwrap(adapted: Any) -> Any:
    """Return the transformers model of a PEFT model whose layers are merged; modules_to_save take their places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says of every layer that it is merged already
        return adapted.merge_and_unload()


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
            f"adapter: {folder} was trained with another tokenizer ({len(theirs)} tokens) than this model's "
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


@contextmanager
def _quiet_about_tied_weights() -> Iterator[None]:
    """Keep back PEFT's long warning that merging ties needs care; `merged_weights` takes it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield


def _stack(model: nn.Module, spec: LoraSpec) -> nn.Module:
    assert spec.adapter_path is not None
    trainable = spec.adapter_init_mode == "trainable"
    *below, top = stack_of(locate_adapter(spec.adapter_path))
    for folder in below:
        model = fold(load_adapter(model, folder))
    adapted = load_adapter(model, top, trainable=trainable)
    if not trainable:
        logger.warning(
            "adapter_path: %s is merged into the base, so the new adapter only fits that merged base. Surogate's verbs "
            "know, since the new one carries it along; other programs must merge it first.",
            spec.adapter_path,
        )
    return adapted if trainable else fold(adapted)


def _cast_adapter_(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Give the adapter its dtype; modules_to_save keep the base's, which the layers around them compute in."""
    dtype = ADAPTER_DTYPES[spec.dtype]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return model


def checked_modules_to_save(model: nn.Module, names: list[str]) -> list[str]:
    """Return the names of modules_to_save.

    Raises:
        ModelError: the model has no such module, or its weights cannot be trained whole.
    """
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
