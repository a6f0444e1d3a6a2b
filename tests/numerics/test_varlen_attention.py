"""Variable-length flash attention on a GPU against attention of each document on its own, forward and backward."""

from __future__ import annotations

import pytest
import torch

from surogate.models.attention import ScoreShape, _each_document, _varlen

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference relative to the largest value of a float32 reference."""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_varlen_attention_equals_each_document_alone(dtype: torch.dtype, window: int | None, key_heads: int) -> None:
    torch.manual_seed(0)
    boundaries = torch.tensor([0, 1, 8, 33, 64, 64 + 40, 128], dtype=torch.int32, device="cuda")
    shapes = [(2, 4, 64, 32), (2, key_heads, 64, 32), (2, key_heads, 64, 32)]
    inputs = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    shape = ScoreShape(scale=32**-0.5, window=window)
    got = _varlen(*inputs, boundaries, 40, shape)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = _each_document(*exact, boundaries, shape)
    weights = torch.randn_like(expected)
    wanted = [expected, *torch.autograd.grad(expected, exact, weights)]
    found = [got, *torch.autograd.grad(got, inputs, weights.to(dtype))]
    for ours, reference in zip(found, wanted, strict=True):
        assert (ours.float() - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()
