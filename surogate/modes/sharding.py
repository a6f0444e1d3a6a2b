"""Sharded training: FSDP2 as a Lightning strategy, and its checkpoints.

Weights, gradients and optimizer state are spread over all ranks; a layer's weights are gathered when it computes. What
is not here: how a model is spread (models/shards.py), and the step, which is the same (base.py).

The one idea: **a checkpoint is safetensors files and plain values.** Each rank writes its shards beside those of the
others, every tensor knows its place in the whole, and so any number of ranks can go on. torch's own format of
distributed checkpoints has a pickled index, which reading would run.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from surogate.disk_space import check_room, not_written
from surogate.errors import CheckpointError
from surogate.modes.optimizers import StateSharding

VALUES_FILE = "values.pt"
"""Beside the shards: everything of a checkpoint that is not sharded, as plain values and tensors."""


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

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """All ranks, in one dimension."""
        return self.device_mesh["data_parallel"]

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
        self._check_room(path, tensors)
        writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
        try:
            dcp.save(tensors, storage_writer=writer)
        except CheckpointException as error:  # on every rank, whichever of them met it
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(str(causes[0]))) from error
        if self.is_global_zero:
            try:
                torch.save(checkpoint, path / VALUES_FILE)
            except (OSError, RuntimeError) as error:
                needed = sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor))
                raise not_written(error, needed) from error

    def _check_room(self, path: Path, tensors: dict[str, Any]) -> None:
        """Refuse, on every rank alike, a checkpoint whose shards the disk has no room for.

        Raises:
            OSError: the one that a full disk gives.
        """
        mine = sum(leaf.to_local().nbytes for leaf in tree_leaves(tensors) if isinstance(leaf, DTensor))
        needed = int(self.reduce(torch.tensor(mine, device=self.root_device), reduce_op="sum"))
        problem = None
        if self.is_global_zero:
            try:
                check_room(path / VALUES_FILE, needed)
            except OSError as error:
                problem = error.args
        if problem := self.broadcast(problem):
            raise OSError(*problem)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            raise CheckpointError(
                f"{path} was saved without sharding. Set zero_level back to 1 to continue this run, or start another "
                "output_dir."
            )
        values = _read_values(path)
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
            if missing := sharded.keys() - plain["state"].keys():
                raise CheckpointError(f"{path} has no optimizer state for {sorted(missing)[0]}: it is of another run.")
            state = {name: {**plain["state"][name], **tensors} for name, tensors in sharded.items()}
            whole: Any = {"state": state, "param_groups": plain["param_groups"]}
            set_optimizer_state_dict(self.model, optimizer, whole)
        return {**values, "state_dict": weights}


def state_sharding(strategy: Any, wanted: bool) -> StateSharding:
    """Return where the ranks' shares of the optimizer's state are.

    Args:
        strategy: of the trainer.
        wanted: share it out under DDP too; an adapter's is too small to be worth sending weights in each step.
    """
    if isinstance(strategy, ShardedStrategy):
        return "with weights"
    return "by rank" if wanted and isinstance(strategy, DDPStrategy) else "none"


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint's trainer state was written by a ShardedStrategy."""
    return (path / VALUES_FILE).is_file()


def _read_values(path: Path) -> dict[str, Any]:
    """Read what is not sharded; anything but tensors and plain values is never loaded.

    Raises:
        CheckpointError: it cannot be read so.
    """
    try:
        values: dict[str, Any] = torch.load(path / VALUES_FILE, map_location="cpu", weights_only=True)
        complete = "optimizers" in values
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path / VALUES_FILE} cannot be read as tensors and plain values: {reason}") from error
    if not complete:
        raise CheckpointError(f"{path / VALUES_FILE} is not complete: it has no optimizer state.")
    return values


def _split(state: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, DTensor]], dict[str, dict[str, Any]]]:
    """Part the state of an optimizer into what is sharded and the rest, such as counts of steps, by parameter name."""
    sharded = {name: {k: v for k, v in values.items() if isinstance(v, DTensor)} for name, values in state.items()}
    plain = {name: {k: v for k, v in values.items() if not isinstance(v, DTensor)} for name, values in state.items()}
    return sharded, plain
