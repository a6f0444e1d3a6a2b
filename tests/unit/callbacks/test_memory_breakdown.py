from __future__ import annotations

import torch
from torch import nn

from surogate.callbacks.memory_breakdown import breakdown, describe


def test_every_tensor_is_counted_where_it_belongs() -> None:
    module = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 30, bias=False))
    module[1].weight.requires_grad = False
    module.register_buffer("codes", torch.zeros(100, dtype=torch.uint8))
    master = nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.AdamW([module[0].weight, master])
    for parameter in (module[0].weight, master):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert breakdown(module, [optimizer]) == {
        "trained weights": 10 * 20 * 4,
        "frozen weights and buffers": 20 * 30 * 4 + 100,
        "master weights": 50 * 4,
        "gradients": (10 * 20 + 50) * 4,
        "optimizer state": 2 * (10 * 20 + 50) * 4 + 2 * 4,  # and two counts of steps
    }


def test_what_is_left_of_a_gpus_peak_is_activations() -> None:
    parts = {"trained weights": 2**30, "master weights": 0}
    text = describe(parts, 3.0 * 2**30, on_gpu=True)
    assert "activations and workspaces     2.000 GiB" in text and "peak of this GPU: 3.000 GiB" in text
    assert "master" not in text
    assert "activations" not in describe(parts, 3.0 * 2**30, on_gpu=False)
