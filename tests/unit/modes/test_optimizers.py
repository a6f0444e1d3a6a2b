"""Optimizers: what decays, and what adamw_8bit is on this machine."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from surogate.config.parts import OptimSpec
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
