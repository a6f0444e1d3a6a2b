"""Optimizers: what decays, and what adamw_8bit is on this machine."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from surogate.config.parts import OptimSpec
from surogate.errors import ConfigError
from surogate.modes import optimizers


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(96, 96)
        self.norm = nn.LayerNorm(96)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = Small()
    decayed, plain = optimizers.parameter_groups([p for p in module.parameters() if p.requires_grad], 0.1)
    assert decayed["weight_decay"] == 0.1 and decayed["params"] == [module.matrix.weight]
    assert plain["weight_decay"] == 0.0
    assert {id(p) for p in plain["params"]} == {id(module.matrix.bias), *map(id, module.norm.parameters())}  # type: ignore[attr-defined]


def trained(spec: OptimSpec, steps: int = 5) -> torch.Tensor:
    torch.manual_seed(0)
    module = Small()
    optimizer = optimizers.build_optimizer(spec, list(module.parameters()))
    inputs, targets = torch.randn(32, 96), torch.randn(32, 96)
    for _ in range(steps):
        optimizer.zero_grad()
        (module.norm(module.matrix(inputs)) - targets).square().mean().backward()
        optimizer.step()
    return module.matrix.weight.detach()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "normuon"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_state_that_ranks_share_out_goes_on_from_a_checkpoint_and_as_if_it_were_not_shared(name) -> None:
    spec = OptimSpec(name=name, learning_rate=1e-2)

    def build(module: Small, sharding: optimizers.StateSharding) -> Any:
        parameters = list(module.parameters())
        is_hidden = [parameter.ndim == 2 for parameter in parameters]
        return optimizers.build_optimizer(spec, parameters, sharding, is_hidden)

    def run(sharding: optimizers.StateSharding, reload: bool) -> torch.Tensor:
        torch.manual_seed(0)
        module = Small()
        optimizer = build(module, sharding)
        for step in range(4):
            if reload and step == 2:
                optimizer.consolidate_state_dict()
                saved = io.BytesIO()
                torch.save(optimizer.state_dict(), saved)
                saved.seek(0)
                optimizer = build(module, sharding)
                optimizer.load_state_dict(torch.load(saved, weights_only=True))
            optimizer.zero_grad()
            module.norm(module.matrix(torch.randn(32, 96))).square().mean().backward()
            optimizer.step()
        return module.matrix.weight.detach()

    assert torch.equal(run("by rank", reload=True), run("none", reload=False))


def test_eight_bit_adamw_keeps_eight_bits_of_state_and_follows_adamw() -> None:
    from bitsandbytes.optim import AdamW8bit

    module = Small()
    optimizer = optimizers.build_optimizer(OptimSpec(name="adamw_8bit"), list(module.parameters()))
    assert isinstance(optimizer, AdamW8bit)
    module.norm(module.matrix(torch.randn(4, 96))).sum().backward()
    optimizer.step()
    assert optimizer.state[module.matrix.weight]["state1"].dtype == torch.uint8
    start = trained(OptimSpec(name="adamw"), steps=0)
    exact = trained(OptimSpec(name="adamw", learning_rate=1e-3)) - start
    eight = trained(OptimSpec(name="adamw_8bit", learning_rate=1e-3)) - start
    assert nn.functional.cosine_similarity(exact.flatten(), eight.flatten(), dim=0) > 0.95


def test_without_bitsandbytes_adamw_takes_over_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    optimizers._say_once.cache_clear()
    for _ in range(2):
        optimizer = optimizers.build_optimizer(OptimSpec(name="adamw_8bit"), list(Small().parameters()))
        assert isinstance(optimizer, torch.optim.AdamW)
    assert [r.message for r in caplog.records if "optimising with adamw" in r.message] == [caplog.records[0].message]


def test_normuon_refuses_weights_of_which_no_rank_has_the_whole() -> None:
    with pytest.raises(ConfigError, match="normuon needs whole matrices"):
        optimizers.build_optimizer(OptimSpec(name="normuon"), list(Small().parameters()), "with weights")


@pytest.mark.parametrize("fused", [True, False])
def test_counts_of_steps_go_to_the_device_of_a_fused_kernel_and_stay_where_others_want_them(fused: bool) -> None:
    parameter = nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.AdamW([{"params": [parameter], "fused": fused}])
    optimizer.state[parameter]["step"] = torch.tensor(7.0, dtype=torch.float64)
    optimizers.steps_to_their_device_(optimizer)
    step = optimizer.state[parameter]["step"]
    assert step.device.type == ("meta" if fused else "cpu")
    assert step.dtype == (torch.float32 if fused else torch.float64)
