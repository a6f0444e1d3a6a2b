"""A recipe rounds to the same bits by the kernels as by their specification."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from support.interpreter import interpreting
from torch import Tensor

from surogate.kernels import reference_rounding
from surogate.kernels.reference import nvfp4_global_scale, nvfp4_quantize
from surogate.quant import rounding
from surogate.quant.compute_nvfp4 import SIGNS


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors take the Triton kernels, in the interpreter."""
    monkeypatch.setattr(rounding, "_has_triton", lambda tensor: True)
    with interpreting():
        yield


def specified() -> dict[str, Callable[[Tensor], object]]:
    signs = torch.tensor(SIGNS, dtype=torch.float32)
    return {
        "magnitude": rounding.largest_magnitude,
        "e4m3": lambda x: rounding.to_fp8(x, torch.tensor(37.5), torch.float8_e4m3fn).view(torch.uint8),
        "e5m2": lambda x: rounding.to_fp8(x, torch.tensor(9e3), torch.float8_e5m2).view(torch.uint8),
        "tiles": rounding.to_nvfp4_tiles,
        "transform": lambda x: rounding.hadamard16(x, signs),
    }


EXPECTED = {
    (name, transposed): function(normal(48, 32).t() if transposed else normal(32, 48))
    for name, function in specified().items()
    for transposed in (False, True)
}
"""By the specification, before any test makes the kernels answer."""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", specified())
def test_kernels_round_as_specified_whatever_the_layout(by_kernels: None, name: str, transposed: bool) -> None:
    x = normal(48, 32).t() if transposed else normal(32, 48)
    got, expected = specified()[name](x), EXPECTED[name, transposed]
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_kernels_draw_from_torchs_generator(by_kernels: None) -> None:
    x = normal(16, 32)
    torch.manual_seed(4)
    codes, scale, global_scale = rounding.to_nvfp4_at_random(x)
    torch.manual_seed(4)
    uniform = reference_rounding.philox_uniform(int(torch.randint(2**62, (1,))), x.numel()).reshape(x.shape)
    expected = reference_rounding.nvfp4_quantize_stochastic(x, nvfp4_global_scale(x, False), uniform)
    assert torch.equal(codes, expected[0]) and torch.equal(scale, expected[1])
    assert global_scale == nvfp4_global_scale(x, False)


SPECIAL = [0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -2.0, -4.0, -6.0, 7.0, -1e4, 1e-40, 5.0, 3.999999, 1.9999999]


def test_the_quick_form_rounds_as_specified() -> None:
    values = torch.cat([torch.tensor(SPECIAL), 3 * normal(5000)])
    uniform = torch.rand(len(values), generator=torch.Generator().manual_seed(1))
    expected = reference_rounding.stochastic_e2m1_encode(values, uniform)
    assert torch.equal(rounding.e2m1_at_random(values, uniform), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5])
def test_quick_blocks_are_the_specified_ones(scale: float) -> None:
    x = normal(33, 64) * scale
    x[3] = 0
    global_scale = nvfp4_global_scale(x, False)
    torch.manual_seed(2)
    at_random = rounding.to_nvfp4_at_random(x)
    torch.manual_seed(2)
    expected = reference_rounding.nvfp4_quantize_stochastic(x, global_scale, torch.rand(x.shape))
    assert all(torch.equal(a, b) for a, b in zip(at_random, expected, strict=False))
    to_nearest = rounding.to_nvfp4(x)
    assert all(torch.equal(a, b) for a, b in zip(to_nearest, nvfp4_quantize(x, global_scale, False), strict=False))
    assert torch.equal(to_nearest[2], global_scale)
