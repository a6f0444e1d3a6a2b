"""A step whose loss or gradient is not finite leaves every bit as it was, whatever the optimizer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.tiny import Recorder, fit, random_rows, save_tiny_model, step_batch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from surogate.batches import MicroBatch
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes import SftModule
from surogate.modes.base import MicroSums
from surogate.modes.skipping import step_if_finite

BATCHES = [step_batch([[random_rows(3, seed)], [random_rows(2, seed + 50)]]) for seed in range(4)]
BAD_STEP = 2


class BreakingModule(SftModule):
    """One whose second step has a loss, or only a gradient, that is not finite."""

    breaks = "loss"

    def micro_loss(self, micro_batch: MicroBatch) -> MicroSums:
        sums = super().micro_loss(micro_batch)
        if self.global_step + 1 != BAD_STEP:
            return sums
        loss = sums.loss * float("nan") if self.breaks == "loss" else _InfiniteGradient.apply(sums.loss)
        return MicroSums(loss, sums.num_correct)


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class StateKeeper(Recorder):
    """Keeps weights and optimizer state after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, *args)
        masters = module._master_weights.values() if module._master_weights else {}
        weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        kept = {**weights, **{f"master {name}": value.clone() for name, value in masters.items()}}
        self.states.append((kept, copy.deepcopy(trainer.optimizers[0].state_dict()["state"])))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "adamw_8bit": {"name": "adamw_8bit"},
    "normuon": {"name": "normuon"},
    "master weights": {"name": "adamw", "master_dtype": "float32"},
}


def module_of(folder: Path, kind: str, breaks: str) -> BreakingModule:
    torch.manual_seed(0)
    whole = kind == "master weights"
    model = ModelSpec(source=str(folder), recompute=False, dtype="bfloat16" if whole else None)
    optim = OptimSpec(**{"learning_rate": 0.01, "schedule": "linear", "weight_decay": 0.1, **KINDS[kind]})
    module = BreakingModule(model, LoraSpec(rank=4, dropout=0.0, enabled=not whole), optim)
    module.breaks = breaks
    return module


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("breaks", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_bit(model_folder: Path, kind: str, breaks: str) -> None:
    keeper = StateKeeper()
    metrics = fit(module_of(model_folder, kind, breaks), BATCHES, keeper)
    assert [step["skipped"] for step in metrics] == [0, 1, 0, 0]
    before, bad, after = keeper.states[:3]
    assert same(before[0], bad[0]) and same(before[1], bad[1])
    assert not same(bad[0], after[0])
    # The schedule goes on: the step has had its turn.
    assert [step["learning_rate"] for step in metrics] == pytest.approx([0.01 * (4 - step) / 4 for step in range(4)])


def test_a_first_step_that_is_not_finite_leaves_no_optimizer_state(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BAD_STEP", 1)
    keeper = StateKeeper()
    fit(module_of(model_folder, "adamw", "loss"), BATCHES[:1], keeper)
    assert keeper.states[0][1] == {}


class FakeWrapper:
    """Lightning's wrapper of an optimizer, as far as it is used."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.step = optimizer.step


def test_a_fused_optimizer_gets_the_flag_on_the_device_and_keeps_its_state() -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1, fused=True)
    states = []
    for is_finite in (True, False, True):
        parameter.grad = torch.full((7,), 0.5 if is_finite else float("nan"))
        step_if_finite(FakeWrapper(optimizer), torch.tensor(is_finite))
        states.append((parameter.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])))
    first, skipped, last = states
    assert same(first[0], skipped[0]) and same(first[1], skipped[1])
    assert not same(skipped[0], last[0]) and last[1][0]["step"] == 2


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("kind", ["sharded weights", "sharded optimizer"])
def test_a_sharded_step_is_skipped_whole(kind: str, fused: bool | None) -> None:
    model = nn.Linear(8, 8)
    optimizer: Any
    if kind == "sharded weights":
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    else:
        with warnings.catch_warnings(action="ignore"):  # torch compiles optimizers as TorchScript when this is imported
            from torch.distributed.optim import ZeroRedundancyOptimizer
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1, fused=fused)
    state = getattr(optimizer, "optim", optimizer).state
    seen = []
    for is_finite in (True, False, True):
        optimizer.zero_grad()
        (model(torch.ones(2, 8)).sum() * (1.0 if is_finite else float("inf"))).backward()
        step_if_finite(FakeWrapper(optimizer), torch.tensor(is_finite))
        tensors = [*model.parameters(), *(moment for values in state.values() for moment in values.values())]
        seen.append([getattr(t, "to_local", lambda t=t: t)().detach().clone() for t in tensors])
    same_as_before = [all(map(torch.equal, before, after)) for before, after in pairwise(seen)]
    assert same_as_before == [True, False]
