"""Storing a model's frozen linear layers in few bits, one at a time, in place.

What is converted: every `nn.Linear` whose weight requires no gradient, but for parts of adapters, the LM head, and what
shares its weights with another module. A layer whose checkpoint is quantised already keeps that form, whatever the
storage.

The one idea: a layer is read, stored and let go before the next is read, so memory peaks at the stored model plus one
layer. What is not here: reading (the caller passes a `Source`), and deciding on a format (precision/storage.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from surogate.errors import ConfigError, ModelError
from surogate.quant.experts import PROJECTIONS, FrozenQuantExperts, StoredExperts, expert_layers
from surogate.quant.layer_names import decoder_layers, head_name, is_adapter, matching_names, plain_name
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.stored import StorageFormat, StoredWeight


class Source(Protocol):
    """Where the values of parameters come from."""

    def read(self, parameter: Tensor) -> Tensor:
        """Return a parameter's values, wherever they are."""
        ...

    def read_stored(self, parameter: Tensor) -> StoredWeight | StoredExperts | None:
        """Return them as a quantised checkpoint stores them, or None where it does not."""
        ...


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Which layers stay as they are, besides the LM head.

    Attributes:
        first_layers: decoder layers at the front.
        last_layers: decoder layers at the end.
        modules: names of modules, ends of names, or regular expressions of either.
    """

    first_layers: int = 0
    last_layers: int = 0
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = {"first layers": self.first_layers, "last layers": self.last_layers, "modules": ", ".join(self.modules)}
        return "".join(f", without {value} {what}" for what, value in parts.items() if value)


@dataclass(kw_only=True)
class Conversion:
    """What was stored.

    Attributes:
        formats: number of layers by format.
        num_weights: elements of the stored layers.
        num_bytes: that their codes and scales take.
        num_bytes_before: that they would take unquantised.
        num_weights_left: elements of frozen matrices that are not stored; embeddings and LM head are not counted.
        kept: why a frozen matrix stays as it is, by name.
        is_new: whether layers were quantised here, and not by who made the checkpoint.
    """

    formats: Counter[str] = field(default_factory=Counter)
    num_weights: int = 0
    num_bytes: int = 0
    num_bytes_before: int = 0
    num_weights_left: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    is_new: bool = True

    def add(self, stored: StoredWeight, name: str, dtype: torch.dtype) -> None:
        """Count a stored layer."""
        self.formats[name] += 1
        self.num_weights += stored.shape[0] * stored.shape[1]
        self.num_bytes += stored.num_bytes
        self.num_bytes_before += stored.shape[0] * stored.shape[1] * dtype.itemsize

    def __str__(self) -> str:
        layers = ", ".join(f"{count} linear layers in {name}" for name, count in self.formats.items())
        bits = 8 * self.num_bytes / max(1, self.num_weights)
        sizes = f"{_mib(self.num_bytes)} instead of {_mib(self.num_bytes_before)}"
        verb = "Stored" if self.is_new else "Taken as the checkpoint stores them:"
        text = f"{verb} {layers}: {sizes} ({bits:.2f} bits a weight)"
        if self.num_weights_left > self.num_weights:  # most experts of mixtures, for one, are no linear layers
            share = self.num_weights_left / (self.num_weights_left + self.num_weights)
            text += f"; {share:.0%} of the frozen weights stay as they are"
        if self.kept:
            shown = [f"{name} ({why})" for name, why in list(self.kept.items())[:3]]
            more = f", and {len(self.kept) - 3} more" if len(self.kept) > 3 else ""
            text += f"; not quantised: {', '.join(shown)}{more}"
        return f"{text}."


def convert_(
    model: nn.Module,
    storage: StorageFormat | None,
    skip: Skip,
    *,
    device: torch.device,
    source: Source,
    num_layers: int | None = None,
    progress: Callable[[list[FrozenLayer]], Iterator[FrozenLayer]] = iter,
) -> Conversion:
    """Replace frozen linear layers by FrozenQuantLinear.

    Args:
        model: changed in place.
        storage: what a layer is stored in; None stores only what the checkpoint has stored already.
        skip: which layers stay as they are.
        device: where weights are quantised, and stay.
        source: gives the values of parameters.
        num_layers: decoder layers of the model, where it says so.
        progress: iterates over the layers and shows it.

    Raises:
        ConfigError: a skip entry matches nothing, or everything is skipped.
        ModelError: a weight is broken.
    """
    layers = list(frozen_layers(model))
    kept = layers_to_keep(model, [layer.name for layer in layers], skip, num_layers) if storage else {}
    conversion = Conversion(is_new=storage is not None)
    for layer in progress(layers):
        linear, dtype = layer.module, layer.module.weight.dtype
        stored = _stored(layer, storage, kept, source, device)
        if isinstance(stored, str):
            conversion.kept[layer.name] = stored
            continue
        bias = None if linear.bias is None else source.read(linear.bias).to(device, dtype)
        layer.replace(FrozenQuantLinear(stored, bias, dtype))
        conversion.add(stored, storage.name if storage else stored.format_name, dtype)
    _convert_experts_(model, device, source, conversion)
    _count_left(model, conversion)
    if storage is not None and not conversion.formats:
        raise ConfigError(
            f"No linear layer of this model can be stored in {storage.name}: {_reasons(conversion.kept)}."
        )
    return conversion


def _count_left(model: nn.Module, conversion: Conversion) -> None:
    """Count the frozen matrices that were not stored, and name those that are not linear layers."""
    head = head_name(model)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or plain_name(module_name) == head:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full_name = plain_name(f"{module_name}.{name}")
            if parameter.requires_grad or parameter.ndim < 2 or is_adapter(full_name):
                continue
            conversion.num_weights_left += parameter.numel()
            if not isinstance(module, nn.Linear) and conversion.is_new:
                conversion.kept[full_name] = f"of a {type(module).__name__}"


def round_(model: nn.Module, storage: StorageFormat, skip: Skip, num_layers: int | None) -> None:
    """Give a model's linear layers the values that they would have in a format, in their own dtype.

    Args:
        model: changed in place; none of its parameters requires a gradient afterwards.
        storage: the format.
        skip: which layers stay as they are.
        num_layers: decoder layers of the model, where it says so.
    """
    layers = list(frozen_layers(model.requires_grad_(False)))
    kept = layers_to_keep(model, [layer.name for layer in layers], skip, num_layers)
    for layer in layers:
        if layer.name not in kept and storage.misfit(layer.shape) is None:
            weight = layer.module.weight
            weight.data = storage.quantize(weight.data).dequantize(weight.dtype)


@dataclass(frozen=True)
class FrozenLayer:
    """A frozen linear layer and its place.

    Attributes:
        name: full name, without what wrappers around the model add to it.
        module: the layer.
        parent: the module that holds it.
        attribute: its name there.
    """

    name: str
    module: nn.Linear
    parent: nn.Module
    attribute: str

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.module.out_features, self.module.in_features

    def replace(self, module: nn.Module) -> None:
        """Put another module in the layer's place."""
        setattr(self.parent, self.attribute, module)


