"""Deferred weights: a model stands on the meta device while each parameter knows where its values lie.

`defer_` marks the parameters of a meta model with their place in a safetensors or GGUF file; adapters can then be
injected; `materialize_` (called from a precision plugin's `convert_module`) reads one tensor at a time. A storage
plugin passes its own `place` and quantises each tensor as it arrives, so that peak memory is the quantised model plus
one layer. What is not here: which model is built (load.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_deferred_tensor"


class TensorReader(Protocol):
    """Reads tensors of a checkpoint by the model's own parameter names."""

    def names(self) -> set[str]:
        """Every parameter the checkpoint holds."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in the checkpoint's (dequantised) dtype."""
        ...


class SafetensorsReader:
    """Tensors of the `*.safetensors` files of a model folder, memory-mapped."""

    def __init__(self, files: list[Path]) -> None:
        from safetensors import safe_open

        self._files = [safe_open(str(file), framework="pt") for file in files]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)


class GgufTensorReader:
    """Tensors of a GGUF file, dequantised one at a time.

    The name map and the reordering of attention rows are those of transformers' own GGUF loader, so both ways of
    loading give the same bits.
    """

    def __init__(self, file: Path, model: nn.Module) -> None:
        from gguf import GGUFReader
        from transformers import modeling_gguf_pytorch_utils as gguf_utils

        self._reader = GGUFReader(file)
        config: Any = model.config
        architecture = gguf_utils.read_field(self._reader, "general.architecture")[0]
        processor_class = gguf_utils.TENSOR_PROCESSORS.get(architecture, gguf_utils.TensorProcessor)
        self._processor = processor_class(config=config.to_dict())
        self._name_map = gguf_utils.get_gguf_hf_weights_map(model, self._processor)

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return {self._name_map[t.name]: t for t in self._reader.tensors if t.name in self._name_map}

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        result = self._processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=self._name_map, parsed_parameters={"tensors": {}}
        )
        return torch.from_numpy(result.weights.copy())


def defer_(model: nn.Module, reader: TensorReader) -> set[str]:
    """Mark every parameter of a meta model that the reader can provide; return the names it cannot.

    Tied parameters are one object under two names, so one of the names is enough.
    """
    available = reader.names()
    missing: set[str] = set()
    found: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in available:
            setattr(parameter, _ATTRIBUTE, (reader, name))
            found.add(id(parameter))
            missing.discard(name)
        else:
            missing.add(name)
    return {name for name in missing if id(model.get_parameter(name)) not in found}


def is_deferred(parameter: Tensor) -> bool:
    """Whether the parameter still has to be read."""
    return hasattr(parameter, _ATTRIBUTE)


def read_deferred(parameter: Tensor) -> Tensor:
    """Read the values of a deferred parameter: its shape and dtype, on the CPU."""
    reader, name = getattr(parameter, _ATTRIBUTE)
    values: Tensor = reader.read(name)
    if values.shape != parameter.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)} in the file, {tuple(parameter.shape)} in the model")
    return values.to(parameter.dtype)


def deferred_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (owning module, attribute name, parameter) for each place that still holds a deferred parameter."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if is_deferred(parameter):
                yield owner, name, parameter


Place = Callable[[nn.Module, str, Tensor], bool]
"""Takes (owner, attribute name, values); stores them itself and returns True, or returns False to decline."""


def materialize_(module: nn.Module, device: torch.device, place: Place | None = None) -> None:
    """Read every deferred parameter, one at a time, and put it where it belongs.

    Args:
        module: changed in place.
        device: where plain parameters go.
        place: a storage plugin's own way of keeping frozen weights; it is asked first for each frozen parameter.
    """
    done: dict[int, nn.Parameter] = {}
    keep_alive: list[nn.Parameter] = []  # ids are only unique among living objects
    for owner, name, parameter in deferred_parameters(module):
        if id(parameter) in done:
            setattr(owner, name, done[id(parameter)])
            continue
        values = read_deferred(parameter)
        if place is not None and not parameter.requires_grad and place(owner, name, values):
            continue
        real = nn.Parameter(values.to(device), requires_grad=parameter.requires_grad)
        setattr(owner, name, real)
        done[id(parameter)] = real
        keep_alive.append(parameter)
