"""The policy's weights in the form that an inference engine loads: the checkpoint's names, plain, adapters merged.

What is not here: engines (rl/generators/) and adapters by themselves (lora.py). The one idea: what is served is read
off the model that trains, so a base that is stored in few bits, or that an earlier adapter was merged into, is served
as it trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surogate.errors import ModelError
from surogate.models.hidden import base_model
from surogate.quant.experts import FrozenQuantExperts
from surogate.quant.linear import FrozenQuantLinear
from surogate.run_folder import draft_folder, read_json, write_json

_MARKER = "surogate_serving.json"
_SHARD_BYTES = 4 << 30
_PREFIX = "base_model.model."
_ADAPTER = "default"


def is_stored(model: nn.Module) -> bool:
    """Whether weights of the model are stored in few bits, by this run or by its checkpoint."""
    return any(isinstance(module, FrozenQuantLinear | FrozenQuantExperts) for module in model.modules())


@torch.no_grad()
def served_tensors(model: Any, *, with_adapter: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the checkpoint, weight) one at a time; tied weights come under each of their names.

    Args:
        model: a PEFT model, or a transformers model.
        with_adapter: the base with the adapter's update, merged in float32 and rounded to the base's dtype; otherwise
            the base alone.

    Raises:
        ModelError: experts are stored in few bits, which no engine is given here.
    """
    modules = dict(model.named_modules())
    if any(isinstance(module, FrozenQuantExperts) for module in modules.values()):
        raise ModelError("The model's experts are stored quantised, and such a base cannot be handed to the generator.")
    for name, module in modules.items():
        if isinstance(module, FrozenQuantLinear):
            owner = modules[name.removesuffix(".base_layer")]
            weight = module.stored.dequantize(module.dtype)
            yield f"{_plain(name)}.weight", _merged(owner, weight) if with_adapter else weight
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if "lora_" in name or ".original_module." in name:
            continue
        owner = modules[name.rpartition(".")[0].removesuffix(".base_layer")]
        is_adapted = with_adapter and name.endswith(".base_layer.weight")
        yield _plain(name), _merged(owner, parameter.detach()) if is_adapted else parameter.detach()


def _plain(name: str) -> str:
    for part in (_PREFIX, "base_layer.", ".base_layer", f"modules_to_save.{_ADAPTER}."):
        name = name.replace(part, "")
    return name


def _merged(layer: Any, weight: Tensor) -> Tensor:
    """Return a layer's weight with the update of its adapter."""
    if not hasattr(layer, "get_delta_weight"):
        return weight
    variant = layer.lora_variant.get(_ADAPTER) if getattr(layer, "lora_variant", None) else None
    if variant is not None:  # DoRA: the magnitudes are part of the update
        merged: Tensor = variant.merge_safe(layer, _ADAPTER, weight.float())
        return merged.to(weight.dtype)
    return (weight.float() + layer.get_delta_weight(_ADAPTER).float()).to(weight.dtype)


def export_base(model: Any, folder: Path, tokenizer: Any, fingerprint: dict[str, Any]) -> Path:
    """Write the base that trains as a folder that vLLM and transformers load; nothing where it is there already.

    Args:
        model: a PEFT model.
        folder: replaced, where it was written for another base.
        tokenizer: goes with it.
        fingerprint: tells this base from others, plain values.
    """
    if read_json(folder / _MARKER) == fingerprint:
        return folder
    with draft_folder(folder) as draft:
        _write_shards(served_tensors(model, with_adapter=False), draft)
        base = base_model(model)
        config = base.config.to_dict()
        config.pop("quantization_config", None)
        config["use_cache"] = True
        if is_untied(model):
            config["tie_word_embeddings"] = False
        config["architectures"] = [type(base).__name__]
        config["dtype"] = str(_dtype(base)).removeprefix("torch.")
        (draft / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
        if base.generation_config is not None:
            base.generation_config.save_pretrained(str(draft))
        tokenizer.save_pretrained(str(draft))
        write_json(draft / _MARKER, fingerprint)
    return folder


def is_untied(model: Any) -> bool:
    """Whether training has parted the LM head from embeddings that the checkpoint's configuration ties it to."""
    base = base_model(model)
    if not base.config.get_text_config().tie_word_embeddings:
        return False
    head, embeddings = (_in_use(layer) for layer in (base.get_output_embeddings(), base.get_input_embeddings()))
    return head.weight is not embeddings.weight


def _in_use(layer: Any) -> Any:
    """Return the layer itself, or the copy of it that trains (modules_to_save)."""
    return layer.modules_to_save[_ADAPTER] if hasattr(layer, "modules_to_save") else layer


def _dtype(base: nn.Module) -> torch.dtype:
    """Return the dtype of the embeddings, which no storage changes."""
    dtype: torch.dtype = base.get_input_embeddings().weight.dtype  # type: ignore[operator]
    return dtype


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write model-00001.safetensors and so on, with the index that names them; never more than one shard in memory."""
    shard: dict[str, Tensor] = {}
    size = 0
    places: dict[str, str] = {}

    def flush() -> None:
        nonlocal shard, size
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    tied: dict[int, str] = {}
    for name, tensor in tensors:
        if tied.setdefault(tensor.data_ptr(), name) != name and name == "lm_head.weight":
            continue  # tied to the embeddings, as the configuration says
        shard[name] = tensor.to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= _SHARD_BYTES:
            flush()
    if shard:
        flush()
    total = {"total_size": sum(path.stat().st_size for path in folder.glob("*.safetensors"))}
    write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": places})
