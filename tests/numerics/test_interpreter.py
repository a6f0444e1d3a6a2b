"""The repaired interpreter against torch: run these when the version of Triton changes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from support.interpreter import interpreting
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder
from triton.runtime.jit import JITFunction

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]


@triton.jit
def _cast(x_ptr, y_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty))


@triton.jit
def _arithmetic(x_ptr, y_ptr, sum_ptr, product_ptr, negative_ptr, larger_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(sum_ptr + i, x + y)
    tl.store(product_ptr + i, x * y)
    tl.store(negative_ptr + i, -x)
    tl.store(larger_ptr + i, tl.where(x < y, y, x))


@triton.jit
def _matmul(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    offsets = i[:, None] * SIZE + i[None, :]
    tl.store(c_ptr + offsets, tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets), input_precision="ieee"))


@triton.jit
def _double(x):
    return tl.maximum(x, 0) * 2


@triton.jit
def _loop(x_ptr, y_ptr, num, SIZE: tl.constexpr):
    """A loop with a bound from an argument, a device function, and a function of Triton's own library."""
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, num, SIZE):
        i = start + tl.arange(0, SIZE)
        total += _double(tl.load(x_ptr + i, mask=i < num, other=0.0))
    tl.store(y_ptr, tl.sum(total, 0))


@triton.jit
def _without_mask(x_ptr, y_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i))


def run(kernel: Any, *arguments: Any) -> None:
    with interpreting():
        kernel[(1,)](*arguments)


def every_16_bits(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty(x.shape, dtype=dtype)
    run(_cast, x, result, x.numel())
    return result


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers agree, the sign of zero too, and what is no number is none in both."""
    a, b = a.float(), b.float()
    numbers = ~b.isnan()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[numbers].view(torch.int32), b[numbers].view(torch.int32))


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
def test_casts_of_all_16_bit_floats_are_those_of_torch(source: torch.dtype, target: torch.dtype) -> None:
    x = every_16_bits(source)
    assert same_bits(cast(x, target), x.to(target))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_casts_of_float32_round_as_torch_does(target: torch.dtype) -> None:
    x = torch.randn(2**15) * torch.linspace(-12, 12, 2**15).exp()
    assert same_bits(cast(x, target), x.to(target))


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", NARROW, ids=str)
def test_casts_to_float8_round_as_torch_does_and_saturate(target: torch.dtype, source: torch.dtype) -> None:
    x = every_16_bits(torch.float16).to(source)
    largest = torch.finfo(target).max
    assert same_bits(cast(x, target), x.float().clamp(-largest, largest).to(target))


@pytest.mark.parametrize("source", NARROW, ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
def test_casts_of_all_float8_are_those_of_torch(target: torch.dtype, source: torch.dtype) -> None:
    x = torch.arange(256, dtype=torch.uint8).view(source)
    assert same_bits(cast(x, target), x.to(target))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_arithmetic_rounds_as_torch_does(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 512).to(dtype)
    results = torch.empty(4, 512, dtype=dtype)
    run(_arithmetic, x, y, *results, 512)
    expected = torch.stack([x + y, x * y, -x, torch.maximum(x, y)])
    assert same_bits(results, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_product_of_matrices_sums_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 64, 64).to(dtype)
    c = torch.empty(64, 64)
    run(_matmul, a, b, c, 64)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_loops_and_device_functions_run() -> None:
    x, y = torch.arange(-50.0, 50.0), torch.empty(1)
    run(_loop, x, y, 100, 16)
    assert y.item() == 2 * x.clamp(min=0).sum().item()


@pytest.mark.parametrize("short", ["read", "written"])
def test_an_address_outside_of_the_tensors_is_an_error(short: str) -> None:
    x, y = torch.zeros(16), torch.zeros(16)
    sizes = (15, 16) if short == "read" else (16, 15)
    with pytest.raises(InterpreterError, match="outside of its tensors"):
        run(_without_mask, x[: sizes[0]], y[: sizes[1]], 16)


def test_outside_of_the_context_nothing_has_changed() -> None:
    def state() -> tuple:
        patched = (tl, tl.tensor, JITFunction, InterpreterBuilder)
        return [dict(vars(name)) for name in patched], set(vars(sys.modules[__name__]))

    before = state()
    run(_loop, torch.zeros(16), torch.empty(1), 16, 16)
    assert state() == before
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        _double(1)
