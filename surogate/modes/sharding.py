"""Sharded training: FSDP2 as a Lightning strategy, and its checkpoints.

Weights, gradients and optimizer state are spread over all ranks; a layer's weights are gathered when it computes. What
is not here: which modules train (models/), and the step, which is the same (base.py).

The one idea: **a checkpoint is safetensors files and plain values.** Each rank writes its shards beside those of the
others, every tensor knows its place in the whole, and so any number of ranks can go on. torch's own format of
distributed checkpoints has a pickled index, which reading would run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from typing_extensions import override

from surogate.errors import CheckpointError
from surogate.models.weights import materialize_
from surogate.quant.layer_names import decoder_layers, num_decoder_layers

VALUES_FILE = "values.pt"
"""Beside the shards: everything of a checkpoint that is not sharded, as plain values and tensors."""

T = TypeVar("T")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks of all nodes.

    Args:
        reshard_after_forward: gather a layer's weights again for the backward pass instead of keeping them whole in
            between: less memory, half as much communication again. True is what `zero_level: 3` means, false
            `zero_level: 2`.
    """

    def __init__(self, reshard_after_forward: bool = True) -> None:
        super().__init__(tensor_parallel_size=1)
        self.reshard_after_forward = reshard_after_forward
        self._dtype: torch.dtype | None = None

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    # ---- the model

    def shard_(self, model: Any, master_dtype: torch.dtype | None = None) -> None:
        """Spread a model's weights over the ranks, a decoder layer at a time.

        What is deferred is read here, so that no rank ever holds more than one layer and its own share.

        Args:
            model: a transformers model, on the CPU or deferred, the same on every rank.
            master_dtype: what the shards are kept and updated in; layers compute in the model's own dtype all the same.
        """
        self._dtype = next(parameter.dtype for parameter in model.parameters())
        policy = MixedPrecisionPolicy(param_dtype=self._dtype if master_dtype else None, reduce_dtype=torch.float32)
        layers = [model.get_submodule(name) for name in decoder_layers(model, num_decoder_layers(model))]
        for part in [*layers, model]:
            materialize_(part, torch.device("cpu"))
            if master_dtype is not None:
                _cast_parameters_(part, master_dtype)
            fully_shard(
                part,
                mesh=self.device_mesh["data_parallel"],
                reshard_after_forward=self.reshard_after_forward and part is not model,
                mp_policy=policy,
            )
        model.surogate_run = MethodType(lambda _, function, arguments: function(*arguments), model)
        register_fsdp_forward_method(model, "surogate_run")

    def run(self, model: Any, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that uses parts of the model, with embeddings, final norm and head gathered."""
        result: T = model.surogate_run(function, arguments)
        return result

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Gather the weights on global rank 0, on the CPU and in the model's dtype; called on every rank.

        Returns:
            Each weight once, by its first name; nothing on the other ranks.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        names = {name for name, _ in model.named_parameters()}  # a tied weight has one of its names here
        return {
            name: value.to(self._dtype) if name in names else value
            for name, value in state.items()
            if name in names or name not in dict(model.named_parameters(remove_duplicate=False))
        }

    # ---- checkpoints

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        path.mkdir(parents=True, exist_ok=True)
        optimizers = checkpoint.pop("optimizer_states", [])
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        checkpoint["optimizers"] = []
        for index, optimizer in enumerate(optimizers):
            sharded, plain = _split(optimizer["state"])
            tensors[f"optimizer_{index}"] = sharded
            checkpoint["optimizers"].append({"state": plain, "param_groups": optimizer["param_groups"]})
        writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
        try:
            dcp.save(tensors, storage_writer=writer)
        except CheckpointException as error:  # on every rank, whichever of them met it
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(str(causes[0]))) from error
        if self.is_global_zero:
            torch.save(checkpoint, path / VALUES_FILE)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            raise CheckpointError(
                f"{path} was saved without sharding. Set zero_level back to 1 to continue this run, or start another "
                "output_dir."
            )
        values: dict[str, Any] = torch.load(path / VALUES_FILE, map_location="cpu", weights_only=True)
        reader = dcp.HuggingFaceStorageReader(str(path))
        saved = reader.read_metadata().state_dict_metadata.keys()
        assert self.model is not None
        weights = get_model_state_dict(self.model)
        weights = {name: value for name, value in weights.items() if f"state_dict.{name}" in saved}
        dcp.load({"state_dict": weights}, storage_reader=reader)
        set_model_state_dict(self.model, weights, options=StateDictOptions(strict=False))
        for index, (optimizer, plain) in enumerate(zip(self.optimizers, values.pop("optimizers"), strict=False)):
            initial: Any = get_optimizer_state_dict(self.model, optimizer)["state"]
            sharded, _ = _split(initial)
            dcp.load({f"optimizer_{index}": sharded}, storage_reader=reader)
            state = {name: {**plain["state"][name], **tensors} for name, tensors in sharded.items()}
            whole: Any = {"state": state, "param_groups": plain["param_groups"]}
            set_optimizer_state_dict(self.model, optimizer, whole)
        return {**values, "state_dict": weights}


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint's trainer state was written by a ShardedStrategy."""
    return (path / VALUES_FILE).is_file()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's share of a tensor, or the tensor where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the shares of all ranks; called on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _split(state: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, DTensor]], dict[str, dict[str, Any]]]:
    """Part the state of an optimizer into what is sharded and the rest, such as counts of steps, by parameter name."""
    sharded = {name: {k: v for k, v in values.items() if isinstance(v, DTensor)} for name, values in state.items()}
    plain = {name: {k: v for k, v in values.items() if not isinstance(v, DTensor)} for name, values in state.items()}
    return sharded, plain


def _cast_parameters_(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not sharded yet; buffers stay as they are."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(dtype)
