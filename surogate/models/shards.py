"""Spreading a model's weights over ranks with FSDP2, and putting them together again.

What is not here: Lightning's side of it, and checkpoints (modes/sharding.py). The one idea: a part is read, cast and
sharded before the next one is looked at, so no rank ever holds more than one decoder layer and its own share.

Shares are torch's DTensors. A layer gathers its weights when it is called; what belongs to no layer (embeddings, final
norm, head) is gathered while `run_` calls a function.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from surogate.models.weights import materialize_
from surogate.quant.layer_names import decoder_layers, num_decoder_layers

T = TypeVar("T")


def shard_(model: Any, mesh: DeviceMesh, master_dtype: torch.dtype | None = None, *, gather_twice: bool = True) -> None:
    """Spread a model's weights over the ranks of a mesh.

    Args:
        model: a transformers model, on the CPU or deferred, the same on every rank; changed in place.
        mesh: of one dimension.
        master_dtype: what the shares are kept and updated in; None = the model's own, in which it computes anyway.
        gather_twice: drop a layer's gathered weights after its forward pass.
    """
    dtype = next(parameter.dtype for parameter in model.parameters())
    # Gradients are summed over the ranks in float32, whatever they were computed in.
    policy = MixedPrecisionPolicy(param_dtype=dtype if master_dtype else None, reduce_dtype=torch.float32)
    layers = [model.get_submodule(name) for name in decoder_layers(model, num_decoder_layers(model))]
    for part in [*layers, model]:
        materialize_(part, torch.device("cpu"))
        if master_dtype is not None:
            _cast_parameters_(part, master_dtype)
        fully_shard(part, mesh=mesh, reshard_after_forward=gather_twice and part is not model, mp_policy=policy)
    model.surogate_dtype = dtype
    model.surogate_run = MethodType(lambda _, function, arguments: function(*arguments), model)
    register_fsdp_forward_method(model, "surogate_run")


def run_whole(model: Any, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that uses parts of a sharded model, with embeddings, final norm and head gathered."""
    result: T = model.surogate_run(function, arguments)
    return result


def full_state_dict(model: Any) -> dict[str, Tensor]:
    """Gather a sharded model's weights on global rank 0, on the CPU and in the model's dtype; called on every rank.

    Returns:
        Each weight once, by its first name, and buffers; nothing on the other ranks.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    weights = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - weights
    return {
        name: value.to(model.surogate_dtype) if name in weights else value
        for name, value in state.items()
        if name not in tied
    }


def local(tensor: Tensor) -> Tensor:
    """Return this rank's share of a tensor, or the tensor where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the shares of all ranks; called on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _cast_parameters_(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not sharded yet; buffers stay as they are."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(dtype)
