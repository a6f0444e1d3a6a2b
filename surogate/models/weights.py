"""Deferred weights: a model stands on the meta device while each parameter knows where its values lie.

`defer_` marks the parameters of a meta model with their place in a safetensors or GGUF file; adapters can then be
injected; a precision plugin's `convert_module` then reads one tensor at a time, through `ParameterSource` what it
stores in few bits and by `materialize_` the rest, so that peak memory is the stored model plus one layer. What is not
here: which model is built (load.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surogate.errors import ModelError
from surogate.quant.experts import StoredExperts
from surogate.quant.stored import StoredWeight

Stored = StoredWeight | StoredExperts

_ATTRIBUTE = "_deferred_tensor"
_ORIGIN = "_stored_tensor"
"""Where a parameter was read that its checkpoint has in few bits."""


class TensorReader(Protocol):
    """Reads tensors of a checkpoint by the model's own parameter names."""

    def names(self) -> set[str]:
        """Every parameter the checkpoint holds."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, dequantised where the checkpoint quantises it."""
        ...

    def stores(self, name: str) -> bool:
        """Whether the checkpoint has it in few bits."""
        ...

    def read_stored(self, name: str) -> Stored | None:
        """Return one tensor as the checkpoint stores it in few bits, or None where it does not."""
        ...


class SafetensorsReader:
    """Tensors of the `*.safetensors` files of a model folder, memory-mapped."""

    def __init__(self, files: list[Path]) -> None:
        """Open the files.

        Raises:
            ModelError: one is broken.
        """
        self._files = [_open(file) for file in files]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def stores(self, name: str) -> bool:
        return False

    def read_stored(self, name: str) -> Stored | None:
        return None


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model: {file} cannot be read, so it is broken or cut short: {error}") from error


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

    def stores(self, name: str) -> bool:
        return False

    def read_stored(self, name: str) -> Stored | None:
        return None  # its blocks are formats of their own, and are dequantised


def defer_(model: nn.Module, reader: TensorReader) -> set[str]:
    """Mark every parameter of a meta model that the reader can provide; return the names it cannot.

    Tied parameters are one object under two names, so one of the names is enough. Buffers that a checkpoint holds (an
    expert's load balancing bias) are small, real already, and read at once.
    """
    available = reader.names()
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and name in available:
            buffer.copy_(reader.read(name))
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
    """Read the values of a deferred parameter: its shape and dtype, on the CPU.

    Raises:
        ModelError: the file holds another shape.
    """
    reader, name = getattr(parameter, _ATTRIBUTE)
    values: Tensor = reader.read(name)
    _check_shape(name, values.shape, parameter)
    return values.to(parameter.dtype)


class ParameterSource:
    """The values of any parameter: read from its file if it is deferred, its own if not."""

    def read(self, parameter: Tensor) -> Tensor:
        """Return the values, on the CPU or where the parameter is."""
        return read_deferred(parameter) if is_deferred(parameter) else parameter.detach()

    def read_stored(self, parameter: Tensor) -> Stored | None:
        """Return the form that a quantised checkpoint has them in, or None where it has not, or they have changed."""
        place = getattr(parameter, _ATTRIBUTE, None) or getattr(parameter, _ORIGIN, None)
        if place is None:
            return None
        reader, name = place
        stored: Stored | None = reader.read_stored(name)
        if stored is None:
            return None
        _check_shape(name, torch.Size(stored.shape), parameter)
        # An adapter that starts from a factorisation of a weight changes it.
        as_read = is_deferred(parameter) or torch.equal(stored.dequantize(parameter.dtype), parameter.detach().cpu())
        return stored if as_read else None


def was_stored(parameter: Tensor) -> bool:
    """Whether a parameter that is read now was stored in few bits in its checkpoint."""
    return hasattr(parameter, _ORIGIN)


def _check_shape(name: str, shape: torch.Size, parameter: Tensor) -> None:
    if shape != parameter.shape:
        raise ModelError(
            f"{name} has shape {tuple(shape)} in the file, and {tuple(parameter.shape)} in the model that its "
            "config.json describes: they do not belong together."
        )


def deferred_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (owning module, attribute name, parameter) for each place that still holds a deferred parameter."""
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if is_deferred(parameter):
                yield owner, name, parameter


def materialize_(module: nn.Module, device: torch.device) -> None:
    """Read every deferred parameter, one at a time, and put it where it belongs.

    Args:
        module: changed in place.
        device: where the parameters go.
    """
    done: dict[int, nn.Parameter] = {}
    keep_alive: list[nn.Parameter] = []  # ids are only unique among living objects
    for owner, name, parameter in deferred_parameters(module):
        if id(parameter) not in done:
            values = read_deferred(parameter).to(device)
            done[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            reader, tensor_name = getattr(parameter, _ATTRIBUTE)
            if reader.stores(tensor_name):
                setattr(done[id(parameter)], _ORIGIN, (reader, tensor_name))
            keep_alive.append(parameter)
        setattr(owner, name, done[id(parameter)])