def frozen_layers(model: nn.Module) -> Iterator[FrozenLayer]:
    """Yield the frozen linear layers whose weights are theirs alone, but for those of adapters."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    names = {id(module): name for name, module in model.named_modules()}
    for parent in list(model.modules()):
        for attribute, module in list(parent.named_children()):
            full_name = ".".join(filter(None, [names[id(parent)], attribute]))
            if type(module) is not nn.Linear or module.weight.requires_grad or is_adapter(full_name):
                continue
            if owners[id(module.weight)] == 1:
                yield FrozenLayer(plain_name(full_name), module, parent, attribute)


def _stored(
    layer: FrozenLayer, storage: StorageFormat | None, kept: dict[str, str], source: Source, device: torch.device
) -> StoredWeight | str:
    """Return the layer's weight in few bits, or why it stays as it is."""
    weight = layer.module.weight
    stored = source.read_stored(weight)
    if stored is not None:
        assert isinstance(stored, StoredWeight)
        return stored.to(device)
    if storage is None:
        return "not quantised in the checkpoint"
    reason = kept.get(layer.name) or storage.misfit(layer.shape)
    if reason:
        return reason
    values = source.read(weight).to(device)
    try:
        return storage.quantize(values)
    except ModelError as error:
        raise ModelError(f"{layer.name}.weight: {error}.") from error


def _convert_experts_(model: nn.Module, device: torch.device, source: Source, conversion: Conversion) -> None:
    """Replace mixtures of experts that the checkpoint has in few bits."""
    for parent, attribute, experts in expert_layers(model):
        parameters = [getattr(experts, name) for name in PROJECTIONS]
        gate_up, down = (source.read_stored(parameter) for parameter in parameters)
        if isinstance(gate_up, StoredExperts) and isinstance(down, StoredExperts):
            setattr(parent, attribute, FrozenQuantExperts(experts, gate_up.to(device), down.to(device)))
            for weight in (*gate_up, *down):
                conversion.add(weight, weight.format_name, parameters[0].dtype)


def layers_to_keep(model: nn.Module, names: list[str], skip: Skip, num_layers: int | None) -> dict[str, str]:
    """Return why layers stay as they are, by name.

    Args:
        model: whose LM head is among them.
        names: of its frozen layers.
        skip: further ones.
        num_layers: decoder layers of the model, where it says so.

    Raises:
        ConfigError: a skip entry matches nothing, or everything is skipped.
    """
    head = head_name(model)
    kept = {name: "the LM head" for name in names if name == head}
    if skip.first_layers or skip.last_layers:
        layers = decoder_layers(model, num_layers)
        if skip.first_layers + skip.last_layers >= len(layers):
            raise ConfigError(
                f"skip_quant_first_layers {skip.first_layers} and skip_quant_last_layers {skip.last_layers} leave none "
                f"of the {len(layers)} decoder layers to quantise. Lower them."
            )
        outer = layers[: skip.first_layers] + layers[len(layers) - skip.last_layers :]
        kept |= {name: "skipped" for name in names if name.startswith(tuple(f"{layer}." for layer in outer))}
    for entry in skip.modules:
        kept |= dict.fromkeys(matching_names(entry, names, "skip_modules"), "skipped")
    return kept


def _reasons(kept: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:3]) or "it has no frozen linear layers"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
