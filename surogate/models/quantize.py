"""Writing a model with quantised weights as a complete folder, tensor by tensor.

What is not here: the formats' tensors and configurations (quant/checkpoints/writing.py) and the command
(cli/quantize.py). The one idea: nothing but a group of layers that vLLM joins is in memory at once, so a model of any
size can be written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surogate.config.parts import ModelSpec
from surogate.errors import ModelError
from surogate.models.load import load_model, quantisation_of
from surogate.models.source import ModelSource
from surogate.models.weights import is_deferred, read_deferred
from surogate.quant.checkpoints.writing import Layout, ShardWriter
from surogate.quant.convert import Conversion, FrozenLayer, Skip, frozen_layers, layers_to_keep
from surogate.quant.layer_names import num_decoder_layers
from surogate.run_folder import draft_folder

_AS_STORED = torch.device("meta")  # nothing is computed in the weights' own dtype, so no CPU need be able to

_JOINED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
"""Layers that vLLM makes one of: all of them must be quantised, or none."""

Group = list[FrozenLayer]


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was written.

    Attributes:
        folder: where.
        conversion: of the linear layers.
        num_weights: of the whole model.
        num_bytes_before: of the whole model.
        num_bytes: of the whole model.
    """

    folder: str
    conversion: Conversion
    num_weights: int
    num_bytes_before: int
    num_bytes: int

    def __str__(self) -> str:
        mib_before, mib = self.num_bytes_before / 2**20, self.num_bytes / 2**20
        return (
            f"{self.conversion}\n{self.folder}: {mib:.1f} MiB instead of {mib_before:.1f} MiB, "
            f"{8 * self.num_bytes / self.num_weights:.2f} bits a weight over the whole model"
        )


def quantize(
    location: str,
    layout: Layout,
    skip: Skip,
    folder: Path,
    tokenizer: Any,
    *,
    force: bool = False,
    progress: Callable[[list[Group]], Iterator[Group]] = iter,
) -> QuantizeReport:
    """Write a model with its linear layers quantised, but for the LM head.

    Args:
        location: of the model.
        layout: the format, and whose names its tensors get.
        skip: further layers that stay as they are.
        folder: where the model goes.
        tokenizer: goes with it.
        force: replace whatever is in the folder.
        progress: iterates over groups of layers and shows it.

    Raises:
        ConfigError: a skip entry leaves nothing to quantise.
        ModelError: the model cannot be read tensor by tensor, is quantised already or broken, or the folder is taken.
            Nothing is written then.
    """
    check_target(location, folder, force)
    spec, source = _on_this_machine(location)
    if method := quantisation_of(spec):
        raise ModelError(f"{location} is quantised already ({method.name}). Name the original model.")
    model = _on_meta(spec)
    conversion = Conversion()
    groups = _groups(model, layout, skip, conversion)
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(conversion.kept.items())[:3])
        why = why or "it has no linear layers that could be"
        raise ModelError(
            f"No linear layer of {location} can be written in {layout.storage.name}: {why}. Choose another --format or "
            "--block-size."
        )
    with draft_folder(folder) as draft:
        writer = ShardWriter(draft)
        _write_weights(model, progress(groups), layout, writer, conversion)
        writer.close()
        _write_config(model, layout, groups, draft)
        generation = Path(source.folder) / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, draft / generation.name)
        tokenizer.save_pretrained(str(draft))
        _on_meta(ModelSpec(source=str(draft)))  # every parameter must be found again
    parameters = list(model.parameters())
    return QuantizeReport(
        folder=str(folder),
        conversion=conversion,
        num_weights=sum(parameter.numel() for parameter in parameters),
        num_bytes_before=sum(parameter.nbytes for parameter in parameters),
        num_bytes=writer.num_bytes,
    )


def check_target(location: str, folder: Path, force: bool = False) -> None:
    """Refuse a folder that is taken, and one that holds the model itself however much force is used.

    Raises:
        ModelError: saying what to do.
    """
    target, own = folder.resolve(), Path(location).resolve()
    if target in (own, *own.parents):
        raise ModelError(f"{folder} holds {location}, which is read here. Choose another --output.")
    if folder.exists() and not force and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(f"{folder} exists. Choose another --output, or replace it with --force.")


def _on_this_machine(location: str) -> tuple[ModelSpec, ModelSource]:
    source = ModelSource.of(location)
    if source.is_local:  # a GGUF file says no dtype; what models are trained and served in is bfloat16
        return ModelSpec(source=location, dtype="bfloat16" if source.gguf_file else None), source
    source = source.downloaded()
    return ModelSpec(source=source.folder), source


def _on_meta(spec: ModelSpec) -> Any:
    """Return a frozen model whose parameters know where their values lie."""
    model: Any = load_model(spec, _AS_STORED, defer=True)
    if not all(is_deferred(parameter) for parameter in model.parameters()):
        raise ModelError(
            f"{spec.source} cannot be quantised: its files name or cut its layers in another way than the model does, "
            "as mixtures of experts do. qlora_bnb, qlora_fp8 and qlora_fp4 quantise its linear layers while it loads."
        )
    return model.requires_grad_(False)


def _groups(model: Any, layout: Layout, skip: Skip, conversion: Conversion) -> list[Group]:
    """Return the layers to quantise, those together that vLLM joins; notes why others are not."""
    layers = list(frozen_layers(model))
    num_layers = num_decoder_layers(model)
    kept = layers_to_keep(model, [layer.name for layer in layers], skip, num_layers)
    groups: dict[tuple[int, Any], Group] = {}
    for layer in layers:
        joined = next((names for names in _JOINED if layer.attribute in names), layer.attribute)
        groups.setdefault((id(layer.parent), joined), []).append(layer)
    chosen = []
    for group in groups.values():
        reasons = {layer.name: kept.get(layer.name) or layout.misfit(layer.shape) for layer in group}
        if any(reasons.values()):
            beside = next(name for name, reason in reasons.items() if reason)
            conversion.kept |= {name: reason or f"served as one with {beside}" for name, reason in reasons.items()}
        else:
            chosen.append(group)
    return chosen


def _write_weights(
    model: Any, groups: Iterator[Group], layout: Layout, writer: ShardWriter, conversion: Conversion
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        weights = [layer.module.weight for layer in group]
        for weight, stored in zip(weights, layout.quantize([_read(w, names, device) for w in weights]), strict=True):
            layer_name = names.pop(id(weight)).removesuffix(".weight")
            tensors = layout.tensors(stored.cpu(), weight.dtype)
            writer.add({f"{layer_name}{ending}": tensor for ending, tensor in tensors.items()})
            conversion.add(stored, layout.storage.name, weight.dtype)
    for parameter in model.parameters():
        if id(parameter) in names:
            writer.add({names[id(parameter)]: read_deferred(parameter)})


def _read(parameter: Tensor, names: dict[int, str], device: torch.device) -> Tensor:
    values = read_deferred(parameter)
    if not bool(values.isfinite().all()):
        raise ModelError(f"{names[id(parameter)]} holds NaN or infinity: the checkpoint is broken.")
    return values.to(device)


def _write_config(model: Any, layout: Layout, groups: list[Group], folder: Path) -> None:
    quantised = {id(layer.module) for group in groups for layer in group}
    kept = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in quantised]
    config = model.config
    config.use_cache = True
    config.architectures = config.architectures or [type(model).__name__]
    config.dtype = model.dtype
    config.quantization_config = layout.config(kept, model.dtype)
    config.save_pretrained(str(folder))
